"""RePaint against its paper, against closed forms, and as a run."""

import json
import math

import pytest
import torch
from PIL import Image
from support.base import TINY
from support.gaussian import MEAN, STD, Known, best_denoise, diffusion_of

from ddpm.data.decode import upright_size
from ddpm.data.digits import Digits
from ddpm.denoising import Prediction
from ddpm.editing.repaint import area, forward, inpaint, path
from ddpm.images import Pixels, load_png, save_png
from ddpm.pipeline import without_gradients
from ddpm.randomness import image_noise
from ddpm.runner.config.rules import AREAS
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun

# the path with its jumps


def schedule_of_the_paper(t_T, jump_len, jump_n_sample):
    """The pseudo-code of the appendix of RePaint, word for word."""
    jumps = {}
    for j in range(0, t_T - jump_len, jump_len):
        jumps[j] = jump_n_sample - 1
    t = t_T
    ts = []
    while t >= 1:
        t = t - 1
        ts.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] = jumps[t] - 1
            for _ in range(jump_len):
                t = t + 1
                ts.append(t)
    ts.append(-1)
    return ts


def small_steps(moves):
    """The levels visited if a jump is made of single steps up."""
    found = [moves[0][0]]
    for level, goal in moves:
        assert level == found[-1], "every move begins where the last one ended"
        step = 1 if goal > level else -1
        found += range(level + step, goal + step, step)
    return found


@pytest.mark.parametrize(
    ("levels", "resamples", "jump_length"),
    [(250, 10, 10), (50, 10, 10), (7, 3, 2), (8, 3, 2), (5, 4, 1), (3, 1, 1), (1, 5, 1), (4, 3, 9)],
)
def test_path_equals_the_pseudo_code_of_the_paper(levels, resamples, jump_length):
    moves = path(levels, resamples, jump_length)
    assert small_steps(moves) == schedule_of_the_paper(levels, jump_length, resamples)
    up = [goal - level for level, goal in moves if goal > level]
    turns = len(range(0, levels - jump_length, jump_length))
    assert up == [jump_length] * (turns * (resamples - 1))
    assert len(moves) - len(up) == levels + len(up) * jump_length


def test_path_of_a_small_example():
    down, again = [(4, 3), (3, 2)], [(2, 4), (4, 3), (3, 2)]
    last = [(2, 1), (1, 0)]
    assert path(5, 2, 2) == [*down, *again, *last, (0, 2), *last, (0, -1)]


def test_path_has_the_length_of_the_paper():
    assert sum(goal < level for level, goal in path(250, 10, 10)) == 250 + 24 * 9 * 10


def test_a_jump_equals_its_steps_of_the_forward_process():
    diffusion = diffusion_of("linear")
    g = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, generator=g)

    x_s = torch.full((200_000,), 0.7)
    x_t = forward(diffusion, x_s, 300, 420, noise)
    betas = diffusion.betas.double()[301:421]
    kept = (1 - betas).prod().item()
    assert x_t.mean().item() == pytest.approx(0.7 * math.sqrt(kept), abs=0.01)
    assert x_t.var().item() == pytest.approx(1 - kept, rel=0.02)
    slow = torch.full((200_000,), 0.7)
    for t in range(300, 420):
        slow = forward(diffusion, slow, t, t + 1, noise)
    assert slow.mean().item() == pytest.approx(x_t.mean().item(), abs=0.01)
    assert slow.var().item() == pytest.approx(x_t.var().item(), rel=0.02)


def test_jump_to_pure_noise_keeps_no_signal():
    diffusion = diffusion_of("cosine to zero", "v")
    assert torch.equal(
        forward(diffusion, torch.ones(3), 900, 999, torch.zeros_like), torch.zeros(3)
    )


class RecordingDDIM(DDIM):
    """Records its steps."""

    def p_sample(self, denoiser, x_t, t, s, randn):
        self.asked.append((t, s))
        return super().p_sample(denoiser, x_t, t, s, randn)


