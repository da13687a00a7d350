"""Guidance against closed forms: half of the pixels are N(-0.4, 0.1^2), half are N(0.4, 0.1^2).

The best prediction with a label is that of one component, without a label that of the mixture; the
best classifier is known, too. At scale 1 every guided sampler must return its component.
"""

import pytest
import torch
from support.gaussian import OBJECTIVES, answer, best_x_0, diffusion_of, levels, variance
from torch import nn

from ddpm.denoising import NO_LABEL, Denoiser, predict
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.guidance.autoguidance import Autoguidance
from ddpm.guidance.base import nearest_timestep
from ddpm.guidance.classifier import Classifier
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.guidance.none import Unguided
from ddpm.models.convnet import ConvNet
from ddpm.models.resunet import ResUNet
from ddpm.models.unet import UNet
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun
from ddpm.schedules.learned import LearnedSchedule

MEANS, WIDTH = (-0.4, 0.4), 0.1
SAMPLERS = {
    "ddpm": DDPM(steps=40, variance="auto", spacing="log_snr"),
    "ddim-0": DDIM(steps=40, eta=0.0, spacing="log_snr"),
    "ddim-1": DDIM(steps=40, eta=1.0, spacing="log_snr"),
    "dpm-2": DPMSolver(steps=20, order=2, spacing="log_snr"),
    "heun": Heun(steps=20, spacing="log_snr"),
}


def log_likelihoods(x_t, a):
    """log q(x_t | label), up to a constant, of both labels: (B, 2), float64."""
    x = x_t.double().flatten(1)
    a = a.flatten(1)
    return torch.cat([-((x - a**0.5 * m) ** 2) / (2 * variance(a, WIDTH)) for m in MEANS], dim=1)


class BestClassifier(nn.Module):
    """p(label | x_t), on images of one pixel."""

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = [diffusion]
        self.seen = []

    def forward(self, x_t, t):
        self.seen.append(t)
        return log_likelihoods(x_t, levels(self.diffusion[0], t)).float()


class BestModel:
    """Conditional and unconditional in one, on images of one pixel."""

    def __init__(self, diffusion, objective="eps", learned=False):
        self.diffusion, self.objective, self.learned = diffusion, objective, learned
        self.calls = []

    def __call__(self, x_t, t, label=None):
        self.calls.append((x_t, t, label))
        a = levels(self.diffusion, t)
        each = [best_x_0(x_t, a, mean, WIDTH) for mean in MEANS]
        p = log_likelihoods(x_t, a).softmax(1)
        mixture = sum(p[:, k].reshape(-1, 1, 1, 1) * each[k] for k in (0, 1))
        label = torch.full((len(x_t),), NO_LABEL) if label is None else label
        label = label.reshape(-1, 1, 1, 1)
        x_0 = torch.where(label == 0, each[0], torch.where(label == 1, each[1], mixture))
        output = answer(self.objective, x_t, a, x_0)
        return torch.cat([output, label.float() / 4], dim=1) if self.learned else output


def points(diffusion, n=400):
    """Samples of x_t at random steps, with steps and labels."""
    g = torch.Generator().manual_seed(0)
    t = torch.randint(diffusion.T, (n,), generator=g)
    label = torch.randint(2, (n,), generator=g)
    x_0 = torch.tensor(MEANS)[label] + WIDTH * torch.randn(n, generator=g)
    eps = torch.randn(n, 1, 1, 1, generator=g)
    return diffusion.q_sample(x_0.reshape(-1, 1, 1, 1), t, eps), t, label


def close(found, wanted, t, diffusion, tolerance=1e-5):
    """Equal up to errors of float32, which grow as alpha (for x_0) or sigma (for eps) shrinks."""
    alpha, sigma = diffusion.alpha_sigma_like(found.x_0, t)
    assert ((found.x_0 - wanted.x_0).abs() < tolerance / alpha).all()
    assert ((found.eps - wanted.eps).abs() < tolerance / sigma).all()


