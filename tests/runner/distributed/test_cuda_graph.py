"""When calls are recorded and replayed. A stand-in for the graph computes on the CPU;
benchmarks/gpu_check.py compares real graphs with usual calls, to the bit."""

import pytest
import torch
from torch import nn

from ddpm.models.convnet import ConvNet
from ddpm.runner.distributed import cuda_graph
from ddpm.runner.distributed.cuda_graph import CudaGraphs, GradientGraph, can_replay

CUDA = torch.device("cuda")


class Double(nn.Module):
    """Counts its calls, of which a replay is none."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        return 2 * x + t[:, None]


class Replay:
    """Computes the output anew from the recorded inputs, into the same memory."""

    def __init__(self, places, output):
        self.places, self.output, self.times = places, output, 0

    def replay(self):
        self.times += 1
        x, t = self.places
        self.output.copy_(2 * x + t[:, None])


@pytest.fixture
def recorded(monkeypatch):
    def record(network, inputs):
        places = tuple(one.clone() for one in inputs)
        output = network(*places)
        return cuda_graph._Graph(Replay(places, output), places, output)

    monkeypatch.setattr(cuda_graph, "record", record)


def call(graphs, rows, value):
    x, t = torch.full((rows, 3), value), torch.arange(rows)
    output = graphs(x, t)
    assert torch.equal(output, 2 * x + t[:, None])
    return output


def test_each_shape_is_recorded_at_its_second_call(recorded):
    graphs = CudaGraphs(Double())
    first = [call(graphs, 2, value) for value in (1.0, 2.0, 3.0)]
    assert graphs.network.calls == 2  # one as usual, one recorded
    assert first[1][0, 0] == 4  # not overwritten by the third call
    call(graphs, 5, 1.0)
    assert len(graphs.graphs) == 1
    call(graphs, 5, 4.0)
    call(graphs, 2, 5.0)
    assert graphs.network.calls == 4
    assert [graph.graph.times for graph in graphs.graphs.values()] == [1, 3]


def test_graphs_of_the_last_shapes_are_kept(recorded, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 2)
    monkeypatch.setattr(cuda_graph, "MAX_SEEN", 3)
    graphs = CudaGraphs(Double())
    network = graphs.network

    def kept():
        return [shapes[0][0][0] for shapes in graphs.graphs]

    for rows in (1, 1, 2, 2, 1, 3, 3):
        call(graphs, rows, 1.0)
    assert kept() == [1, 3]  # that of 2 was used longest ago
    assert network.calls == 6
    call(graphs, 1, 2.0)
    assert (kept(), network.calls) == ([3, 1], 6)
    call(graphs, 2, 3.0)  # as usual, as at first
    assert (kept(), network.calls) == ([3, 1], 7)
    call(graphs, 2, 4.0)
    assert (kept(), network.calls) == ([1, 2], 8)
    for rows in range(4, 9):
        call(graphs, rows, 1.0)
    assert len(graphs.seen) == 3
    call(graphs, 2, 5.0)
    assert (kept(), network.calls) == ([1, 2], 13)


def test_calls_that_cannot_be_recorded_run_normally(monkeypatch):
    def record(network, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "record", record)
    graphs = CudaGraphs(Double())
    for value in (1.0, 2.0, 3.0):
        call(graphs, 2, value)
    assert graphs.network.calls == 3
    assert not graphs.works


def test_only_known_uncompiled_unsharded_networks_on_gpus_are_replayed(monkeypatch):
    network = ConvNet(image_size=8, channels=1, width=8)
    assert can_replay(network, CUDA)
    assert not can_replay(network, torch.device("cpu"))
    assert not can_replay(Double(), CUDA)  # a user's own network
    monkeypatch.setattr(cuda_graph, "is_sharded", lambda weight: True)
    assert not can_replay(network, CUDA)
    monkeypatch.undo()
    network.compile()
    assert not can_replay(network, CUDA)


class RecordedGradients(GradientGraph):
    """Records without a GPU."""

    def record(self, inputs):
        places = [None if one is None else one.clone() for one in inputs]
        losses = self.take_gradients(*places)
        return cuda_graph._Gradients(self, places, losses, [weight.grad for weight in self.weights])

    def replay(self):
        (x, _), (gradient,) = self.recorded.inputs, self.recorded.gradients
        gradient.copy_(x.mean(0))
        self.recorded.losses[0].copy_((x @ self.weights[0].detach()).mean())


def test_gradients_are_recorded_after_some_steps_and_given_to_the_weights():
    weight = nn.Parameter(torch.ones(2))
    calls = []

    def take_gradients(x, label):
        calls.append(label)
        losses = x @ weight
        losses.mean().backward()
        return losses.mean().detach(), losses.detach()

    graph = RecordedGradients(take_gradients, [weight])
    means = []
    for n in range(6):
        x = torch.full((4, 2), float(n))
        mean, _ = graph(x, None)
        assert torch.equal(weight.grad, x.mean(0))
        means.append(mean)
        with torch.no_grad():
            weight -= 0.1 * weight.grad
        weight.grad = None
    assert len(calls) == GradientGraph.WARM_UP
    assert [mean.item() for mean in means[:2]] == [0.0, 2.0]
    assert means[4] != means[5]  # each its own tensor
