"""job=export: convert a checkpoint to a model that can be shared."""

import itertools
from pathlib import Path

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
    hparams, current = run.state["hparams"], run.plan.hparams
    trained = hparams["choices"]["job"]
    if trained == "train_classifier" and weights != "ema":
        raise InputError(
            f"job.weights={weights}: guidance uses the averaged weights of a classifier (ema); "
            "leave it out."
        )
    hub = upload.check(push_to) if push_to is not None and run.leads else None
    # Loading checks the weights, so that no damaged ones are exported.
    pretrained.load_weights_into(model, diffusion, run.state, weights, run.path)
    if run.leads:
        # sampler and guidance are those of the command line
        sampling = {part: current[part] for part in ("sampler", "guidance")}
        choices = hparams["choices"] | {part: current["choices"][part] for part in sampling}
        state = run.state | {"hparams": hparams | sampling | {"choices": choices}}
        betas = diffusion.exact_betas().tolist()
        if format == "diffusers":
            diffusers_folder.configs(state["hparams"], betas)  # refused before a folder is made
        run.dir = make_folder(run.dir, unique=run.plan.output.unique)
        if format == "diffusers":
            card = model_card.text(state, weights, betas, model_card.scores(run.path))
            file = diffusers_folder.write(run.dir, state, weights, betas, card).parent
            size, beside = diffusers_folder.size(file), f"a pipeline of diffusers, {weights}"
        else:
            file = safetensors_file.write(run.dir, state, weights)
            size, beside = file.stat().st_size, weights
        run.say(
            f"done     {file} ({size / 1e6:.1f} MB): {beside} of {run.path}, step {run.step}"
            + ("" if format == "diffusers" else f"; {safetensors_file.CONFIG} beside it")
        )
        if trained == "train_classifier":
            run.say(
                "guide    python run.py job=sample checkpoint=<a run of the same data> "
                f"guidance=classifier {shell.word('guidance.classifier', file)}"
            )
        else:
            words = ["job=sample", shell.word("checkpoint", file)]
            words += [] if weights == "ema" else [f"job.weights={weights}"]
            run.say(f"sample   {shell.command(*words)}")
        if push_to is not None:
            if format != "diffusers":  # the Hub shows it
                card = model_card.text(state, weights, None, model_card.scores(run.path))
                atomic.write(run.dir / diffusers_folder.CARD, card)
            title = f"{weights} weights of step {run.step}"
            run.say(f"pushed   {upload.push(hub, push_to, run.dir, title)}")
    fabric.barrier()


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
