"""Calls a network, or takes the gradients of a training step, by replaying a CUDA graph.

A network launches some thousand kernels at each call. For small images or few of them the GPU waits
for the host, which launches them one by one; a graph launches all of them at once.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm.runner.distributed.fsdp import is_sharded

logger = logging.getLogger(__name__)

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]
MAX_GRAPHS = 4  # of a network: each keeps the memory of a call
MAX_SEEN = 64  # shapes that are remembered to have been called once


class _Graph(NamedTuple):
    """A recorded call: its kernels read `inputs` and write `output`, always the same memory."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphs:
    """Calls a network without gradients; of each combination of shapes, the first call runs as
    usual, the second records a graph, and from then on the graph is replayed.

    The weights may change between calls, but not move. Results are equal to the bit. A network that
    cannot be recorded always runs as usual. Only the graphs of the shapes that were used last are
    kept: without one, a shape begins anew.

    Args:
        network: a function of its inputs and weights alone, without random numbers.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.seen: dict[Shapes, None] = {}  # called once, the last ones last
        self.graphs: dict[Shapes, _Graph] = {}  # the last ones used last
        self.works = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output, a tensor of its own. The context (autocast) is always the same."""
        shapes = tuple((one.shape, one.dtype) for one in inputs)
        if not self.works:
            return self.network(*inputs)
        recorded = self.graphs.pop(shapes, None)
        if recorded is None and shapes not in self.seen:
            self.seen[shapes] = None
            _drop_first(self.seen, MAX_SEEN)
            return self.network(*inputs)
        if recorded is None:
            del self.seen[shapes]
            if len(self.graphs) >= MAX_GRAPHS and inputs[0].is_cuda:
                torch.cuda.synchronize(inputs[0].device)  # one to be dropped may still run
            _drop_first(self.graphs, MAX_GRAPHS - 1)
            try:
                recorded = record(self.network, inputs)
            except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
                self.works = False
                logger.debug("the network runs without CUDA graphs: %s", error)
                return self.network(*inputs)
        self.graphs[shapes] = recorded
        graph, places, output = recorded
        with torch.cuda.device_of(output):
            for place, one in zip(places, inputs, strict=True):
                place.copy_(one)
            graph.replay()
            return output.clone()


def _drop_first(entries: dict[Shapes, Any], most: int) -> None:
    """Remove the first entries, those used longest ago, until at most so many are left."""
    while len(entries) > most:
        del entries[next(iter(entries))]


def can_replay(network: nn.Module, device: torch.device) -> bool:
    """Whether calls of a network may be replayed: on a GPU those of this program's networks, unless
    they are compiled or their weights sharded. Other networks may do more than compute."""
    ours = type(network).__module__.startswith("ddpm.models.")
    return (
        device.type == "cuda"
        and ours
        and network._compiled_call_impl is None
        and not any(map(is_sharded, network.parameters()))
    )


def record(network: nn.Module, inputs: tuple[Tensor, ...]) -> _Graph:
    """A graph of one call.

    Raises:
        RuntimeError: CUDA cannot record it.
    """
    places = tuple(one.clone() for one in inputs)
    graph = torch.cuda.CUDAGraph()
    # Other threads, as NCCL's, may use the GPU meanwhile.
    recording = torch.cuda.graph(graph, capture_error_mode="thread_local")
    with torch.cuda.device_of(places[0]), recording:
        output = network(*places)
    return _Graph(graph, places, output)


Losses = tuple[Tensor, Tensor]  # the mean, a scalar, and the loss of each image, (B,)


class _Gradients(NamedTuple):
    """A recorded pass forward and backward: reads `inputs` and writes all the rest."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    losses: Losses
    gradients: list[Tensor | None]  # of the weights


class GradientGraph:
    """Takes the gradients of a loss; the first calls run as usual, then one is recorded, and from
    then on the graph is replayed.

    Weights and gradients may be changed in place between calls. Results are equal to the bit,
    dropout included: a graph reads the seed of the device's default generator. The graph keeps its
    memory, so nothing is recorded where less than twice that is free.

    Args:
        take_gradients: fills in the gradients of `weights`, which are None before, from inputs of
            always the same shapes; returns the losses.
        weights: what the loss is differentiated by.
    """

    WARM_UP = 3  # calls, the last of which is recorded; before, libraries choose their kernels

    def __init__(
        self, take_gradients: Callable[..., Losses], weights: Sequence[nn.Parameter]
    ) -> None:
        self.take_gradients, self.weights = take_gradients, weights
        self.calls = 0
        self.recorded: _Gradients | None = None

    def __call__(self, *inputs: Tensor | None) -> Losses:
        """Fill in the gradients; the losses, tensors of their own."""
        self.calls += 1
        if self.calls == self.WARM_UP:
            self.recorded = self.record(inputs)
        if self.recorded is None:
            return self.take_gradients(*inputs)
        graph, places, (mean, losses), gradients = self.recorded
        for place, one in zip(places, inputs, strict=True):
            if place is not None and one is not None:
                place.copy_(one)
        graph.replay()
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        return mean.clone(), losses.clone()

    def record(self, inputs: Sequence[Tensor | None]) -> _Gradients | None:
        """Record a call; None if there is too little memory for it or CUDA cannot record it."""
        torch.cuda.empty_cache()
        needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        if torch.cuda.mem_get_info()[0] < 2 * needed:
            return None
        places = [None if one is None else one.clone() for one in inputs]
        random = torch.cuda.get_rng_state()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                losses = self.take_gradients(*places)
            return _Gradients(graph, places, losses, [weight.grad for weight in self.weights])
        except RuntimeError as error:
            logger.debug("the step runs without a CUDA graph: %s", error)
            torch.cuda.set_rng_state(random)
            return None
        finally:
            for weight in self.weights:
                weight.grad = None
