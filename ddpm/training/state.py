"""All that a training run has learned: what a checkpoint holds, and is filled from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import Precision
from torch import Tensor, nn

from ddpm import pretrained
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.distributed import fsdp
from ddpm.training.ema import EMA


@dataclass
class Learned:
    """Weights, their average, a schedule that learns, and what the optimizer remembers.

    Args:
        model, optimizer: as they are inside of Fabric's wrappers.
        precision: holds the scale of float16, which moves during training.
    """

    model: nn.Module
    ema: EMA
    diffusion: GaussianDiffusion
    optimizer: torch.optim.Optimizer
    precision: Precision

    def state(self, keep: bool = True) -> dict[str, Any]:
        """The entries of a checkpoint, whole also where the weights are shared out: all ranks call
        it, and those that do not `keep` it get no shared weights.

        Raises:
            InputError: a weight is not finite: such a checkpoint would be of no use to anybody.
        """
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "diffusion": self.diffusion.state_dict(),  # of a schedule that learns; else empty
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
        }
        for part in ("model", "ema", "diffusion"):
            for name, weight in state[part].items():
                if not fsdp.shared_finite(weight):
                    raise InputError(
                        f"the weights are not finite any more ({part}: {name}): no checkpoint of "
                        "them is written. A lower optimizer.lr helps; earlier checkpoints are good."
                    )
        return fsdp.whole(state, keep)

    def load(self, state: dict[str, Any], path: Path) -> None:
        """Take up what a checkpoint holds; the knobs of the optimizer stay as configured."""
        pretrained.load_weights_into(self.model, self.diffusion, state, "model", path)
        checkpoint.load_weights(self.ema.model, state["ema"], path)
        knobs = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(self.laid_out(state["optimizer"]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"checkpoint={path}: its optimizer is not this one ({error})."
            ) from error
        for group, own in zip(self.optimizer.param_groups, knobs, strict=True):
            group |= own
        if state.get("scaler"):
            self.precision.load_state_dict(state["scaler"])

    def laid_out(self, memory: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state, each tensor laid out in memory, and shared out, as its weight is:
        fused kernels go through both side by side and ask for no strides."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        laid = {
            number: {
                name: like(value, weights[number])
                if isinstance(value, Tensor) and value.shape == weights[number].shape != ()
                else value
                for name, value in entries.items()
            }
            for number, entries in memory["state"].items()
        }
        return memory | {"state": laid}


def like(value: Tensor, weight: Tensor) -> Tensor:
    """A tensor with the layout and on the device, or the devices, of a weight of its shape."""
    if fsdp.is_shared(weight):
        return fsdp.share(value, weight)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)
