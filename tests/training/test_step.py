from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.objectives.velocity import Velocity
from ddpm.schedules.rectified import rectified
from ddpm.timesteps.importance import Importance
from ddpm.training.intervals import due, rank_rows, total_steps
from ddpm.training.step import Step, by_time


def test_total_steps_is_the_smaller_limit():
    assert total_steps(100, None, 14.5) == 100
    assert total_steps(None, 2, 14.5) == 29
    assert total_steps(20, 2, 14.5) == 20


def test_intervals_of_steps_and_of_epochs():
    assert [s for s in range(1, 21) if due(s, 6)] == [6, 12, 18]
    assert [s for s in range(1, 31) if due(s, None, 1, 14.04)] == [15, 29]
    assert not any(due(s, None) for s in range(1, 100))
    assert [s for s in range(1, 13) if due(s, 5, 0.5, 8)] == [4, 5, 8, 10, 12]


def test_ranks_take_neighbouring_rows():
    assert [rank_rows(8, 2, rank, 2) for rank in range(2)] == [slice(0, 4), slice(4, 8)]
    with pytest.raises(ValueError, match="8, 12"):
        rank_rows(10, 2, 0, 2)


def test_losses_by_quarters_of_the_timesteps():
    t = torch.tensor([0, 249, 250, 999, 999])
    sums, counts = by_time(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), t, 1000)
    assert (sums.tolist(), counts.tolist()) == ([3, 4, 0, 24], [2, 1, 0, 2])
    assert by_time(torch.ones(3), torch.arange(3), 3)[1].tolist() == [1, 1, 1, 0]  # T below 4


# importance sampling


T = 6


def gradient_of(t, eps, rows=slice(None), accumulate=1):
    """The gradient of one weight w by `Step.backward`, at losses (w - eps)^2 (1 + t), where the
    process draws t with very different probabilities."""
    timesteps = Importance(history=1, uniform_share=0.01)
    diffusion = GaussianDiffusion(rectified(T, 1.0), objective=Velocity(), timesteps=timesteps)
    timesteps.update(torch.arange(T), 1.0 + torch.arange(T) ** 2, torch.tensor(False))
    fabric = Fabric(accelerator="cpu", devices=1)
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))

    def loss(model, x_0, t, eps, label):
        return (model(torch.ones_like(eps)) - eps).square().flatten() * (1 + t)

    step = Step(
        *(fabric, model, optimizer, diffusion, loss),
        *(None, None, rows, False, None, accumulate, None, None),
    )
    _, losses = step.backward(eps[rows], t[rows], eps[rows], None)
    assert torch.equal(losses, ((0.5 - eps) ** 2).flatten()[rows] * (1 + t[rows]))
    return net.weight.grad.item(), timesteps


def test_importance_is_unbiased_with_ranks_and_accumulation():
    """Each share of the batch and each micro-batch weights its own images, so the mean of their
    gradients is that of the whole batch; over all t, by their probabilities, it is that of uniform
    t."""
    t = torch.tensor([5, 5, 4, 0, 5, 3, 1, 5])
    eps = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    whole, timesteps = gradient_of(t, eps)
    weights = timesteps.loss_weights(t)
    assert weights.max() > 5 * weights.min()
    by_hand = (2 * (0.5 - eps).flatten() * (1 + t) * weights).mean().item()
    assert whole == pytest.approx(by_hand, rel=1e-5)
    for accumulate in (2, 4):
        assert gradient_of(t, eps, accumulate=accumulate)[0] == pytest.approx(whole, rel=1e-5)
    shares = [gradient_of(t, eps, rows, 2)[0] for rows in (slice(0, 4), slice(4, 8))]
    assert sum(shares) / 2 == pytest.approx(whole, rel=1e-5)

    one = torch.full((1, 1), 0.2)
    each = [gradient_of(torch.tensor([n]), one)[0] for n in range(T)]
    expected = sum(p * g for p, g in zip(timesteps.probabilities().tolist(), each, strict=True))
    assert expected == pytest.approx(2 * 0.3 * sum(range(1, T + 1)) / T, rel=1e-5)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(4, 8)])
def test_importance_learns_from_the_losses_of_all_ranks_in_the_order_of_the_batch(
    rows, monkeypatch
):
    """Each of two ranks, of which the other one's losses come by the sum over both."""
    t = torch.tensor([5, 5, 4, 0, 5, 3, 1, 5])
    losses = torch.rand(8, generator=torch.Generator().manual_seed(0))
    alone, shared = (Importance(history=2, uniform_share=0.01) for _ in range(2))
    for timesteps in (alone, shared):
        GaussianDiffusion(rectified(T, 1.0), objective=Velocity(), timesteps=timesteps)
    alone.update(t, losses, torch.tensor(False))

    def with_the_other_ranks(fabric, table, how):
        whole = torch.stack([t.float(), losses])
        whole[:, rows] = 0
        assert how == "sum"
        return table + whole

    monkeypatch.setattr("ddpm.training.step.all_reduce", with_the_other_ranks)
    two, batch = SimpleNamespace(world_size=2), SimpleNamespace(batch_size=8)
    diffusion = SimpleNamespace(timesteps=shared)
    step = Step(
        *(two, None, None, diffusion, None),
        *(None, batch, rows, False, None, 1, None, None),
    )
    step.learn(t[rows], losses[rows], torch.tensor(False))
    assert torch.equal(shared.losses, alone.losses)
    assert torch.equal(shared.counts, alone.counts)
