"""job=export: convert a checkpoint to a model that can be shared."""

import itertools
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from ddpm import pretrained
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.jobs import model_card
from ddpm.runner.checkpoints import diffusers_folder, safetensors_file, summary
from ddpm.runner.execution.run import Run
from ddpm.runner.hub import upload
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import atomic
from ddpm.runner.terminal import shell


def export(
    *,
    run: Run,
    fabric: Fabric,
    model: nn.Module,
    diffusion: GaussianDiffusion,
    format: str,
    weights: str,
    push_to: str | None = None,
) -> None:
    """Write `model.safetensors` and `config.json`, or a pipeline of diffusers, and nothing else:
    the folder is meant to be shared, and the files of a run's folder describe this machine.
    conf/job/export.yaml explains the arguments.

    Raises:
        InputError: the weights do not fit the network, diffusers has no such network, or the files
            cannot be written.
    """
    assert run.state is not None
    assert run.path is not None
    trained = run.state["hparams"]["choices"]["job"]
    if trained == "train_classifier" and weights != "ema":
        raise InputError(
            f"job.weights={weights}: guidance uses the averaged weights of a classifier (ema); "
            "leave it out."
        )
    hub = upload.check(push_to) if push_to is not None and run.leads else None
    # Loading checks the weights, so that no damaged ones are exported.
    pretrained.load_weights_into(model, diffusion, run.state, weights, run.path)
    if run.leads:
        state = with_sampling(run.state, run.plan.hparams)
        betas = diffusion.exact_betas().tolist() if format == "diffusers" else None
        if betas is not None:
            diffusers_folder.configs(state["hparams"], betas)  # refused before a folder is made
        run.dir = make_folder(run.dir, unique=run.plan.output.unique)
        file = write(run, state, weights, betas)
        run.say(next_command(trained, file, weights))
        if push_to is not None:
            if betas is None:  # a pipeline of diffusers has its card already
                card = model_card.text(state, weights, None, model_card.scores(run.path))
                atomic.write(run.dir / diffusers_folder.CARD, card)
            title = f"{weights} weights of step {run.step}"
            run.say(f"pushed   {upload.push(hub, push_to, run.dir, title)}")
    fabric.barrier()


def with_sampling(state: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state, with sampler and guidance of the command line, `current`."""
    hparams = state["hparams"]
    sampling = {part: current[part] for part in ("sampler", "guidance")}
    choices = hparams["choices"] | {part: current["choices"][part] for part in sampling}
    return state | {"hparams": hparams | sampling | {"choices": choices}}


def write(run: Run, state: dict[str, Any], weights: str, betas: list[float] | None) -> Path:
    """Write the export and say where it is; return the path that checkpoint= takes.

    Args:
        betas: of the process, (T,), for a pipeline of diffusers; None: for this program's format.
    """
    assert run.path is not None
    if betas is None:
        file = safetensors_file.write(run.dir, state, weights)
        size, content = file.stat().st_size, weights
    else:
        card = model_card.text(state, weights, betas, model_card.scores(run.path))
        file = diffusers_folder.write(run.dir, state, weights, betas, card).parent
        size, content = diffusers_folder.size(file), f"a pipeline of diffusers, {weights}"
    run.say(
        f"done     {file} ({size / 1e6:.1f} MB): {content} of {run.path}, step {run.step}"
        + (f"; {safetensors_file.CONFIG} beside it" if betas is None else "")
    )
    return file


def next_command(trained: str, file: Path, weights: str) -> str:
    """The command that uses an export: guidance by a classifier, else sampling."""
    if trained == "train_classifier":
        return f"guide    {shell.guiding(file)}"
    words = ["job=sample", shell.word("checkpoint", file)]
    words += [] if weights == "ema" else [f"job.weights={weights}"]
    return f"sample   {shell.command(*words)}"


def make_folder(path: Path, *, unique: bool) -> Path:
    """Create the folder of an export, or use an existing one; return it.

    Args:
        unique: add "-2", "-3", ... if a folder of this name exists.

    Raises:
        InputError: it holds a run or an export, or cannot be created.
    """
    if not unique:
        run_dir.check_free(path)
        if any((path / name).exists() for name in (summary.EXPORT, summary.PIPELINE)):
            raise InputError(f"output_dir={path}: holds an export already; choose another folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                folder.mkdir(exist_ok=not unique)
                break
            except FileExistsError:
                if not unique:
                    raise
    except OSError as error:
        raise InputError(f"output_dir={path}: cannot be created ({error.strerror}).") from None
    return folder