def sample(guidance, model, diffusion, sampler, label, n=2500):
    g = torch.Generator().manual_seed(0)
    labels = None if label is None else torch.full((n,), label)
    denoiser = Denoiser(model, diffusion, guidance, labels)
    x_T = torch.randn(n, 1, 1, 1, generator=g)
    *_, x_0 = sampler(denoiser, x_T, lambda x: torch.randn(x.shape, generator=g))
    return x_0


# --- none


def test_unguided_prediction_is_that_of_the_network():
    diffusion = diffusion_of()
    model = BestModel(diffusion)
    x_t, t, label = points(diffusion)
    for given in (None, label):
        found = Unguided()(Denoiser(model, diffusion, label=given), x_t, t)
        assert torch.equal(found.x_0, predict(diffusion, model(x_t, t, given), x_t, t).x_0)
        assert model.calls[0][2] is given
        model.calls.clear()


def test_unconditional_network_is_called_without_labels():
    diffusion = diffusion_of()
    x_t, t, _ = points(diffusion)
    for guidance in (Unguided(), ClassifierFree(scale=3.0)):
        guidance(Denoiser(lambda x, t: x, diffusion), x_t, t)


# --- classifier


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_classifier_guidance_of_scale_1_is_bayes_rule(schedule, objective):
    diffusion = diffusion_of(schedule, objective)
    model, classifier = BestModel(diffusion, objective), BestClassifier(diffusion)
    x_t, t, label = points(diffusion)
    guided = Classifier(classifier, diffusion, 1.0)(Denoiser(model, diffusion, label=label), x_t, t)
    assert model.calls[0][2] is None
    assert torch.equal(classifier.seen[0], t)
    conditional = predict(diffusion, model(x_t, t, label), x_t, t)
    close(guided, conditional, t, diffusion)


def test_classifier_guidance_is_linear_in_its_scale():
    diffusion = diffusion_of()
    model, classifier = BestModel(diffusion), BestClassifier(diffusion)
    x_t, t, label = points(diffusion)
    plain = Unguided()(Denoiser(model, diffusion, label=None), x_t, t)
    at = {
        scale: Classifier(classifier, diffusion, scale)(
            Denoiser(model, diffusion, label=label), x_t, t
        )
        for scale in (0.0, 0.5, 1.0)
    }
    assert torch.equal(at[0.0].eps, plain.eps)
    halfway = (at[0.0].eps + at[1.0].eps) / 2
    _, sigma = diffusion.alpha_sigma_like(x_t, t)
    assert ((at[0.5].eps - halfway).abs() < 1e-5 / sigma).all()
    unlabelled = Classifier(classifier, diffusion, 1.0)(
        Denoiser(model, diffusion, label=None), x_t, t
    )
    assert torch.equal(unlabelled.eps, plain.eps)


@pytest.mark.quick(2)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_classifier_guidance_samples_the_class_with_every_sampler(kind):
    diffusion = diffusion_of("linear", "v")
    guidance = Classifier(BestClassifier(diffusion), diffusion, 1.0)
    x_0 = sample(guidance, BestModel(diffusion, "v"), diffusion, SAMPLERS[kind], 1)
    # As close to it as the same steps with the component itself.
    own = sample(Unguided(), BestModel(diffusion, "v"), diffusion, SAMPLERS[kind], 1)
    torch.testing.assert_close(x_0, own, atol=1e-4, rtol=0)
    assert x_0.mean().item() == pytest.approx(0.4, abs=4 * WIDTH / 50)
    assert x_0.std().item() == pytest.approx(WIDTH, rel=0.15 if kind.startswith("dd") else 0.06)


def test_both_classes_are_sampled_without_a_label():
    diffusion = diffusion_of("linear", "v")
    guidance = Classifier(BestClassifier(diffusion), diffusion, 1.0)
    x_0 = sample(guidance, BestModel(diffusion, "v"), diffusion, SAMPLERS["dpm-2"], None)
    assert (x_0 > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 50)
    assert x_0.abs().mean().item() == pytest.approx(0.4, abs=0.015)


