"""Interpolation: its two ends, symmetry, noise, and the job."""

import math

import pytest
import torch
from PIL import Image
from support.base import TINY
from support.gaussian import Known, best_denoise, diffusion_of

from ddpm.data.digits import Digits
from ddpm.denoising import Prediction
from ddpm.editing.interpolation import interpolate
from ddpm.images import load_png, save_png
from ddpm.randomness import image_noise
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun

PAIR = torch.tensor([[0.9, -0.4], [-0.8, 0.3]]).reshape(2, 1, 1, 2)
SAMPLERS = [
    DDPM(steps=20, variance="auto"),
    DDIM(steps=20, eta=1.0),
    Heun(steps=20),
    DPMSolver(steps=20, order=2),
]


def between(sampler, pair=PAIR, t=500, num_mixtures=5, seed=0, denoise=None):
    diffusion = diffusion_of("linear")
    randn_like = image_noise([seed], torch.device("cpu"))
    denoiser = Known(diffusion, denoise) if denoise else best_denoise(diffusion)
    *_, x_0 = interpolate(denoiser, sampler, pair, t, num_mixtures, randn_like)
    return x_0.float()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_ends_equal_the_two_images_noised_and_denoised(sampler):
    diffusion = diffusion_of("linear")
    mixed = between(sampler)
    for end, image in ((0, PAIR[:1]), (-1, PAIR[1:])):
        randn_like = image_noise([0], torch.device("cpu"))
        x_t = diffusion.q_sample(image, torch.tensor([500]), randn_like(image))
        *_, x_0 = sampler(best_denoise(diffusion), x_t, randn_like, start=500)
        assert torch.equal(mixed[end], x_0[0].float())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_interpolation_is_symmetric(sampler):
    there, back = between(sampler), between(sampler, PAIR.flip(0))
    torch.testing.assert_close(there, back.flip(0), atol=1e-6, rtol=0)


def test_mixtures_share_one_noise():
    """A mixture is q_sample of the mixed pictures with one eps: no noise is averaged out."""
    diffusion, seen = diffusion_of("linear"), []

    def denoise(x_t, t):
        seen.append((t, x_t.clone()))
        return Prediction(x_t, torch.zeros_like(x_t))

    between(DDIM(steps=20, eta=0.0), t=321, num_mixtures=3, denoise=denoise)
    t, x_t = seen[0]
    assert t == 321
    eps = image_noise([0], torch.device("cpu"))(PAIR[:1])
    mixed = torch.stack([PAIR[0], PAIR.mean(0), PAIR[1]])
    a = diffusion.alphas_cumprod_at(321)
    torch.testing.assert_close(x_t, math.sqrt(a) * mixed + math.sqrt(1 - a) * eps)
    assert [t for t, _ in seen] == sorted({t for t, _ in seen}, reverse=True)


def test_interpolation_between_equal_images_is_constant():
    for sampler in SAMPLERS:
        images = between(sampler, PAIR[:1].repeat(2, 1, 1, 1))
        torch.testing.assert_close(images, images[:1].expand_as(images), atol=1e-5, rtol=0)


def test_little_noise_keeps_the_images_and_seeds_differ():
    sampler = DDIM(steps=None, eta=0.0)
    diffusion = diffusion_of("linear")

    def knows(x_t, t):  # predicts x_t without its noise
        x_0 = x_t / math.sqrt(diffusion.alphas_cumprod_at(t))
        return Prediction(x_0, torch.zeros_like(x_t))

    near = between(sampler, t=0, denoise=knows)
    assert (near[[0, -1]] - PAIR).abs().max() < 0.05
    one, other = between(SAMPLERS[0], seed=1), between(SAMPLERS[0], seed=2)
    assert not torch.allclose(one, other)


# the command line

INTERPOLATE = ["job=interpolate", "hardware=cpu", "tracker=local", "checkpoint=run"]
FAST = ["job.num_samples=2", "job.num_mixtures=3"]


def of_files(folder, names):
    return torch.stack([load_png(folder / "samples" / name) for name in names])


def tiles(strip, rows, columns, size=16):
    scale = strip.shape[-1] // (columns * (size + 1) + 1)
    small = strip[:, ::scale, ::scale]
    assert small.shape[1:] == (rows * (size + 1) + 1, columns * (size + 1) + 1)
    starts = [[1 + (size + 1) * i for i in range(n)] for n in (rows, columns)]
    return [[small[:, y : y + size, x : x + size] for x in starts[1]] for y in starts[0]]


