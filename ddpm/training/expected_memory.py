"""The memory that training is expected to take on a device, and the split of a step that fits.

What the network keeps for the backward pass is measured, not guessed: it goes forward and backward
once with two images and once with three, every tensor is counted, and each operation's sum is
extended in a straight line to the images of a step. A large network does so with fake tensors,
which have a size and no content, with all images at once where their number is known. A compiled
network takes less than is expected here.
"""

import contextlib
import copy
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm.errors import InputError
from ddpm.runner.distributed import fsdp
from ddpm.runner.distributed.fabric import mesh_of
from ddpm.runner.execution import eager
from ddpm.training import memory
from ddpm.training.memory import Ledger
from ddpm.training.recompute import recompute

Images = tuple[Tensor, Tensor, Tensor, Tensor | None]  # x_0, t, eps, label
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]
Optimizer = Callable[..., torch.optim.Optimizer]

TWO, THREE = 2, 3  # images of the measurements; one alone takes other ways through some operations
SMALL = 5e9  # weights x pixels, up to which real tensors take less time than fake ones
SPARE = 0.05  # share of the expected memory that a split leaves free, for what is not counted

logger = logging.getLogger(__name__)


class Trace(NamedTuple):
    """Bytes after each operation of one pass: of what is alive, and of the finished gradients,
    which are not in the former."""

    live: list[int]
    gradients: list[int]

    @property
    def peak(self) -> int:
        return max(self.live, default=0)


@dataclass(frozen=True)
class Expected:
    """Bytes that training takes on one device.

    Args:
        kept: weights, their average and the optimizer's state, all the time.
        held: the part of `kept` that is there before the first step.
        gradients: of all weights.
        update: what the optimizer's step takes beside them.
        image, noise: of each image of this device's share, and of the global batch.
        batch, share: images of a step, on all devices and on this one.
        traces: of a forward and backward pass, by its number of images.
        preview: of a forward pass that draws or measures, or 0 where it cannot be the largest.
    """

    kept: int
    held: int
    gradients: int
    update: int
    image: int
    noise: int
    batch: int
    share: int
    traces: dict[int, Trace]
    preview: int = 0

    def total(self, parts: int) -> int:
        """With the share of a step in so many parts."""
        return max(self.training(parts), self.kept + self.preview)

    def training(self, parts: int) -> int:
        """The same without previews, which a run can do without."""
        images = self.share // parts
        live = extended({n: trace.live for n, trace in self.traces.items()}, images)
        if parts == 1:
            gradients = extended({n: trace.gradients for n, trace in self.traces.items()}, images)
            passes = max(map(sum, zip(live, gradients, strict=True)))
        else:  # from the second part on, all gradients are there
            passes = self.gradients + max(live)
        step = max(passes, self.gradients + self.update)
        step += self.share * self.image + self.batch * self.noise
        return self.kept + step

    def text(self, parts: int) -> str:
        """The expected memory in words."""
        total, images = self.total(parts), self.share // parts
        at_once = f"{images} images" if images != 1 else "1 image"
        more = f" at a time, {parts} times a step" if parts > 1 else ""
        rest = memory.text(total - self.kept)
        return (
            f"about {memory.text(total)}: {memory.text(self.kept)} for weights, their average and "
            f"the optimizer, {rest} for {at_once}{more}"
        )


