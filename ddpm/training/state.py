"""The training state that a checkpoint saves and restores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import Precision
from torch import Tensor, nn

from ddpm import pretrained
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.base import EMA
from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.distributed import fsdp


@dataclass
class TrainState:
    """Weights, their average, a learned schedule, and the optimizer's state.

    Args:
        model, optimizer: without Fabric's wrappers.
        precision: holds the gradient scale of float16, which changes during training.
    """

    model: nn.Module
    ema: EMA
    diffusion: GaussianDiffusion
    optimizer: torch.optim.Optimizer
    precision: Precision

    def state(self, keep: bool = True) -> dict[str, Any]:
        """The entries of a checkpoint, with sharded weights gathered: all ranks call it.

        Args:
            keep: whether this rank needs the gathered weights.

        Raises:
            InputError: a weight is not finite, which would make the checkpoint useless.
        """
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "diffusion": self.diffusion.state_dict(),  # empty unless the schedule is learned
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
        }
        others = {length: average.state_dict() for length, average in self.ema.others.items()}
        if others:
            state["averages"] = others
        parts = {part: state[part] for part in ("model", "ema", "diffusion")}
        for part, weights in (parts | others).items():
            for name, weight in weights.items():
                if not fsdp.all_finite(weight):
                    raise InputError(
                        f"the weights are not finite any more ({part}: {name}), so no checkpoint "
                        "is written. A lower optimizer.lr helps; earlier checkpoints are good."
                    )
        return fsdp.gather(state, keep)

    def averages(self, keep: bool = True) -> dict[str, dict[str, Tensor]]:
        """The averages by length, in float16 where that can hold them, with sharded weights
        gathered: all ranks call it.

        Args:
            keep: whether this rank needs the gathered weights.
        """
        gathered = {}
        for length, average in self.ema.models.items():
            weights = fsdp.gather(average.state_dict(), keep)
            if keep:
                gathered[length] = {name: halved(weight) for name, weight in weights.items()}
        return gathered

    def load(self, state: dict[str, Any], path: Path | None) -> None:
        """Restore the entries of a checkpoint; the optimizer keeps its configured options."""
        assert path is not None
        pretrained.load_weights_into(self.model, self.diffusion, state, "model", path)
        checkpoint.load_weights(self.ema.model, state["ema"], path)
        for length, average in self.ema.others.items():
            if length not in state.get("averages", {}):
                raise InputError(
                    f"checkpoint={path}: holds no average of length {length}; leave the group ema "
                    "and its keys as they were."
                )
            checkpoint.load_weights(average, state["averages"][length], path)
        configured = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(self.laid_out(state["optimizer"]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"checkpoint={path}: the state of its optimizer does not fit ({error})."
            ) from error
        for group, options in zip(self.optimizer.param_groups, configured, strict=True):
            group |= options
        if state.get("scaler"):
            self.precision.load_state_dict(state["scaler"])

    def laid_out(self, optimizer_state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state with each tensor laid out in memory, and sharded, like its weight:
        fused kernels read both side by side and ignore strides."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        laid_out = {
            number: {
                name: like(value, weights[number])
                if isinstance(value, Tensor) and value.shape == weights[number].shape != ()
                else value
                for name, value in entries.items()
            }
            for number, entries in optimizer_state["state"].items()
        }
        return optimizer_state | {"state": laid_out}


def halved(weight: Tensor) -> Tensor:
    """A weight in float16 on the CPU; unchanged if it is no float or too large for that."""
    weight = weight.detach().cpu()
    if not weight.is_floating_point():
        return weight.clone()
    half = weight.half()
    return half if half.isfinite().all() else weight.clone()


def like(value: Tensor, weight: Tensor) -> Tensor:
    """A tensor in the layout and on the device, or devices, of a weight of the same shape."""
    if fsdp.is_sharded(weight):
        return fsdp.distribute(value, weight)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)