def test_the_sampler_takes_the_steps_of_the_path():
    diffusion = diffusion_of("linear")
    sampler = RecordingDDIM(steps=7, eta=1.0)
    sampler.asked = []
    states = list(run(sampler, diffusion, resamples=3, jump_length=2))
    steps = [*(t for t, _ in reversed(sampler.timesteps(diffusion))), -1]
    moves = path(7, 3, 2)
    assert len(states) == len(moves)
    assert sampler.asked == [(steps[a], steps[b]) for a, b in moves if b < a]
    assert len(sampler.asked) == 7 + 3 * 2 * 2  # jumps from levels 0, 2, 4, each twice, of 2


# known and painted pixels

IMAGE = torch.tensor([0.35, -0.9, 0.1, 0.6]).reshape(1, 2, 2)
MASK = torch.tensor([[True, False], [False, True]])[None]
SAMPLERS = [
    DDPM(steps=20, variance="auto"),
    DDPM(steps=20, variance="fixed_small", spacing="trailing"),
    DDIM(steps=20, eta=0.0),
    Heun(steps=20, spacing="log_snr"),
    DPMSolver(steps=20, order=2),
]


def run(sampler, diffusion, seeds=range(4), denoise=None, image=IMAGE, mask=MASK, **how):
    randn_like = image_noise(seeds, torch.device("cpu"))
    return without_gradients(
        inpaint(
            denoise or best_denoise(diffusion),
            sampler,
            image,
            mask,
            randn_like(torch.empty(len(seeds), *image.shape)),
            randn_like,
            **({"resamples": 2, "jump_length": 3} | how),
        )
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine to zero", "learned"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_known_pixels_are_kept_to_the_bit(sampler, schedule):
    diffusion = diffusion_of(schedule, "v")
    *states, x_0 = run(sampler, diffusion)
    known = ~MASK[None].expand_as(x_0)
    assert torch.equal(x_0[known], IMAGE.expand_as(x_0)[known])
    assert not torch.equal(states[-1][known], x_0[known])
    assert x_0.isfinite().all()
    assert len({x.numpy().tobytes() for x in x_0}) == 4


def test_known_pixels_of_every_grey_level_are_kept():
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    *_, x_0 = run(
        SAMPLERS[0],
        diffusion_of(),
        image=Pixels().encode(grey),
        mask=area("center", 16),
        resamples=1,
    )
    same = Pixels().decode(x_0) == grey
    assert same[:, ~area("center", 16)].all()
    assert not same.all()


def test_known_pixels_have_the_noise_of_their_level():
    """After each step down they are q(x_s | x_0), and after a jump still q(x_t | x_0)."""
    diffusion = diffusion_of("linear")
    sampler = DDPM(steps=10, variance="auto")
    steps = [*(t for t, _ in reversed(sampler.timesteps(diffusion))), -1]
    torch.manual_seed(0)
    states = inpaint(
        best_denoise(diffusion),
        sampler,
        IMAGE,
        MASK,
        torch.randn(5000, 1, 2, 2),
        torch.randn_like,
        resamples=2,
        jump_length=4,
    )
    for (_, goal), x in zip(path(10, 2, 4), states, strict=True):
        a = diffusion.alphas_cumprod_at(steps[goal])
        known = x[:, 0, 0, 1]
        assert known.mean().item() == pytest.approx(-0.9 * math.sqrt(a), abs=0.06)
        assert known.std().item() == pytest.approx(math.sqrt(1 - a), abs=0.05)


@pytest.mark.quick(3)
@pytest.mark.parametrize("resamples", [1, 3])
@pytest.mark.parametrize(
    ("sampler", "error"),
    [
        (DDPM(steps=100, variance="auto", spacing="log_snr"), 0.06),
        (DDIM(steps=100, eta=0.0, spacing="log_snr"), 0.04),
        (Heun(steps=50, spacing="log_snr"), 0.02),
    ],
    ids=["ddpm", "ddim", "heun"],
)
def test_independent_pixels_are_painted_with_mean_and_variance_of_the_data(
    sampler, error, resamples
):
    """`error`: by how much the sampler itself underestimates the standard deviation."""
    diffusion = diffusion_of("linear")
    torch.manual_seed(0)
    *_, x_0 = inpaint(
        best_denoise(diffusion),
        sampler,
        IMAGE,
        MASK,
        torch.randn(10_000, 1, 2, 2),
        torch.randn_like,
        resamples=resamples,
        jump_length=10,
    )
    painted = x_0[:, MASK.expand(1, 2, 2)].double()
    assert painted.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert painted.std().item() == pytest.approx(STD, rel=error)
    assert abs(torch.corrcoef(painted.T)[0, 1].item()) < 0.05


def equal_pixels(diffusion):
    """The best denoiser of images whose pixels are all the same N(MEAN, STD^2)."""

    def denoise(x_t, t):
        a = diffusion.alphas_cumprod_at(t)
        mean = x_t.mean(dim=(1, 2, 3), keepdim=True)  # a sufficient statistic for x_0
        variance = a * STD**2 + (1 - a) / x_t[0].numel()
        x_0 = MEAN + math.sqrt(a) * STD**2 / variance * (mean - math.sqrt(a) * MEAN)
        x_0 = x_0.expand_as(x_t)
        return Prediction(x_0, (x_t - math.sqrt(a) * x_0) / math.sqrt(1 - a))

    return Known(diffusion, denoise)


def test_resampling_reduces_the_mismatch_of_painted_and_known_pixels():
    diffusion = diffusion_of("linear")
    known = torch.full((1, 4, 4), 0.5)  # two standard deviations from the mean
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, 0] = False

    def off(resamples):
        torch.manual_seed(0)
        *_, x_0 = inpaint(
            equal_pixels(diffusion),
            DDPM(steps=50, variance="auto", spacing="log_snr"),
            known,
            mask,
            torch.randn(300, 1, 4, 4),
            torch.randn_like,
            resamples=resamples,
            jump_length=10,
        )
        return (x_0[:, mask] - 0.5).square().mean().sqrt().item()

    once, twice, often = off(1), off(2), off(10)
    assert once > 0.05
    assert twice < 0.6 * once
    assert often < 0.015  # at the last level, t = 0, all pixels have noise of 0.01


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_image_depends_only_on_its_seed(sampler):
    diffusion = diffusion_of("linear")
    *_, together = run(sampler, diffusion, seeds=range(3, 8))
    *_, alone = run(sampler, diffusion, seeds=[5])
    assert torch.equal(together[2], alone[0])


