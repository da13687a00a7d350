"""Measures the memory of a network by a forward and backward pass."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm.models.cpu_kernels import chosen_for
from ddpm.runner.distributed import fsdp
from ddpm.runner.distributed.fabric import mesh_of
from ddpm.training import memory
from ddpm.training.memory import Ledger
from ddpm.training.recompute import recompute

Images = tuple[Tensor, Tensor, Tensor, Tensor | None]  # x_0, t, eps, label
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]

MEASURED = (2, 3)  # numbers of images; a single one takes other code paths
SMALL = 5e9  # weights x pixels, up to which real tensors take less time than fake ones


class Trace(NamedTuple):
    """Bytes after each operation of a pass: of live tensors, and, apart from them, of finished
    gradients."""

    live: list[int]
    gradients: list[int]

    @property
    def peak(self) -> int:
        return max(self.live, default=0)


class MemoryProbe:
    """Runs a network forward and backward to measure its memory. Weights, buffers, gradients and
    random generators are left as they were.

    Args:
        net: the network, not yet sharded.
        loss: (model, x_0, t, eps, label) -> the loss of each image, (B,).
        shape: (C, H, W) of an image.
        labelled: whether the network is given labels.
        recomputes: whether its blocks are to be recomputed in the backward pass.
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
        self.sharded = mesh_of(fabric) is not None
        self.weight_bytes = _bytes(net)
        self.largest_block = max(map(_bytes, fsdp.blocks(net)), default=0)
        num_weights = sum(weight.numel() for weight in net.parameters())
        self.measured, self.fake = net, None
        if self.sharded or num_weights * shape[1] * shape[2] > SMALL:
            _start_autograd()
            self.fake = FakeTensorMode(allow_non_fake_inputs=True)
            self.measured = _faked(net, self.fake, fabric.device, channels_last=not self.sharded)
            if recomputes:
                recompute(self.measured)

    def images(self, number: int) -> Images:
        """Inputs of the loss for `number` images; their values do not matter."""
        device = self.fabric.device
        x_0 = torch.zeros(number, *self.shape, device=device)
        t = torch.zeros(number, dtype=torch.int64, device=device)
        return x_0, t, torch.zeros_like(x_0), torch.zeros_like(t) if self.labelled else None

    def trace(self, number: int, images: int) -> Trace:
        """Memory of a forward and backward pass of `number` images, operation by operation.

        Args:
            images: the number of images that the trace will be extrapolated to.
        """
        finished: list[tuple[int, int]] = []  # (operations before a gradient was finished, bytes)

        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            finished.append((len(ledger.after), weight.grad.nbytes))
            weight.grad = None

        weights = [weight for weight in self.measured.parameters() if weight.requires_grad]
        hooks = [weight.register_post_accumulate_grad_hook(take) for weight in weights]
        try:
            with self._restored(self.measured), self.fake or contextlib.nullcontext():
                inputs = self.images(number)
                weigh = memory.with_loss(self.fabric.device, images / number)
                with chosen_for(max(images, *MEASURED)), Ledger(weigh) as ledger:
                    self._pass(self.measured, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        sizes = [0] * (len(ledger.after) + 1)
        for operation, size in finished:
            sizes[operation] += size
        return Trace(ledger.after, list(itertools.accumulate(sizes[:-1])))

    def forward(self, number: int, images: int) -> int:
        """Peak memory of a forward pass of `number` images without gradients.

        Args:
            images: as in `trace`.
        """
        fake = self.fake or contextlib.nullcontext()
        with self._restored(self.measured), fake, torch.no_grad(), self.fabric.autocast():
            inputs = self.images(number)
            with chosen_for(max(images, *MEASURED)), Ledger() as ledger:
                self.loss(self.measured, *inputs)
        return ledger.peak

    def fits(self, number: int, accumulate: int, others: int) -> bool:
        """Whether `number` images, the first of `accumulate` micro-batches, fit on the device.

        Args:
            others: bytes that will be used as well.
        """
        with self._restored(self.net):
            try:
                ballast = torch.empty(others, dtype=torch.uint8, device=self.fabric.device)
                for _ in range(min(accumulate, 2)):  # the second adds to existing gradients
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
    def _restored(self, net: nn.Module) -> Iterator[None]:
        """Restores buffers and random generators at the end."""
        device = self.fabric.device
        buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            for buffer, saved in buffers:
                buffer.copy_(saved)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _start_autograd() -> None:
    """Run a backward pass, so that PyTorch starts its backward threads, one for each GPU, now.

    In a `FakeTensorMode` a machine without a GPU appears to have eight. The first backward pass
    after it would start a thread for each, and forked processes could not run a backward pass.
    """
    torch.zeros(1, requires_grad=True).sum().backward()


def _faked(
    net: nn.Module, mode: FakeTensorMode, device: torch.device, *, channels_last: bool
) -> nn.Module:
    """A copy of the network whose weights and buffers have a size and no content."""
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
