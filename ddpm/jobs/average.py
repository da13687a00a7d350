"""job=average: averages of any length from a run of ema=power, as models that can be shared."""

from collections.abc import Sequence

from lightning_fabric import Fabric
from torch import nn

from ddpm import pretrained
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.jobs.export import make_folder
from ddpm.runner.checkpoints import averages, safetensors_file
from ddpm.runner.execution.run import Run
from ddpm.runner.terminal import shell


def average(
    *,
    run: Run,
    fabric: Fabric,
    model: nn.Module,
    diffusion: GaussianDiffusion,
    sigma_rel: Sequence[float],
) -> None:
    """Write `ema-<length>/model.safetensors` and `config.json` for each length, as job=export does
    with one. conf/job/average.yaml explains the arguments.

    Raises:
        InputError: the checkpoint and its snapshots do not give one of the lengths, or a file
            cannot be written.
    """
    assert run.state is not None
    assert run.path is not None
    try:
        for length in sigma_rel:  # all are made before anything is written
            pretrained.load_weights_into(model, diffusion, run.state, f"ema:{length}", run.path)
    except InputError as error:
        raise InputError(str(error).replace("job.weights=ema:", "job.sigma_rel=", 1)) from None
    if run.leads:
        run.dir = make_folder(run.dir, unique=run.plan.output.unique)
        for length in sigma_rel:
            weights = f"ema:{length}"
            folder = make_folder(run.dir / f"ema-{length}", unique=False)
            file = safetensors_file.write(folder, run.state, weights)
            run.say(f"average  {file}: {averages.origin(run.state, weights, run.path)}")
        words = ["job=evaluate", shell.word("checkpoint", file)]
        run.say(f"done     {len(sigma_rel)} of {run.path}, step {run.step}")
        run.say(f"score    {shell.command(*words)}")
    fabric.barrier()