def test_job_writes_samples_and_strip_between_two_digits(run, tiny, data_dir, tmp_path):
    status, out, err = run(*INTERPOLATE, *FAST, "job.indices=[5,9]", "output_dir=s")
    assert status == 0, err
    assert out.splitlines()[-1].split() == ["done", "s/strip.png"]
    assert "t=500 of T=1000" in out
    names = [[f"{seed:06d}-{i}.png" for i in range(3)] for seed in range(2)]
    assert sorted(names[0] + names[1]) == sorted(f.name for f in (tmp_path / "s/samples").iterdir())
    keys = {"split": "train", "channels": 1, "image_size": 16, "num_classes": 10}
    keys |= {"resize_mode": "resize", "background": 0, "flip": False}
    pair = Digits(data_dir=data_dir, **keys).__getitems__([5, 9])[0]
    rows = tiles(load_png(tmp_path / "s" / "strip.png"), 2, 5)
    for row, files in zip(rows, names, strict=True):
        assert torch.equal(row[0], pair[0])
        assert torch.equal(torch.stack(row[1:4]), of_files(tmp_path / "s", files))
        assert torch.equal(row[4], pair[1])
    assert not torch.equal(rows[0][1], rows[1][1])


def test_image_files_of_any_size_and_format_are_accepted(run, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (50, 30), (255, 255, 255)).save(tmp_path / "in" / "a.webp")
    Image.new("L", (9, 40), 40).save(tmp_path / "in" / "b.bmp")
    given = [
        "job.images=[in/a.webp,in/b.bmp]",
        "job.t=3",
        "job.first_seed=7",
        "job.num_mixtures=11",
    ]
    status, _, err = run(*INTERPOLATE, *FAST, *given, "job.num_samples=1", "output_dir=s")
    assert status == 0, err
    images = of_files(tmp_path / "s", [f"000007-{i:02d}.png" for i in range(11)]).float()
    assert images.shape == (11, 1, 16, 16)
    row = tiles(load_png(tmp_path / "s" / "strip.png"), 1, 13)[0]
    assert (row[0] == 255).all()
    assert (row[-1] == 40).all()


def test_row_depends_only_on_its_seed(run, tiny, tmp_path):
    assert run(*INTERPOLATE, *FAST, "sampler.eta=1", "output_dir=two")[0] == 0
    given = ["job.first_seed=1", "job.num_samples=1", "sampler.eta=1"]
    assert run(*INTERPOLATE, *FAST, *given, "output_dir=one")[0] == 0
    names = [f"000001-{i}.png" for i in range(3)]
    one, two = (of_files(tmp_path / folder, names) for folder in ("one", "two"))
    assert torch.equal(one, two)


@pytest.mark.slow
def test_labels_are_used_and_checked(run, tmp_path):
    assert run(*TINY, "data.conditional=true", "output_dir=run")[0] == 0
    given = ["job.labels=3", "guidance=classifier_free"]
    status, _, err = run(*INTERPOLATE, *FAST, *given, "output_dir=s")
    assert status == 0, err
    status, _, err = run(*INTERPOLATE, *FAST, "output_dir=none")
    assert status == 0, err
    status, _, err = run(*INTERPOLATE, *FAST, "job.labels=10", "output_dir=more")
    assert status == 2
    assert "job.labels=10: 10 is not one of 0 to 9" in err


MISTAKES = [
    ("job.images=[a.png]", ["job.images", "two picture files"]),
    ("job.images=[a.png,a.png,a.png]", ["job.images", "two picture files"]),
    ("job.images=a.png", ["job.images", "two picture files"]),
    ("job.images=[a.png,no.png]", ["job.images", "no.png", "No such file"]),
    ("job.images=[a.png,a.txt]", ["job.images", "a.txt", "not a PNG, JPEG, WebP or BMP"]),
    ("job.indices=[0]", ["job.indices", "two whole numbers"]),
    ("job.indices=[0,-1]", ["job.indices", "two whole numbers"]),
    ("job.indices=[0,1617]", ["job.indices=[0, 1617]", "1617 images", "1616"]),
    ("job.indices=null", ["job.indices"]),
    ("job.t=1000", ["job.t=1000", "0 to 999"]),
    ("job.t=-1", ["job.t=-1"]),
    ("job.num_mixtures=1", ["job.num_mixtures=1", "from 2"]),
    ("job.num_samples=0", ["job.num_samples=0"]),
    ("job.labels=3", ["job.labels=3", "without labels"]),
    ("job.labels=-1", ["job.labels=-1"]),
]


@pytest.mark.slow
def test_mistakes_are_reported_before_a_folder_is_made(run, tiny, tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    save_png(torch.zeros(1, 16, 16, dtype=torch.uint8), tmp_path / "a.png")
    for words, expected in MISTAKES:
        status, _, err = run(*INTERPOLATE, *words.split(), "output_dir=s")
        assert status == 2, (words, err)
        assert all(part in err for part in expected), (words, err)
        assert 1 <= len(err.strip().splitlines()) <= 5, words
        assert "Traceback" not in err, words
        assert not (tmp_path / "s").exists(), words