def test_no_autograd_graph_is_kept():
    diffusion = diffusion_of("linear")
    weight = torch.ones((), requires_grad=True)

    def denoise(x_t, t):
        x_0, eps, _ = best_denoise(diffusion)(x_t, t)
        return Prediction(x_0 * weight, eps * weight)

    assert not any(
        x.requires_grad for x in run(SAMPLERS[0], diffusion, denoise=Known(diffusion, denoise))
    )


# masks


def test_masks_by_name():
    left, right, top, bottom, center = (area(word, 5) for word in AREAS)
    assert torch.equal(left, ~right)
    assert torch.equal(top, ~bottom)
    assert left[0].tolist() == [[True, True, False, False, False]] * 5
    assert torch.equal(top[0], left[0].T)
    assert center[0].sum() == 9
    assert area("center", 16)[0, 4:12, 4:12].all()
    assert area("center", 16).sum() == 64


@pytest.fixture
def digits(tmp_path):
    def make(**changes):
        keys = {"split": "train", "channels": 1, "image_size": 16, "num_classes": 10}
        keys |= {"resize_mode": "resize", "background": 255, "flip": False}
        return Digits(data_dir=tmp_path, **(keys | changes))

    return make


def test_mask_is_cropped_and_resized_like_its_image(digits, tmp_path):
    grey = torch.zeros(1, 20, 40, dtype=torch.uint8)
    grey[:, 5:15, 15:25] = 255
    save_png(grey, tmp_path / "a.png")
    for fit in ("crop", "resize", "pad"):
        data = digits(image_size=20, resize_mode=fit)
        mask = data.read_mask(tmp_path / "a.png")
        assert mask.shape == (1, 20, 20)
        assert mask.dtype == torch.bool
        assert (data.read(tmp_path / "a.png")[mask] >= 64).all()  # smoothed at its edges
        shape = {"crop": (10, 10), "resize": (10, 5), "pad": (5, 5)}[fit]
        rows, columns = mask[0].any(1).sum().item(), mask[0].any(0).sum().item()
        assert (rows, columns) == shape