@pytest.mark.parametrize("own", ["cosine", "sigmoid", "learned", "linear to zero"])
def test_classifier_of_another_schedule_gives_the_same_guidance(own):
    diffusion, other = diffusion_of("linear", "v"), diffusion_of(own, "v")
    model = BestModel(diffusion, "v")
    x_t, t, label = points(diffusion)
    guidance = Classifier(BestClassifier(other), other, 1.0)
    found = guidance(Denoiser(model, diffusion, label=label), x_t, t)
    expected = Classifier(BestClassifier(diffusion), diffusion, 1.0)(
        Denoiser(model, diffusion, label=label), x_t, t
    )
    # Steps are integers, so levels differ, which shows in x_0 at low SNR.
    apart = torch.minimum((found.x_0 - expected.x_0).abs(), (found.eps - expected.eps).abs())
    assert apart.max() < 0.02
    # No other step of the classifier has a closer log-SNR.
    wanted = levels(diffusion, t).logit().flatten()
    own_levels = levels(other, torch.arange(1000)).logit().flatten()
    distance = (own_levels[nearest_timestep(guidance.diffusion, diffusion, t)] - wanted).abs()
    assert (distance < (own_levels - wanted[:, None]).abs().amin(1) + 1e-5).all()
    x_0 = sample(guidance, model, diffusion, SAMPLERS["dpm-2"], 0)
    assert x_0.mean().item() == pytest.approx(-0.4, abs=0.015)
    assert x_0.std().item() == pytest.approx(WIDTH, rel=0.07)


@pytest.mark.parametrize(
    "schedule", ["linear", "quadratic", "cosine", "sigmoid", "learned", "cosine to zero"]
)
def test_nearest_timestep_of_the_same_schedule_is_t(schedule):
    diffusion = diffusion_of(schedule, "v")
    t = torch.arange(1000)
    guidance = Classifier(BestClassifier(diffusion), diffusion, 1.0)
    assert torch.equal(nearest_timestep(guidance.diffusion, diffusion, t), t)


def test_nearest_timestep_where_alphas_cumprod_rounds_to_1():
    schedule = LearnedSchedule(T=100, log_snr_start=19.9, log_snr_end=-19.9, hidden=8)
    diffusion = GaussianDiffusion(betas=schedule)
    assert (diffusion.alphas_cumprod[:3] == 1).all()
    t = torch.arange(100)
    guidance = Classifier(BestClassifier(diffusion), diffusion, 1.0)
    assert torch.equal(nearest_timestep(guidance.diffusion, diffusion, t), t)


def test_classifier_has_no_effect_at_pure_noise():
    diffusion = diffusion_of("linear to zero", "v")
    model = BestModel(diffusion, "v")
    x_t, t = torch.randn(8, 1, 1, 1), torch.full((8,), 999)
    guidance = Classifier(BestClassifier(diffusion), diffusion, 5.0)
    found = guidance(Denoiser(model, diffusion, label=torch.ones(8, dtype=torch.int64)), x_t, t)
    plain = Unguided()(Denoiser(model, diffusion, label=None), x_t, t)
    torch.testing.assert_close(found.x_0, plain.x_0)
    torch.testing.assert_close(found.eps, x_t)


def test_classifier_guidance_works_under_no_grad_and_leaves_no_gradients():
    diffusion = diffusion_of()
    model = BestModel(diffusion)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    classifier.forward = lambda x, t: classifier[1](classifier[0](x))
    x_t, t, label = points(diffusion)
    with torch.no_grad():
        found = Classifier(classifier, diffusion, 1.0)(
            Denoiser(model, diffusion, label=label), x_t, t
        )
    assert not found.x_0.requires_grad
    assert not x_t.requires_grad
    assert all(p.grad is None for p in classifier.parameters())


def test_classifier_guidance_keeps_the_learned_variance():
    diffusion = diffusion_of("linear", "eps", learned_variance=True)
    model = BestModel(diffusion, "eps", learned=True)
    x_t, t, label = points(diffusion)
    guidance = Classifier(BestClassifier(diffusion), diffusion, 1.0)
    found = guidance(Denoiser(model, diffusion, label=label), x_t, t)
    assert (found.fraction == (NO_LABEL / 4 + 1) / 2).all()


