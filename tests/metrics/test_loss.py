"""The held-out loss: closed forms on Gaussian data, fixed draws, errors of means."""

import math

import pytest
import torch
from support.gaussian import best_model, diffusion_of

from ddpm.denoising import training_losses
from ddpm.metrics.base import Material, Pictures
from ddpm.metrics.loss import Draws, Loss, by_t, stratified
from ddpm.randomness import image_noise, mix

STD = 0.15  # of support.gaussian


def gaussian_pictures(n, seed=0):
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Pictures(((0.2 + STD * noise + 1) * 127.5).round().clamp(0, 255).byte())


def measure(network, diffusion, held_out=None, n=512, **more):
    metric = Loss(num_images=n)
    held_out = held_out or gaussian_pictures(n)
    material = Material(
        gaussian_pictures(n, seed=1), held_out, network=network, diffusion=diffusion, **more
    )
    return {score.name: score for score in metric.measure(material)}, metric


def test_draws_are_stratified_and_deterministic():
    draws = Draws(512, 1000)
    assert torch.equal(draws.t, Draws(512, 1000).t)
    assert (draws.t * 512 // 1000 - torch.arange(512)).abs().max() <= 1
    assert draws.t.diff().min() >= 0
    assert not torch.equal(draws.t, Draws(512, 1000, seed=1).t)
    assert Draws(7, 3).t.tolist() == sorted(Draws(7, 3).t.tolist())
    positions = draws.pictures(180)
    assert positions.bincount().unique().tolist() == [2, 3]
    assert len(draws.pictures(10_000).unique()) == 512
    expected = image_noise([mix(0, "loss/noise", 5)], torch.device("cpu"))(torch.empty(1, 1, 4, 4))
    assert torch.equal(draws.noise([3, 5], (1, 4, 4))[1:], expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_loss_of_the_best_network_has_the_closed_form(schedule):
    """E|eps - eps_hat|^2 = a s^2 / (a s^2 + 1 - a) for every t."""
    diffusion = diffusion_of(schedule)
    scores, metric = measure(best_model(diffusion), diffusion)
    a = torch.tensor([diffusion.alphas_cumprod_at(t) for t in range(diffusion.T)])
    exact = a * STD**2 / (a * STD**2 + 1 - a)
    loss = scores["loss"]
    error = (loss.high - loss.low) / 2 / 1.96
    assert loss.value == pytest.approx(exact.mean().item(), abs=3 * error)
    assert error < 0.03 * loss.value
    for row in metric.rows:
        part = exact[int(row["t_first"]) : int(row["t_last"]) + 1]
        assert row["loss"] == pytest.approx(part.mean().item(), rel=0.3)
    assert sum(row["n"] for row in metric.rows) == 512
    assert metric.tables()["loss_by_t"].startswith("t_first,t_last,n,loss,loss_train\n0,62,")
    assert scores["loss_gap"].low < 0 < scores["loss_gap"].high


def test_loss_is_the_mean_training_loss_of_the_draws():
    diffusion, pictures = diffusion_of(), gaussian_pictures(16)
    scores, _ = measure(best_model(diffusion), diffusion, pictures, n=16)
    draws = Draws(16, 1000)
    x_0 = diffusion.codec.encode(pictures.images[draws.pictures(16)])
    eps = draws.noise(range(16), (1, 8, 8))
    expected = training_losses(diffusion, best_model(diffusion), x_0, draws.t, eps)
    assert scores["loss"].value == pytest.approx(expected.mean().item(), rel=1e-6)


def test_loss_is_deterministic_and_has_no_gap_between_equal_sets():
    diffusion, pictures = diffusion_of(), gaussian_pictures(40, seed=1)
    network = best_model(diffusion)
    (one, a), (other, b) = (measure(network, diffusion, pictures, n=40) for _ in range(2))
    assert one == other
    assert a.tables() == b.tables()
    assert one["loss_gap"].value == 0


def test_shared_draws_reduce_the_error_of_a_difference():
    """Between two networks, one of them slightly worse."""
    diffusion = diffusion_of()
    best = best_model(diffusion)

    def worse(x_t, t):
        return best(x_t, t) * 0.97

    values = [
        [measure(n, diffusion, more, n=128, seed=seed)[0]["loss"].value for n in (best, worse)]
        for seed in range(12)
        for more in [gaussian_pictures(128, seed=10 + seed)]
    ]
    values = torch.tensor(values, dtype=torch.float64)
    assert (values[:, 1] > values[:, 0]).all()
    paired = (values[:, 1] - values[:, 0]).std()
    unpaired = math.sqrt(values[:, 0].var() + values[:, 1].var())
    assert paired < unpaired / 8


def test_raw_network_is_scored_and_labels_are_passed():
    diffusion = diffusion_of()
    seen = []

    def network(x_t, t, label=None):
        seen.append(label)
        return torch.zeros_like(x_t)

    pictures = gaussian_pictures(8)
    labelled = Pictures(pictures.images, labels=torch.arange(8))
    best = best_model(diffusion)
    scores, metric = measure(best, diffusion, labelled, n=8, raw_network=network)
    assert list(scores) == ["loss", "loss_raw", "loss_gap"]
    assert scores["loss_raw"].value == pytest.approx(1, abs=0.2)
    assert "loss_raw" in metric.rows[0]
    assert seen == [None]
    material = Material(labelled, labelled, network=network, diffusion=diffusion, labelled=True)
    Loss(num_images=8).measure(material)
    assert sorted(seen[1].tolist()) == list(range(8))


def test_errors_of_stratified_means_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    level = torch.linspace(0, 5, 400, dtype=torch.float64)
    draws = level + torch.randn(500, 400, generator=generator, dtype=torch.float64)
    estimates = [stratified(values) for values in draws]
    found = torch.tensor([estimate.error for estimate in estimates])
    assert found.mean().item() == pytest.approx(1 / math.sqrt(400), rel=0.02)
    inside = [low < 2.5 < high for low, high in (e.interval() for e in estimates)]
    assert 0.92 < sum(inside) / 500 < 0.98
    assert math.isnan(stratified(torch.ones(1)).error)


def test_bins_cover_every_step():
    t = torch.arange(10)
    rows = by_t(t, 10, 4, {"loss": t.float()})
    assert [(row["t_first"], row["t_last"], row["loss"]) for row in rows] == [
        (0, 2, 1),
        (3, 4, 3.5),
        (5, 7, 6),
        (8, 9, 8.5),
    ]
    assert len(by_t(t, 10, 16, {})) == 10
