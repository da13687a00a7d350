"""Figures: their numbers against closed forms and against the parts that they show."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.gaussian import MEAN, STD, best_x_0, diffusion_of, levels

from ddpm.denoising import Denoiser, predict
from ddpm.diffusion import GaussianDiffusion
from ddpm.figures import (
    attention,
    denoising,
    forward,
    guidance,
    loss,
    reverse,
    schedules,
    timesteps,
    weights,
)
from ddpm.figures.base import Material, NotDrawn, short
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.metrics.loss import Draws
from ddpm.models.dit import DiT
from ddpm.models.layers import SelfAttention
from ddpm.models.unet import UNet
from ddpm.pipeline import Pipeline
from ddpm.samplers.ddim import DDIM
from ddpm.weightings.min_snr import MinSNR


def network():
    torch.manual_seed(0)
    size = {"channels": 1, "out_channels": 1, "image_size": 8, "num_classes": 3}
    model = UNet(
        **size, widths=[4, 8], num_blocks=1, attention_resolutions=[4], num_heads=2, groups=2
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def material():
    diffusion = diffusion_of("cosine", "x_0")
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (32, 1, 8, 8), generator=generator).to(torch.uint8)
    sampler = DDIM(steps=5, eta=0.5)
    shape = {"shape": (1, 8, 8), "guidance": ClassifierFree(scale=1), "num_classes": 3}
    return Material(
        diffusion=diffusion,
        images=images,
        labels=torch.arange(32) % 3,
        sampler=sampler,
        pipeline=Pipeline(network(), diffusion, sampler, **shape),
        names={"schedule": "cosine", "weighting": "uniform", "sampler": "ddim"},
        schedules={"cosine": diffusion, "linear": diffusion_of("linear")},
        weightings={"uniform": diffusion},
        samplers={"ddim": sampler, "too long": DDIM(steps=2000, eta=0)},
        labelled=True,
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine to zero"])
def test_forward_figure_has_mean_and_variance_of_eq_4(schedule, material):
    diffusion = diffusion_of(schedule, "v")
    images = torch.randint(256, (64, 1, 16, 16), generator=torch.Generator().manual_seed(2))
    many = Material(diffusion, images.to(torch.uint8), torch.zeros(64), material.sampler)
    rows = forward.numbers(many, [0, 250, 500, 999])
    x_0, n = images / 127.5 - 1, images.numel()
    alphas_cumprod = (1 - diffusion.betas.double()).cumprod(0)
    for row in rows:
        a = alphas_cumprod[row["t"]].item()
        mean, variance = math.sqrt(a) * x_0.mean().item(), a * x_0.var().item() + 1 - a
        assert row["expected_mean"] == pytest.approx(mean, abs=1e-5)
        assert row["expected_variance"] == pytest.approx(variance, rel=1e-4)
        # five standard errors; those of the variance for a normal sum, and of the covariance
        assert abs(row["mean"] - mean) < 5 * math.sqrt((1 - a) / n)
        error = math.sqrt(2 * (1 - a) ** 2 / n) + 2 * math.sqrt(a * (1 - a) * x_0.var() / n)
        assert abs(row["variance"] - variance) < 5 * error
    assert len({row["variance"] for row in rows}) == 4


def test_forward_animation_runs_from_images_to_noise(material):
    drawing = forward.draw(material)
    assert [row["t"] for row in drawing.rows] == [0, 125, 250, 375, 500, 624, 749, 874, 999]
    assert len(drawing.frames) == forward.FRAMES + 1
    assert not torch.equal(drawing.frames[0], drawing.frames[-1])
    assert "SNR" in drawing.figure.axes[0].get_xticklabels()[1].get_text()


def test_schedule_curves_follow_from_betas(material):
    rows = schedules.draw(material).rows
    assert {row["schedule"] for row in rows} == {"cosine (this run)", "linear"}
    linear = [row for row in rows if row["schedule"] == "linear"]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    a = (1 - betas).cumprod(0)
    expected = {"betas": betas, "alphas_cumprod": a, "log_snr": (a / (1 - a)).log()}
    for key, column in expected.items():
        found = torch.tensor([row[key] for row in linear], dtype=torch.float64)
        torch.testing.assert_close(found, column, rtol=1e-4, atol=1e-7)


def test_weights_figure_shows_min_snr_weights(material):
    process = diffusion_of("linear")
    process.loss_weights = MinSNR(gamma=5.0).weights(process.snr, process.objective)
    one = Material(process, material.images, material.labels, material.sampler)
    rows = weights.draw(one).rows
    snr = torch.tensor([row["log_snr"] for row in rows]).exp()
    found = torch.tensor([row["weight"] for row in rows])
    torch.testing.assert_close(found, snr.clamp(max=5) / snr, rtol=1e-4, atol=0)
    assert next(row["t"] for row in rows if row["weight"] > 0.999) == 130


def test_timesteps_figure_shows_the_steps_of_the_sampler(material):
    rows = timesteps.draw(material).rows
    assert {row["sampler"] for row in rows} == {"ddim (this run)"}  # 2000 steps do not fit
    assert [row["t"] for row in rows] == [
        t for t, _ in material.sampler.timesteps(material.diffusion)
    ]


def test_error_of_the_best_denoiser_is_the_posterior_variance():
    diffusion = diffusion_of("cosine", "x_0")

    def model(x_t, t):
        return best_x_0(x_t, levels(diffusion, t)).float()

    generator = torch.Generator().manual_seed(3)
    x_0 = MEAN + STD * torch.randn(64, 1, 16, 16, generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    rows = denoising.errors(Denoiser(model, diffusion), x_0, eps)
    assert len(rows) == denoising.LEVELS
    for row in rows:
        a = diffusion.alphas_cumprod_at(row["t"])
        variance = STD**2 * (1 - a) / (a * STD**2 + 1 - a)
        assert row["x_0_mse"] == pytest.approx(variance, rel=5 * math.sqrt(2 / x_0.numel()))
        assert row["eps_mse"] == pytest.approx(row["x_0_mse"] * a / (1 - a), rel=1e-2, abs=1e-9)


def test_loss_by_t_averages_to_the_mean_loss(material):
    rows, diffusion = loss.draw(material).rows, material.diffusion
    draws, images = Draws(64, diffusion.T, 0), material.images
    read = lambda p: (images[p], material.labels[p])  # noqa: E731
    losses = draws.losses(
        material.pipeline.model, diffusion, read, torch.arange(64), draws.pictures(32)
    )
    mean = sum(row["n"] * row["loss"] for row in rows) / sum(row["n"] for row in rows)
    assert mean == pytest.approx(losses.mean().item(), rel=1e-5)


def test_reverse_figure_records_each_sampler_step(material):
    pipeline = material.pipeline
    calls, x_0 = reverse.record(pipeline, [4], [1])
    assert [t for t, _, _ in calls] == [
        t for t, _ in pipeline.sampler.timesteps(pipeline.diffusion)
    ]
    assert torch.equal(pipeline.diffusion.codec.decode(x_0), pipeline.sample_seeds([4], [1]))
    for t, x_t, prediction in calls:  # Eq. 15
        alpha, sigma = pipeline.diffusion.alpha_sigma(t)
        torch.testing.assert_close(
            alpha * prediction.x_0 + sigma * prediction.eps, x_t, rtol=1e-4, atol=1e-4
        )
    assert len(reverse.draw(material).rows) == 5


def test_guidance_figure_shows_no_change_at_scale_1(material):
    rows = guidance.draw(material).rows
    assert [row["scale"] for row in rows if row["label"] == 0] == list(guidance.SCALES)
    assert {row["change_from_scale_1"] for row in rows if row["scale"] == 1} == {0}
    assert all(row["change_from_scale_1"] > 0 for row in rows if row["scale"] == 4)
    assert material.pipeline.guidance.scale == 1  # that of the run is not changed


def test_attention_weights_reproduce_the_layer_output(material):
    torch.manual_seed(0)
    layer = SelfAttention(8, num_heads=2, groups=2, eps=1e-5)
    torch.nn.init.normal_(layer.to_out[0].weight)
    x = torch.randn(2, 8, 3, 3)
    pixels = layer.group_norm(x).flatten(2).mT
    q, k = (to(pixels).unflatten(2, (2, 4)).transpose(1, 2) for to in (layer.to_q, layer.to_k))
    found = attention.attention_weights(q, k)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, 9))
    values = layer.to_v(layer.group_norm(x).flatten(2).mT).unflatten(2, (2, 4)).transpose(1, 2)
    y = layer.to_out((found @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(x + y.mT.unflatten(2, (3, 3)), layer(x))
    rows = attention.draw(material).rows
    of_one = [r for r in rows if (r["t"], r["from_y"], r["from_x"]) == (100, 1, 1)]
    assert sum(row["weight"] for row in of_one) == pytest.approx(1, abs=1e-5)


def test_transformer_attention_comes_from_the_middle_block():
    torch.manual_seed(0)
    size = {"channels": 1, "image_size": (8, 12), "size": None, "depth": 3, "width": 16}
    model = DiT(**size, patch_size=4, num_heads=2)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    given = {}
    model.blocks[1].to_qkv.register_forward_pre_hook(lambda _, x: given.update(x=x[0]))
    call = partial(model, torch.randn(1, 1, 8, 12), torch.tensor([5]))
    with torch.no_grad():
        which, heads, found = attention.attended(model, call, (1, 1, 8, 12))
        assert (which, heads, found.shape) == ("block 2 of 3", 2, (2, 3, 2, 3))
        # With the identity as values, attention gives its own weights.
        q, k, _ = model.blocks[1].to_qkv(given["x"]).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        values = torch.eye(6).expand(1, 2, 6, 6)
        expected = F.scaled_dot_product_attention(q, k, values).mean(1)
    torch.testing.assert_close(found.reshape(1, 6, 6), expected)


@pytest.mark.parametrize(("channels", "high"), [(1, 65535), (6, 1)])
def test_images_of_other_depths_and_channels_are_shown_as_8_bit_grey(channels, high, material):
    diffusion = GaussianDiffusion(diffusion_of("cosine").betas, value_range=[0, high])
    dtype = diffusion.codec.dtype
    images = (torch.rand(4, channels, 4, 6) * high).to(dtype)
    images[0, 0] = high
    one = Material(diffusion, images, torch.zeros(4), material.sampler)
    shown = one.shown(one.x_0(4))
    assert (shown.dtype, tuple(shown.shape)) == (torch.uint8, (4, 1, 4, 6))
    assert shown[0].min() == 255
    assert len(forward.numbers(one, [0, 500])) == 2


def test_equal_weightings_share_one_legend_entry():
    curves = {"a": torch.ones(3), "b": torch.arange(3.0), "c (this run)": torch.ones(3)}
    assert weights.legend(curves) == {"c (this run)": "c (this run) = a", "b": "b"}


def test_figures_that_need_a_checkpoint_are_skipped_with_a_reason(material):
    bare = Material(material.diffusion, material.images, material.labels, material.sampler)
    for module in (denoising, loss, reverse, guidance, attention):
        with pytest.raises(NotDrawn, match="checkpoint"):
            module.draw(bare)


def test_recorded_predictions_equal_those_of_the_network(material):
    (t, x_t, found), *_ = reverse.record(material.pipeline, [0], [2])[0]
    output = material.pipeline.model(x_t, torch.tensor([t]), torch.tensor([2]))
    expected = predict(material.diffusion, output, x_t, torch.tensor([t]))
    torch.testing.assert_close(found.x_0, expected.x_0)


@pytest.mark.parametrize(
    ("value", "text"), [(23716, "2e4"), (2.4e-9, "2e-9"), (0.971, "0.97"), (0, "0"), (250, "250")]
)
def test_numbers_in_titles_are_abbreviated(value, text):
    assert short(value) == text