# --- classifier-free


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scale_0_and_1_run_one_branch(objective):
    diffusion = diffusion_of("linear", objective)
    model = BestModel(diffusion, objective)
    x_t, t, label = points(diffusion)
    for scale, given in ((0.0, None), (1.0, label)):
        found = ClassifierFree(scale=scale)(Denoiser(model, diffusion, label=label), x_t, t)
        ((asked, _, labels),) = model.calls
        assert asked.shape == x_t.shape
        assert labels is given
        assert torch.equal(found.x_0, predict(diffusion, model(x_t, t, given), x_t, t).x_0)
        model.calls.clear()


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_classifier_free_guidance_mixes_eps_for_every_objective(objective, scale):
    diffusion = diffusion_of("linear", objective)
    model = BestModel(diffusion, objective)
    x_t, t, label = points(diffusion)
    found = ClassifierFree(scale=scale)(Denoiser(model, diffusion, label=label), x_t, t)

    ((asked, steps, labels),) = model.calls  # both branches at once
    n = len(x_t)
    assert torch.equal(asked, torch.cat([x_t, x_t]))
    assert torch.equal(steps, torch.cat([t, t]))
    assert sorted(labels.tolist()) == sorted([NO_LABEL] * n + label.tolist())

    eps_model = BestModel(diffusion, "eps")
    eps_u, eps_c = eps_model(x_t, t), eps_model(x_t, t, label)
    alpha, sigma = diffusion.alpha_sigma_like(x_t, t)
    eps = eps_u + scale * (eps_c - eps_u)
    x_0 = ((x_t - sigma * eps) / alpha).clamp(-1, 1)
    assert ((found.x_0 - x_0).abs() < 1e-5 / alpha).all()
    unclipped = x_0.abs() < 0.99
    assert unclipped.float().mean() > 0.2
    assert ((found.eps - eps).abs() < 1e-5 / sigma)[unclipped].all()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_conditional_predictions_sample_the_class_with_every_sampler(kind):
    diffusion = diffusion_of("linear", "eps")
    model = BestModel(diffusion)
    x_0 = sample(ClassifierFree(scale=1.0), model, diffusion, SAMPLERS[kind], 0)
    assert x_0.mean().item() == pytest.approx(-0.4, abs=4 * WIDTH / 50)
    assert x_0.std().item() == pytest.approx(WIDTH, rel=0.15 if kind.startswith("dd") else 0.06)


def test_larger_scales_move_the_mean_outwards_and_reduce_the_variance():
    diffusion = diffusion_of("linear", "eps")
    model = BestModel(diffusion)
    means, stds = [], []
    for scale in (1.0, 2.0, 4.0):
        x_0 = sample(ClassifierFree(scale=scale), model, diffusion, SAMPLERS["dpm-2"], 1, n=2000)
        means.append(x_0.mean().item())
        stds.append(x_0.std().item())
    assert means == sorted(means)
    assert stds == sorted(stds, reverse=True)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_learned_variance_comes_from_the_conditional_branch(scale):
    diffusion = diffusion_of("linear", "eps", learned_variance=True)
    model = BestModel(diffusion, "eps", learned=True)
    x_t, t, label = points(diffusion)
    for rescale in (0.0, 0.7):
        if scale != 1.0 and rescale:
            continue  # a single pixel has no contrast
        found = ClassifierFree(scale=scale, rescale=rescale)(
            Denoiser(model, diffusion, label=label), x_t, t
        )
        asked = label if scale else torch.full_like(label, NO_LABEL)
        expected = (asked.float() / 4 + 1) / 2
        torch.testing.assert_close(found.fraction.flatten(), expected)


def test_rescale_restores_the_standard_deviation_of_the_conditional_output():
    g = torch.Generator().manual_seed(0)
    branches = torch.randn(2, 4, 3, 8, 8, generator=g) * 0.1
    diffusion = diffusion_of("linear", "x_0")

    def model(x_t, t, label=None):
        return branches.flatten(0, 1)

    x_t, t = torch.randn(4, 3, 8, 8, generator=g), torch.tensor([0, 10, 500, 999])
    label = torch.zeros(4, dtype=torch.int64)
    over = (1, 2, 3)
    unconditional, conditional = branches
    mixed = unconditional + 3 * (conditional - unconditional)
    full = mixed * conditional.std(over, keepdim=True) / mixed.std(over, keepdim=True)
    for rescale in (0.0, 0.7, 1.0):
        found = ClassifierFree(scale=3.0, rescale=rescale)(
            Denoiser(model, diffusion, label=label), x_t, t
        ).x_0
        expected = (rescale * full + (1 - rescale) * mixed).clamp(-1, 1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.std(over), conditional.std(over))