def test_the_mask_of_a_rotated_image_is_upright(digits, tmp_path):
    """Stored as by a phone; the mask is drawn on the displayed image and stored upright."""
    stored = Image.new("L", (40, 20), 0)
    stored.paste(255, (0, 0, 20, 20))  # the left half: turned by 90 degrees, the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "a.png", exif=exif)
    Image.new("L", (20, 40), 0).save(tmp_path / "m.png")
    assert upright_size(tmp_path / "a.png") == upright_size(tmp_path / "m.png") == (20, 40)
    mask = digits(image_size=8).read_mask(tmp_path / "a.png")
    assert torch.equal(mask, area("top", 8))


def test_a_mask_is_white_from_128_and_black_where_transparent(digits, tmp_path):
    pixels = torch.tensor([[127, 128], [0, 255]], dtype=torch.uint8)[None]
    save_png(pixels, tmp_path / "a.png")
    mask = digits(image_size=4, resize_mode="pad").read_mask(tmp_path / "a.png")
    assert mask[0, 1:3, 1:3].tolist() == [[False, True], [False, True]]
    assert mask.sum() == 2
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert not digits(image_size=2).read_mask(tmp_path / "clear.png").any()


# the command line

INPAINT = ["job=inpaint", "hardware=cpu", "tracker=local", "checkpoint=run"]
FAST = ["job.num_samples=3", "job.resamples=2", "job.jump_length=1", "sampler.steps=4"]


@pytest.fixture
def picture(tmp_path):
    """A grey wedge of 16x16 in a.png, another of 20x30 in b.jpg."""
    wedge = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    save_png(wedge, tmp_path / "a.png")
    Image.new("RGB", (20, 30), (200, 100, 0)).save(tmp_path / "b.jpg")
    return wedge


def samples(folder):
    return torch.stack([load_png(file) for file in sorted((folder / "samples").iterdir())])


def test_job_paints_the_masked_pixels_of_an_image(run, tiny, picture, tmp_path):
    status, out, err = run(*INPAINT, *FAST, "job.image=a.png", "job.mask=left", "output_dir=s")
    assert status == 0, err
    assert out.splitlines()[-1].split() == ["done", "s/grid.png"]
    assert "7 of the sampler, with 3 jumps back of 1" in out
    names = {file.name for file in (tmp_path / "s" / "samples").iterdir()}
    assert names == {"000000.png", "000001.png", "000002.png"}
    images, mask = samples(tmp_path / "s"), area("left", 16)
    assert torch.equal(images[:, ~mask], picture[~mask].expand(3, -1))
    assert len({image.numpy().tobytes() for image in images}) == 3
    grid = load_png(tmp_path / "s" / "grid.png")
    scale = grid.shape[-1] // (3 * 17 + 1)
    small = grid[:, ::scale, ::scale]
    known = torch.where(mask, 128, picture)
    tiles = [picture, known, *images]
    for number, tile in enumerate(tiles):
        y, x = (1 + 17 * k for k in divmod(number, 3))
        assert torch.equal(small[:, y : y + 16, x : x + 16], tile), number


def test_image_and_mask_file_of_another_size_are_accepted(run, tiny, picture, tmp_path):
    mask = torch.zeros(1, 30, 20, dtype=torch.uint8)
    mask[:, :15] = 255
    save_png(mask, tmp_path / "m.png")
    given = ["job.image=b.jpg", "job.mask=m.png", "job.num_samples=2", "sampler=dpm_solver"]
    status, _, err = run(*INPAINT, *given, "job.resamples=1", "sampler.steps=3", "output_dir=s")
    assert status == 0, err
    images = samples(tmp_path / "s")
    assert (images[:, :, 8:] == images[0, 0, 8, 0]).all()
    assert not (images[:, :, :8] == images[0, 0, 8, 0]).all()
    config = (tmp_path / "s" / "config.yaml").read_text()
    assert f"image: {tmp_path}/b.jpg" in config
    assert f"mask: {tmp_path}/m.png" in config


