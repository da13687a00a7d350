"""job=export: convert a checkpoint to a model that can be shared."""

import itertools
from pathlib import Path

from lightning_fabric import Fabric
from torch import nn

from ddpm import pretrained
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.runner.checkpoints import safetensors_file
from ddpm.runner.execution.run import Run
from ddpm.runner.runs import run_dir
from ddpm.runner.terminal import shell

WRITERS = {"safetensors": safetensors_file.write}


def export(
    *,
    run: Run,
    fabric: Fabric,
    model: nn.Module,
    diffusion: GaussianDiffusion,
    format: str,
    weights: str,
) -> None:
    """Write `model.safetensors` and `config.json`, and nothing else: the folder is meant to be
    shared, and the files of a run's folder describe this machine. conf/job/export.yaml explains
    the arguments.

    Raises:
        InputError: the weights do not fit the network, or the files cannot be written.
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
    # Loading checks the weights, so that no damaged ones are exported.
    pretrained.load_weights_into(model, diffusion, run.state, weights, run.path)
    if run.leads:
        # sampler and guidance are those of the command line
        sampling = {part: current[part] for part in ("sampler", "guidance")}
        choices = hparams["choices"] | {part: current["choices"][part] for part in sampling}
        state = run.state | {"hparams": hparams | sampling | {"choices": choices}}
        run.dir = make_folder(run.dir, unique=run.plan.output.unique)
        file = WRITERS[format](run.dir, state, weights)
        run.say(
            f"done     {file} ({file.stat().st_size / 1e6:.1f} MB): {weights} of {run.path}, "
            f"step {run.step}; {safetensors_file.CONFIG} beside it"
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
        if (path / safetensors_file.NAME).exists():
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