def test_half_precision_branches_are_mixed_in_float32():
    diffusion = diffusion_of("linear", "v")
    model = BestModel(diffusion, "v")
    x_t, t, label = points(diffusion)

    def half(x_t, t, label=None):
        return model(x_t, t, label).bfloat16()

    found = ClassifierFree(scale=3.0)(Denoiser(half, diffusion, label=label), x_t, t)
    assert found.x_0.dtype == found.eps.dtype == torch.float32
    u, c = half(x_t, t).float(), half(x_t, t, label).float()
    expected = predict(diffusion, u + 3 * (c - u), x_t, t)
    torch.testing.assert_close(found.x_0, expected.x_0)


# --- the null class of the networks


@pytest.mark.parametrize(
    "network",
    [
        lambda **o: ConvNet(width=8, time_conditioning=True, **o),
        lambda **o: UNet(
            widths=[8, 8], num_blocks=1, attention_resolutions=[], num_heads=1, groups=4, **o
        ),
        lambda **o: ResUNet(
            widths=[8, 8],
            num_res_blocks=1,
            attention_resolutions=[],
            num_heads=1,
            groups=4,
            dropout=0.0,
            **o,
        ),
    ],
    ids=["convnet", "unet", "resunet"],
)
def test_calling_without_a_label_equals_the_null_class(network):
    torch.manual_seed(0)
    model = network(channels=1, out_channels=1, image_size=8, num_classes=3).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([0, 10, 900])
    with torch.no_grad():
        none = model(x_t, t)
        null = model(x_t, t, torch.full((3,), NO_LABEL))
        some = model(x_t, t, torch.tensor([NO_LABEL, 2, NO_LABEL]))
    torch.testing.assert_close(null, none)
    torch.testing.assert_close(some[[0, 2]], none[[0, 2]])
    assert (some[1] - none[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ClassifierFree(scale=-1.0), "guidance.scale=-1.0"),
        (lambda: ClassifierFree(scale=2.0, rescale=1.5), "guidance.rescale=1.5"),
        (lambda: Classifier(nn.Identity(), diffusion_of(), float("nan")), "guidance.scale=nan"),
    ],
)
def test_bad_arguments_are_named(make, key):
    with pytest.raises(InputError, match=key):
        make()


# --- an interval of noise levels


def noise_level(diffusion, t):
    alpha, sigma = diffusion.alpha_sigma_like(torch.zeros(len(t), 1, 1, 1), t)
    return (sigma / alpha).flatten()


@pytest.mark.parametrize("kind", ["classifier_free", "classifier"])
def test_guidance_applies_only_within_its_interval(kind):
    diffusion = diffusion_of("cosine")
    model, x = BestModel(diffusion), points(diffusion)
    x_t, t, label = x

    def guided(interval):
        if kind == "classifier":
            guidance = Classifier(BestClassifier(diffusion), diffusion, 3.0, interval)
        else:
            guidance = ClassifierFree(scale=3.0, interval=interval)
        return guidance(Denoiser(model, diffusion, label=label), x_t, t).x_0

    level = noise_level(diffusion, t)
    inside = (level > 0.3) & (level <= 3.0)
    assert 50 < inside.sum() < 350
    plain = Denoiser(model, diffusion).predict(x_t, t, label if kind != "classifier" else None).x_0
    found, always = guided([0.3, 3.0]), guided(None)
    assert torch.equal(found[inside], always[inside])
    assert torch.equal(found[~inside], plain[~inside])
    assert (always - plain)[~inside].abs().max() > 0
    assert torch.equal(guided([0, 1e9]), always)


