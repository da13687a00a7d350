"""job=explain: figures of the method, of this configuration and of what a network has learned."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ddpm.data.base import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError, nearest
from ddpm.figures import page, style
from ddpm.figures.base import Drawing, Material, NotDrawn
from ddpm.figures.gallery import FIGURES
from ddpm.images import save_gif
from ddpm.jobs.sampling import PipelineParts
from ddpm.metrics.base import to_csv
from ddpm.runner.config import catalog
from ddpm.runner.config.build import build
from ddpm.runner.execution.run import Run
from ddpm.runner.safe_io import atomic
from ddpm.runner.terminal.progress import Progress


def explain(
    *,
    run: Run,
    fabric: Fabric,
    pipeline: PipelineParts,
    data: ImageData,
    weights: str,
    figures: Sequence[str] | None,
    num_images: int,
    first_seed: int,
) -> None:
    """Write PNG, SVG and CSV files of all figures, and `explain.html` with all of them.
    conf/job/explain.yaml explains the arguments.

    Raises:
        InputError: there is no figure of a name.
    """
    names = check_names(figures)
    loaded = None if run.state is None else pipeline.load(run, fabric, weights)
    if loaded is not None and not (data.conditional or loaded.guidance.labelled):
        loaded.num_classes = None
    data.prepare()
    shown = data.held_out() or data
    shown.prepare()
    images, labels = shown.__getitems__(range(min(num_images, len(shown))))
    config = run.plan.config
    diffusion = pipeline.diffusion.to(fabric.device)
    learned = loaded is not None and diffusion.schedule is not None
    material = Material(
        diffusion=diffusion,
        images=images,
        labels=labels,
        sampler=pipeline.sampler,
        pipeline=loaded,
        names={key: str(option) for key, option in config["choices"].items()},
        schedules=build_all("schedule", processes(config, "betas"), T=diffusion.T),
        weightings=build_all("weighting", processes(config, "weighting")),
        samplers=build_all("sampler", lambda node: build(node, "sampler")),
        initial=build(config["diffusion"], "diffusion") if learned else None,
        labelled=data.conditional,
        first_seed=first_seed,
    )
    with run.begin():
        if run.leads:
            write(run, material, names)


def check_names(figures: Sequence[str] | None) -> list[str]:
    """The figures to draw, in the order of the page.

    Raises:
        InputError: there is none of a name.
    """
    for name in figures or []:
        if name not in FIGURES:
            hint = nearest(str(name), FIGURES)
            raise InputError(f"job.figures={name}: must be some of {', '.join(FIGURES)}.{hint}")
    return [name for name in FIGURES if figures is None or name in figures]


def build_all(group: str, make: Callable[[dict[str, Any]], Any], **changes: Any) -> dict[str, Any]:
    """What `make` builds from each option of a group of conf/, without those that it refuses: they
    need a value, or do not go with the other parts.

    Args:
        make: from an option's node.
        changes: keys to set in the options that have them.
    """
    built = {}
    for option in catalog.groups()[group]:
        node = catalog.node(group, option)
        node |= {key: value for key, value in changes.items() if key in node}
        with contextlib.suppress(InputError):
            built[option] = make(node)
    return built


def processes(
    config: dict[str, Any], argument: str
) -> Callable[[dict[str, Any]], GaussianDiffusion]:
    """A function from the node of an argument to this run's process with that argument."""
    return lambda node: build(config["diffusion"] | {argument: node}, "diffusion")


def write(run: Run, material: Material, names: Sequence[str]) -> None:
    """Draw the figures of these names, and write their files and the page into the run's folder."""
    drawings, missing = [], {}
    with Progress(len(names), unit="figure") as progress:
        for number, name in enumerate(names, 1):
            try:
                with style.look(), torch.no_grad():
                    drawing = FIGURES[name](material)
            except NotDrawn as reason:
                missing[name] = str(reason)
            else:
                save(drawing, run.dir)
                drawings.append(drawing)
            progress.reach(number)
            progress.show(number, name)
    for name, why in missing.items():
        run.say(f"without  {name}: {why}")
    choices = run.plan.config["choices"]
    keys = ("data", "model", "schedule", "objective", "weighting", "sampler", "guidance")
    facts = ["  ".join(f"{key}={choices[key]}" for key in keys if choices.get(key))]
    if run.path is not None:
        facts.append(f"Of {run.path}, step {run.step}.")
    else:
        facts.append("Of the configuration; checkpoint=<run folder> adds what a run has learned.")
    channels = material.images.shape[1]
    if channels not in (1, 3):
        facts.append(f"Of the {channels} channels of an image, the pictures show the first.")
    title = "How this diffusion model works"
    html = page.page(title, facts, drawings, missing, run.dir)
    atomic.write(run.dir / "explain.html", html)


def save(drawing: Drawing, folder: Path) -> None:
    """Write the files of a figure."""
    for kind in ("png", "svg"):
        atomic.write(folder / f"{drawing.name}.{kind}", style.save(drawing.figure, kind))
    atomic.write(folder / f"{drawing.name}.csv", to_csv(drawing.rows))
    if drawing.frames:
        save_gif(drawing.frames, folder / f"{drawing.name}.gif", duration_ms=110, hold_ms=1200)
