"""job=play: a page on this machine to draw, inpaint and interpolate with a trained network."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning_fabric import Fabric

from ddpm.errors import InputError
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.jobs.sampling import PipelineParts
from ddpm.runner.config import catalog
from ddpm.runner.config.build import build
from ddpm.runner.config.derive import takes_labels
from ddpm.runner.execution.run import Run
from ddpm.samplers.base import Sampler
from ddpm.web import server


def play(
    *, run: Run, fabric: Fabric, pipeline: PipelineParts, weights: str, host: str, port: int
) -> None:
    """Serve the page until Ctrl-C; nothing is written. conf/job/play.yaml explains the arguments.

    Raises:
        InputError: the address cannot be used, a package is missing, or there are several devices.
    """
    server.check_extra("play")
    token = server.check_address(host)
    if fabric.world_size > 1:
        raise InputError("hardware.devices: job=play draws on one device.")
    loaded = pipeline.load(run, fabric, weights)
    from ddpm.web.play import application
    from ddpm.web.studio import Studio

    config = run.plan.config
    conditional = config["data"].get("conditional") is True
    studio = Studio(
        loaded,
        _samplers(config),
        labelled=takes_labels(config),
        make_guidance=(lambda scale: ClassifierFree(scale=scale)) if conditional else None,
        facts={
            "model": str(config["choices"]["model"]),
            "data": str(config["choices"]["data"]),
            "step": f"{run.step:,}",
            "weights": weights,
            "parameters": f"{sum(p.numel() for p in loaded.model.parameters()):,}",
            "device": str(fabric.device),
        },
    )
    opened = server.bind(host, port)
    app = application(studio, token, host)
    server.run(app, opened, host, token, f"{weights} of {run.path}, step {run.step}")


def _samplers(
    config: dict[str, Any],
) -> dict[str, tuple[Callable[[int | None], Sampler], int | str | None]]:
    """The sampler of the command line, and those of conf/sampler/: what builds each, and its
    number of steps."""
    nodes = {str(config["choices"]["sampler"]): config["sampler"]}
    for name in catalog.groups()["sampler"]:
        nodes.setdefault(name, catalog.node("sampler", name))
    return {
        name: (partial(_make, node), node.get("steps", "fixed")) for name, node in nodes.items()
    }


def _make(node: dict[str, Any], steps: int | None) -> Sampler:
    return build(node | {"steps": steps} if "steps" in node else node, "sampler")