def test_only_one_branch_is_evaluated_outside_the_interval():
    diffusion = diffusion_of("cosine")
    model, label = BestModel(diffusion), torch.zeros(4, dtype=torch.int64)
    denoiser = Denoiser(model, diffusion, ClassifierFree(scale=3.0, interval=[0.3, 3.0]), label)
    for t, rows in ((5, 4), (500, 8), (990, 4)):
        model.calls.clear()
        denoiser(torch.zeros(4, 1, 1, 1), t)
        assert [len(x) for x, _, _ in model.calls] == [rows]


@pytest.mark.parametrize("interval", [[1, 1], [-1, 2], [3, 2], [1], [1, 2, 3]])
def test_invalid_intervals_are_refused(interval):
    with pytest.raises(InputError, match=r"guidance.interval"):
        ClassifierFree(scale=2.0, interval=interval)


# --- a weaker network


class Shifted:
    """A network that predicts x_0 + by."""

    def __init__(self, diffusion, by, learned=False):
        self.diffusion, self.by, self.learned, self.seen = diffusion, by, learned, []

    def __call__(self, x_t, t, label=None):
        self.seen.append((t, label))
        a = levels(self.diffusion, t)
        x_0 = best_x_0(x_t, a, MEANS[0], WIDTH) + self.by
        alpha, sigma = a**0.5, (1 - a) ** 0.5
        eps = (x_t.double() - alpha * x_0) / sigma
        output = self.diffusion.objective.target(x_0, eps, alpha, sigma).float()
        return torch.cat([output, torch.full_like(output, 0.5)], 1) if self.learned else output


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 3.0])
def test_autoguidance_extrapolates_from_the_weaker_network(scale, objective):
    """Whatever the two networks predict: x_0 = weak + scale (own - weak)."""
    own_process, weak_process = diffusion_of("linear", "v"), diffusion_of("linear", objective)
    own, weak = Shifted(own_process, 0.0), Shifted(weak_process, 0.1)
    guidance = Autoguidance(weak, weak_process, scale)
    x_t, t, _ = points(own_process)
    found = guidance(Denoiser(own, own_process), x_t, t)
    wanted = best_x_0(x_t, levels(own_process, t), MEANS[0], WIDTH) + (1 - scale) * 0.1
    alpha = levels(own_process, t) ** 0.5
    assert ((found.x_0 - wanted).abs() < 2e-5 / alpha).all()
    assert (weak.seen == []) is (scale == 1)


def test_autoguidance_supports_labels_intervals_and_learned_variance():
    process = diffusion_of("cosine", "v", learned_variance=True)
    own, weak = Shifted(process, 0.0, learned=True), Shifted(process, 0.1, learned=True)
    x_t, t, label = points(process)
    denoiser = Denoiser(own, process, label=label)
    found = Autoguidance(weak, process, 2.0)(denoiser, x_t, t)
    assert (found.fraction == 0.75).all()
    assert weak.seen[-1][1] is own.seen[-1][1] is label
    Autoguidance(weak, process, 2.0, takes_labels=False)(denoiser, x_t, t)
    assert weak.seen[-1][1] is None
    part = Autoguidance(weak, process, 2.0, [0.3, 3.0])(denoiser, x_t, t).x_0
    level = noise_level(process, t)
    inside = (level > 0.3) & (level <= 3.0)
    assert torch.equal(part[inside], found.x_0[inside])
    assert torch.equal(part[~inside], denoiser.predict(x_t, t, label).x_0[~inside])


def test_weaker_network_of_another_schedule_is_evaluated_at_the_nearest_noise_level():
    own_process, weak_process = diffusion_of("cosine", "v"), diffusion_of("linear", "eps")
    own, weak = Shifted(own_process, 0.0), Shifted(weak_process, 0.0)
    x_t, t, _ = points(own_process)
    Autoguidance(weak, weak_process, 2.0)(Denoiser(own, own_process), x_t, t)
    theirs, ours = noise_level(weak_process, weak.seen[0][0]), noise_level(own_process, t)
    reachable = (ours > 0.02) & (ours < 150)
    assert ((theirs / ours).log().abs()[reachable] < 0.25).all()