def extended(known: dict[int, list[int]], images: int) -> list[int]:
    """Bytes after each operation with so many images, on a straight line through what is known of
    two numbers of images."""
    if images in known:
        return known[images]
    (n, one), (m, other) = known.items()
    if len(one) != len(other):  # other operations: of the peaks alone
        one, other = [max(one, default=0)], [max(other, default=0)]
    return [max(0, a + (b - a) * (images - n) // (m - n)) for a, b in zip(one, other, strict=True)]


class Trial:
    """Lets a network go forward and backward to see what it takes. Weights, buffers, gradients and
    random generators are afterwards as they were before.

    Args:
        net: the network, not yet shared out over devices.
        loss: (model, x_0, t, eps, label) -> the loss of each image, (B,).
        shape: (C, H, W) of an image.
        labelled: whether labels are fed.
        recomputes: whether the network is to recompute its blocks.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        fabric: Fabric,
        *,
        shape: tuple[int, int, int],
        labelled: bool,
        recomputes: bool,
    ) -> None:
        self.net, self.loss, self.fabric = net, loss, fabric
        self.shape, self.labelled = shape, labelled
        self.shared = mesh_of(fabric) is not None
        weights = list(net.parameters())
        self.weights = sum(weight.nbytes for weight in weights)
        self.largest = max(map(_bytes, fsdp.blocks(net)), default=0)
        pixels = shape[1] * shape[2]
        self.measured, self.fake = net, None
        if self.shared or sum(weight.numel() for weight in weights) * pixels > SMALL:
            self.fake = FakeTensorMode(allow_non_fake_inputs=True)
            self.measured = _faked(net, self.fake, fabric.device, channels_last=not self.shared)
            if recomputes:
                recompute(self.measured)

    def images(self, number: int) -> Images:
        """So many images for the loss; what is in them does not matter."""
        device = self.fabric.device
        x_0 = torch.zeros(number, *self.shape, device=device)
        t = torch.zeros(number, dtype=torch.int64, device=device)
        return x_0, t, torch.zeros_like(x_0), torch.zeros_like(t) if self.labelled else None

    def trace(self, number: int, images: int) -> Trace:
        """What a forward and backward pass of so many images takes, operation by operation.

        Args:
            images: that it stands for.
        """
        finished: list[tuple[int, int]] = []  # operations before a gradient was finished; its bytes

        def take(weight: Tensor) -> None:
            finished.append((len(ledger.after), weight.grad.nbytes))
            weight.grad = None

        weights = [weight for weight in self.measured.parameters() if weight.requires_grad]
        hooks = [weight.register_post_accumulate_grad_hook(take) for weight in weights]
        try:
            with self._apart(self.measured), self.fake or contextlib.nullcontext():
                inputs = self.images(number)
                with Ledger(memory.with_loss(self.fabric.device, images / number)) as ledger:
                    self._pass(self.measured, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        sizes = [0] * (len(ledger.after) + 1)
        for operation, size in finished:
            sizes[operation] += size
        return Trace(ledger.after, list(itertools.accumulate(sizes[:-1])))

    def forward(self, number: int) -> int:
        """The most that a forward pass of so many images takes, where nothing is to be learned."""
        fake = self.fake or contextlib.nullcontext()
        with self._apart(self.measured), fake, torch.no_grad(), self.fabric.autocast():
            images = self.images(number)
            with Ledger() as ledger:
                self.loss(self.measured, *images)
        return max(ledger.after, default=0)

    def fits(self, number: int, parts: int, others: int) -> bool:
        """Whether so many images, the first of so many parts, go forward and backward.

        Args:
            others: bytes that will be taken as well.
        """
        with self._apart(self.net):
            try:
                ballast = torch.empty(others, dtype=torch.uint8, device=self.fabric.device)
                for _ in range(min(parts, 2)):  # the second finds the gradients of the first
                    self._pass(self.net, self.images(number))
                del ballast
            except torch.OutOfMemoryError:
                return False
            finally:
                for weight in self.net.parameters():
                    weight.grad = None
        return True

    def _pass(self, net: nn.Module, images: Images) -> None:
        with self.fabric.autocast():
            loss = self.loss(net, *images).mean()
        loss.backward()

    @contextlib.contextmanager
    def _apart(self, net: nn.Module) -> Iterator[None]:
        """What happens to a network in here changes nothing."""
        device = self.fabric.device
        buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _faked(
    net: nn.Module, mode: FakeTensorMode, device: torch.device, *, channels_last: bool
) -> nn.Module:
    """The same network with weights and buffers that have a size and no content."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def fake(tensor: Tensor) -> Tensor:
        memory_format = layout if tensor.dim() == 4 else torch.contiguous_format
        return torch.empty(
            tensor.shape, dtype=tensor.dtype, device=device, memory_format=memory_format
        )

    with mode:
        weights = {id(w): nn.Parameter(fake(w), w.requires_grad) for w in net.parameters()}
        buffers = {id(b): fake(b) for b in net.buffers()}
    return copy.deepcopy(net, weights | buffers)


def _bytes(net: nn.Module) -> int:
    return sum(weight.nbytes for weight in net.parameters())


def expected(
    trial: Trial,
    make_optimizer: Optimizer,
    optimizer: torch.optim.Optimizer,
    *,
    batch: int,
    share: int,
    parts: int | None,
    looked_at: int,
) -> Expected:
    """What training with these images takes on this device.

    Args:
        make_optimizer: makes an optimizer of groups of weights.
        optimizer: the one of the run.
        batch, share: images of a step, on all devices and on this one.
        parts: in how many the share goes through the network; None: not chosen yet.
        looked_at: images that go forward at once in a preview or a measurement.
    """
    fabric, weights = trial.fabric, trial.weights
    state, update = (round(ratio * weights) for ratio in _of_optimizer(make_optimizer))
    held = 2 * weights + sum(_tensors(optimizer))
    kept, gradients = 2 * weights + state, weights
    if trial.shared:
        ranks = fabric.world_size
        held, kept, gradients, update = (n // ranks for n in (held, kept, gradients, update))
        kept += 2 * trial.largest  # of the block that computes, and of the next one, all weights
    elif isinstance(fabric.strategy, DDPStrategy):
        kept += weights  # the buffers in which gradients travel
    pixels = trial.shape[0] * trial.shape[1] * trial.shape[2]
    at_once = 1 if parts is None else share // parts
    # Of fake tensors any number takes the same time.
    numbers = (TWO, THREE) if parts is None or not trial.fake else (at_once,)
    traces = {number: trial.trace(number, at_once) for number in numbers}
    preview = 0
    if looked_at > at_once:  # of fewer, training takes more
        numbers = (looked_at,) if trial.fake else (TWO, THREE)
        (preview,) = extended({n: [trial.forward(n)] for n in numbers}, looked_at)
    return Expected(
        kept=kept,
        held=held,
        gradients=gradients,
        update=update,
        image=pixels * (1 + 4),  # as bytes and as float32
        noise=pixels * 4,  # each device draws that of the whole batch
        batch=batch,
        share=share,
        traces=traces,
        preview=preview,
    )


def _of_optimizer(make: Optimizer) -> tuple[float, float]:
    """Bytes of an optimizer for each byte of weights: its state, and what its step takes."""
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = make([{"params": [weight]}])
    weight.grad = torch.zeros_like(weight)
    eager.take_step(optimizer)  # makes the state
    with Ledger() as ledger:
        eager.take_step(optimizer)
    return sum(_tensors(optimizer)) / weight.nbytes, max(0, ledger.peak) / weight.nbytes


def _tensors(optimizer: torch.optim.Optimizer) -> Iterator[int]:
    """Bytes of each tensor of an optimizer's state, apart from single numbers."""
    for entries in optimizer.state.values():
        for value in entries.values():
            if isinstance(value, Tensor) and value.dim() > 0:
                yield (value.to_local() if fsdp.is_shared(value) else value).nbytes


def free(fabric: Fabric) -> int | None:
    """Bytes that this process can still take; of a machine's memory, each of its processes has an
    equal part. None where nobody says."""
    room = memory.available(fabric.device)
    if room is None or fabric.device.type != "cpu":
        return room
    return room * getattr(fabric.strategy, "num_nodes", 1) // fabric.world_size


def warn(needs: Expected, parts: int, fabric: Fabric) -> None:
    """Say it where the expected memory is not there."""
    room = free(fabric)
    if room is not None and needs.total(parts) - needs.held > room:
        logger.warning(
            "job.batch_size=%d: about %s of memory are needed and %s are free. A smaller "
            "job.batch_size, job.recompute=true or job.accumulate_grad_batches=auto needs less.",
            needs.batch,
            memory.text(needs.total(parts)),
            memory.text(room + needs.held),
        )


def splits(share: int) -> list[int]:
    """In how many equal parts a share of images can be taken, fewest first."""
    return [parts for parts in range(1, share + 1) if share % parts == 0]


def choose(trial: Trial, needs: Expected, *, tries: bool | None = None) -> int:
    """The fewest parts of a step that fit on all devices.

    Args:
        tries: whether to see by going forward and backward; otherwise what is expected is held
            against what is free. None: on GPUs, where they share no network.

    Raises:
        InputError: not even one image at a time fits.
    """
    if tries is None:
        tries = trial.fabric.device.type == "cuda" and not trial.shared
    room = free(trial.fabric)
    fitting = (parts for parts in splits(needs.share) if _fits(trial, needs, parts, room, tries))
    mine = next(fitting, 0)
    chosen = torch.tensor(float(mine or needs.share + 1), device=trial.fabric.device)
    if trial.fabric.world_size > 1:
        chosen = trial.fabric.all_reduce(chosen, reduce_op="max")
    if chosen > needs.share:
        raise InputError(
            f"job.accumulate_grad_batches=auto: not even one image of {trial.shape[-1]} pixels at "
            f"a time fits: that takes about {memory.text(needs.training(needs.share))}, and "
            f"{memory.text((room or 0) + needs.held)} are free. job.recompute=true or a smaller "
            "network needs less."
        )
    return round(chosen.item())


def _fits(trial: Trial, needs: Expected, parts: int, room: int | None, tries: bool) -> bool:
    if tries:
        others = needs.kept - needs.held + needs.share * needs.image + needs.batch * needs.noise
        spare = round(SPARE * needs.training(parts))
        return trial.fits(needs.share // parts, parts, others + spare)
    return room is None or (needs.training(parts) - needs.held) * (1 + SPARE) <= room