def test_images_do_not_depend_on_batch_size_or_first_seed(run, tiny, picture, tmp_path):
    given = ["job.image=a.png", "job.mask=center", *FAST, "sampler.eta=1"]
    assert run(*INPAINT, *given, "output_dir=one")[0] == 0
    assert run(*INPAINT, *given, "job.batch_size=2", "output_dir=two")[0] == 0
    changes = ["job.first_seed=2", "job.num_samples=1"]
    assert run(*INPAINT, *given, *changes, "output_dir=late")[0] == 0
    one, two, late = (samples(tmp_path / name).int() for name in ("one", "two", "late"))
    assert (one - two).abs().max() <= 1
    assert (one[2:] - late).abs().max() <= 1


def test_labels_are_assigned_in_turn(run, tmp_path, picture):
    assert run(*TINY, "data.conditional=true", "output_dir=run")[0] == 0
    given = ["job.image=a.png", "job.mask=top", "job.labels=[3,8]", "guidance=classifier_free"]
    status, _, err = run(*INPAINT, *FAST, *given, "output_dir=s")
    assert status == 0, err
    labels = json.loads((tmp_path / "s" / "labels.json").read_text())
    assert labels == {"000000.png": 3, "000001.png": 8, "000002.png": 3}


MISTAKES = [
    ("job.mask=left", ["job.image: must be set"]),
    ("job.image=a.png", ["job.mask: must be set"]),
    ("job.image=no.png job.mask=left", ["job.image", "no.png", "No such file"]),
    ("job.image=run job.mask=left", ("job.image", "not a file")),
    ("job.image=a.txt job.mask=left", ["job.image", "a.txt", "not a PNG, JPEG, WebP or BMP"]),
    ("job.image=cut.png job.mask=left", ["job.image", "cut.png"]),
    ("job.image=a.png job.mask=lefty", ["job.mask", "lefty", "one of left", "'left'"]),
    ("job.image=a.png job.mask=a.txt", ["job.mask", "not a PNG"]),
    ("job.image=a.png job.mask=cut.png", ["job.mask", "cut.png"]),
    ("job.image=a.png job.mask=b.jpg", ["job.mask", "20x30", "16x16"]),
    ("job.image=a.png job.mask=black.png", ["job.mask", "no white pixel"]),
    ("job.image=a.png job.mask=left job.resamples=0", ["job.resamples=0"]),
    ("job.image=a.png job.mask=left job.jump_length=0", ["job.jump_length=0"]),
    ("job.image=a.png job.mask=left job.labels=[1]", ["job.labels=[1]", "without labels"]),
    ("job.image=a.png job.mask=left sampler.steps=2000", ["sampler.steps=2000"]),
]


@pytest.mark.slow
def test_mistakes_are_reported_before_a_folder_is_made(run, tiny, picture, tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    save_png(torch.full((1, 16, 16), 127, dtype=torch.uint8), tmp_path / "black.png")
    for words, expected in MISTAKES:
        status, _, err = run(*INPAINT, *words.split(), "output_dir=s")
        assert status == 2, (words, err)
        assert all(part in err for part in expected), (words, err)
        assert 1 <= len(err.strip().splitlines()) <= 5, words
        assert "Traceback" not in err, words
        assert not (tmp_path / "s").exists(), words


def test_an_all_white_mask_paints_everything(run, tiny, picture, tmp_path):
    save_png(torch.full((1, 16, 16), 255, dtype=torch.uint8), tmp_path / "white.png")
    status, _, err = run(*INPAINT, *FAST, "job.image=a.png", "job.mask=white.png", "output_dir=s")
    assert status == 0, err
    assert not torch.equal(samples(tmp_path / "s")[0], picture)
