"""Steps that are not finite: left out by the host, and by the optimizer's kernels on the device."""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.training.step import Loss, Step
from gpu_parts.against_cpu import make_step, random_images
from gpu_parts.comparison import difference
from gpu_parts.configuration import MODES, SMALL, variants
from gpu_parts.part import CheckFailed, Figures, Machine, Part, Skipped
from gpu_parts.variants import BATCH

TOLERANCE = 1e-4  # between the two ways, which do the same sums


def left_out_parts(machine: Machine) -> list[Part]:
    """Every optimizer: its step left out by the host, and by its own kernels."""
    return [
        Part(
            f"not finite/{' '.join(words)}/{way}",
            functools.partial(check_left_out, machine, words, way == "on the device"),
            ("gpu",) if way == "on the device" else (),
        )
        for words in variants("optimizer")
        for way in ("by the host", "on the device")
    ]


def check_left_out(
    machine: Machine, words: tuple[str, ...], on_device: bool, figures: Figures
) -> None:
    """A step whose loss is not a number changes neither the weights nor the optimizer's memory; the
    next one does. Both ways give the same weights."""
    found = weights_after(machine, words, on_device, figures)
    if on_device:
        worst, largest = difference(found, weights_after(machine, words, False, {}))
        figures |= {"from the host's way": largest, "allowed": TOLERANCE}
        if not largest <= TOLERANCE:
            raise CheckFailed(f"{worst} differs by {largest:.2g} between the two ways")


def weights_after(
    machine: Machine, words: tuple[str, ...], on_device: bool, figures: Figures
) -> dict[str, Tensor]:
    """The network's weights after a good step, a broken one, and a good one: float64 on the CPU.

    Raises:
        CheckFailed: the broken step changed something, or a good one nothing.
    """
    step, parameters = make_step((*SMALL, *words), BATCH, machine.hardware, MODES["fp32"])
    inner = step.optimizer.optimizer
    figures["fused"] = bool(inner.defaults.get("fused"))
    if not on_device:
        step.skips_on_device = lambda optimizer: False
    elif not step.skips_on_device(inner):
        kind = type(inner).__name__
        if figures["fused"]:
            raise CheckFailed(f"{kind} is fused and cannot leave out a step by itself")
        raise Skipped(f"{kind} without fused kernels leaves out no step by itself")
    batch = random_images(step)
    take(step, 0, batch, is_broken=False)
    before = state_of(step)
    whole = step.loss
    step.loss = functools.partial(broken_loss, whole)
    take(step, 1, batch, is_broken=True)
    after = state_of(step)
    if changed := [name for name in before if not torch.equal(before[name], after[name])]:
        raise CheckFailed(f"the broken step changed {changed[0]} and {len(changed) - 1} more")
    step.loss = whole
    take(step, 2, batch, is_broken=False)
    last = state_of(step)
    if all(torch.equal(after[name], last[name]) for name in after):
        raise CheckFailed("the good step after the broken one changed nothing")
    model = {name: p for name, p in parameters.items() if name.startswith("model.")}
    return {name: parameter.detach().cpu().double() for name, parameter in model.items()}


def take(step: Step, n: int, batch: tuple[Tensor, Tensor], *, is_broken: bool) -> None:
    """The n-th step, which is to be broken or not."""
    metrics = step(n, *batch)
    if bool(metrics.nonfinite) != is_broken:
        raise CheckFailed(f"step {n}: broken={bool(metrics.nonfinite)}, loss {metrics.loss.item()}")


def broken_loss(whole: Loss, model: nn.Module, x_0: Tensor, *rest: Any) -> Tensor:
    """The losses of a step (B,), of which the first is not a number."""
    losses = whole(model, x_0, *rest)
    first = torch.arange(len(losses), device=losses.device) == 0
    return torch.where(first, torch.nan * losses, losses)


def state_of(step: Step) -> dict[str, Tensor]:
    """Copies of the weights and of all tensors in the optimizer's memory."""
    found = {f"weight {name}": p.detach().clone() for name, p in step.model.named_parameters()}
    for number, entries in copy.deepcopy(step.optimizer.optimizer.state_dict()["state"]).items():
        tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
        found |= {f"optimizer {number} {name}": tensor for name, tensor in tensors.items()}
    return found
