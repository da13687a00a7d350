"""The weights of another run that a new run begins with, compared with its network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError, listed, shown
from ddpm.runner import roles
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.checkpoints.checkpoint import misfits
from ddpm.runner.config.build import build
from ddpm.runner.distributed import fsdp


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a new run begins with.

    Args:
        source: how the command line names them.
        file, step: of the checkpoint.
        weights: of the network, those that fit it; `average`: of its average, None: the same.
        process: of a learned schedule, and what the objective measured, if they fit. The losses
            that timesteps=importance kept belong to the source's training and stay there.
        own: weights of the network that keep their random values.
    """

    source: str
    file: Path
    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    process: dict[str, Tensor]
    own: list[str]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "InitialWeights":
        """Read the weights that a plan names by init_from, and compare them with its network
        before that takes any memory.

        Raises:
            InputError: a weight does not fit, and init_allow does not list it.
        """
        source, wanted = config["init_from"], config["init_weights"]
        file, state = checkpoint.find(config["init_source"]["file"])
        names = ("model", "ema") if wanted == "both" else (wanted,)
        if missing := [name for name in names if name not in state]:
            held = "ema" if "ema" in state else "model"
            raise InputError(
                f"init_weights={wanted}: init_from={source} has no {missing[0]} weights; "
                f"use init_weights={held}."
            )
        with torch.device("meta"):
            network = build(config["model"], "model").state_dict()
        with torch.device("cpu"):
            process = build(config["diffusion"], "diffusion").state_dict()
        fitting = {}
        for name in names:
            weights = state[name]
            check_fitting(network, weights, config["init_allow"], source)
            if broken := [k for k, v in weights.items() if not torch.isfinite(v).all()]:
                raise InputError(f"init_from={source}: not finite ({shown(broken[0])}).")
            wrong = misfits(network, weights)
            fitting[name] = {k: v for k, v in weights.items() if k not in wrong}
        theirs = state.get("diffusion", {})
        left = ["timesteps", *{name.partition(".")[0] for name in misfits(process, theirs)}]
        brought = {k: v for k, v in theirs.items() if not roles.within(k, left)}
        first = fitting[names[0]]
        return cls(
            source=source,
            file=file,
            step=state["step"],
            weights=first,
            average=fitting["ema"] if wanted == "both" else None,
            process=brought,
            own=[name for name in network if name not in first],
        )

    def load(self, model: nn.Module, diffusion: GaussianDiffusion) -> None:
        """Load them into the network, before it is copied for its average, and the process."""
        model.load_state_dict(self.weights, strict=False)
        if self.process:
            diffusion.load_state_dict(self.process, strict=False)

    def load_average(self, model: nn.Module) -> None:
        """Load the average into its network, which may be sharded."""
        if self.average is not None:
            own = model.state_dict()
            new = {
                name: fsdp.distribute(weight, own[name]) for name, weight in self.average.items()
            }
            model.load_state_dict(new, strict=False)

    def text(self) -> str:
        """The weights that were loaded, in one line."""
        count = sum(weight.numel() for weight in self.weights.values())
        parts = list(dict.fromkeys(name.rpartition(".")[0] or name for name in self.own))
        own = f"; random: {listed(parts, 5)}" if parts else ""
        learned = any(name.startswith("schedule.") for name in self.process)
        schedule = ", and its learned schedule" if learned else ""
        return f"{count:,} weights of {self.source}, step {self.step}{schedule}{own}"


def check_fitting(
    network: dict[str, Tensor], weights: dict[str, Tensor], allowed: Iterable[str], source: str
) -> None:
    """Check that weights fit a network, but for the parts that may keep their own values.

    Raises:
        InputError: names at most five weights, and the parts to allow if most weights fit.
    """
    allowed, problems = list(allowed), misfits(network, weights)
    wrong = [name for name in problems if not roles.within(name, allowed)]
    if not wrong:
        return
    parts = dict.fromkeys(name.rpartition(".")[0] or name for name in wrong)
    if len(parts) > 5:
        parts = dict.fromkeys(name.partition(".")[0] for name in wrong)
    texts = [problems[name] for name in wrong]
    advice = (
        "To begin without these parts: "
        f"'init_allow=[{','.join(shown(part) for part in [*allowed, *parts])}]'"
    )
    wanted = [name for name in network if not roles.within(name, allowed)]
    fitting = sum(name not in problems for name in wanted)
    if fitting < len(wanted) / 2:
        advice = f"{fitting} of {len(wanted)} fit: set the model of that run."
    raise InputError(
        f"init_from={source}: its weights are of another network: {listed(texts, 5)}.\n{advice}"
    )
