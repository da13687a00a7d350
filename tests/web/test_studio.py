"""What job=play draws: the bytes of job=sample, and edited and interpolated images."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.base import TINY
from support.runs import go
from support.web import TOKEN, get, post

from ddpm.editing.interpolation import between
from ddpm.errors import InputError
from ddpm.randomness import image_noise
from ddpm.web import server

ASKED = {"seed": 3, "label": None, "sampler": "ddim", "steps": 2, "scale": None}


@pytest.fixture
def page(run, monkeypatch, tmp_path):
    """Returns the application of job=play with these arguments."""
    monkeypatch.delenv(server.TOKEN, raising=False)

    def start(*words):
        pages = []

        def served(app, opened, *_):
            opened.close()
            pages.append(app)

        monkeypatch.setattr(server, "run", served)
        monkeypatch.setattr(server.secrets, "token_urlsafe", lambda _: TOKEN)
        go(run, "job=play", "checkpoint=run", "job.port=0", "hardware=cpu", *words)
        assert not (tmp_path / "outputs").exists()  # nothing is written
        return pages[0]

    return start


def png(text):
    return base64.b64decode(text)


def pixels(content):
    return np.array(Image.open(io.BytesIO(content)))


def test_drawn_images_equal_those_of_job_sample(tiny, run, page, tmp_path):
    words = ["job=sample", "checkpoint=run", "hardware=cpu", "job.first_seed=2", "tracker=local"]
    words += ["job.num_samples=3", "sampler=ddim", "sampler.steps=4", "sampler.eta=1.0"]
    go(run, *words, "output_dir=samples")
    app = page("sampler=ddim", "sampler.eta=1.0")
    for seed in (2, 3, 4):
        events = post(app, "/draw", ASKED | {"seed": seed, "steps": 4}).events
        [drawn] = events[-1]["images"]
        assert png(drawn) == (tmp_path / "samples" / "samples" / f"00000{seed}.png").read_bytes()


def test_each_step_shows_x_t_and_predicted_x_0(tiny, page):
    app = page()
    model = get(app, "/model").json
    assert (model["T"], model["shape"], model["classes"], model["scale"]) == (
        1000,
        [1, 16, 16],
        None,
        None,
    )
    assert model["samplers"][0] == {"name": "ddim", "steps": 2}
    assert {"ddpm", "dpm_solver", "heun", "respaced"} <= {one["name"] for one in model["samplers"]}
    *steps, last = post(app, "/draw", ASKED | {"steps": 3}).events
    assert [(e["t"], e["step"], e["steps"]) for e in steps] == [(999, 1, 3), (500, 2, 3), (0, 3, 3)]
    # The last step of DDIM, from t = 0, returns x_0_hat itself.
    assert last["images"] == [steps[-1]["x_0"]]
    noise = image_noise([3], torch.device("cpu"))(torch.empty(1, 1, 16, 16))
    x_T = ((noise.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[0, 0].numpy()
    assert np.array_equal(pixels(png(steps[0]["x_t"])), x_T)


@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver", "heun", "euler_ancestral", "unipc"])
def test_every_sampler_draws_with_any_number_of_steps(sampler, tiny, page):
    events = post(page(), "/draw", ASKED | {"sampler": sampler, "steps": 70}).events
    shown = [event["t"] for event in events]
    assert shown[0] == 999
    assert shown[-1] == -1
    assert len(shown) <= 62
    assert shown == sorted(shown, reverse=True)


def test_unmasked_pixels_are_kept_exactly(tiny, page):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:9, 3:12] = 255
    asked = ASKED | {"steps": 5, "resamples": 2, "jump_length": 2}
    asked |= {name: base64.b64encode(part.tobytes()).decode() for name, part in
              (("image", picture), ("mask", mask))}  # fmt: skip
    *steps, last = post(page(), "/inpaint", asked).events
    painted = pixels(png(last["images"][0]))
    assert np.array_equal(painted[mask == 0], picture[mask == 0])
    assert not np.array_equal(painted[mask > 0], picture[mask > 0])
    assert {"x_t", "x_0"} <= steps[0].keys()


def test_ends_of_an_interpolation_equal_the_images_of_the_seeds(tiny, page):
    app = page("sampler=ddpm")
    asked = ASKED | {"sampler": "ddpm", "steps": 6, "seed": 3, "other": 8, "count": 4}
    *steps, last = post(app, "/interpolate", asked).events
    assert [len(event["images"]) for event in (*steps, last)] == [4] * 7
    for end, seed in ((0, 3), (-1, 8)):
        alone = post(app, "/draw", asked | {"seed": seed}).events[-1]["images"][0]
        assert last["images"][end] == alone
    assert len(set(last["images"])) == 4


def test_noise_between_two_seeds_is_standard_normal():
    shape = torch.empty(5, 1, 100, 100)
    noises = [image_noise([seed], torch.device("cpu")) for seed in (0, 1)]
    mixed = between(*noises, 5)(shape)
    assert mixed.mean((1, 2, 3)).abs().max() < 4 / 100  # four standard errors
    assert (mixed.var((1, 2, 3)) - 1).abs().max() < 4 * 2**0.5 / 100
    again = [image_noise([seed], torch.device("cpu"))(shape[:1]) for seed in (0, 1)]
    assert torch.equal(mixed[:1], again[0])
    assert torch.equal(mixed[-1:], again[1])
    torch.testing.assert_close(mixed[2:3], (again[0] + again[1]) / 2**0.5)


@pytest.mark.slow
def test_labels_and_guidance(finished, run, page, tmp_path):
    finished(*TINY, "data.conditional=true", "job.max_steps=2")
    app = page()
    model = get(app, "/model").json
    assert (model["classes"], model["scale"]) == (10, 1.0)

    def drawn(**more):
        return post(app, "/draw", ASKED | {"steps": 3} | more).events[-1]["images"][0]

    assert drawn(label=3, scale=1.0) == drawn(label=3)
    assert drawn(label=3, scale=0.0) == drawn(label=None)
    assert len({drawn(label=3, scale=s) for s in (0.0, 1.0, 8.0)}) == 3
    words = ["job=sample", "checkpoint=run", "hardware=cpu", "job.first_seed=3", "job.labels=7"]
    words += ["guidance=classifier_free", "guidance.scale=3.0", "sampler.steps=3", "tracker=local"]
    go(run, *words, "job.num_samples=1", "output_dir=samples")
    assert png(drawn(label=7, scale=3.0)) == (tmp_path / "samples/samples/000003.png").read_bytes()


BAD = {
    "seed": [-1, 2**32, 1.5, "1", True, None],
    "label": [0, "x"],
    "sampler": ["", "../ddim", None, ["ddim"]],
    "steps": [0, 1001, "2", None],
    "scale": ["1", -1, 1e9, True, 1.0],
}


def test_every_value_is_checked(tiny, page):
    app = page()
    for name, values in BAD.items():
        for value in values:
            answer = post(app, "/draw", ASKED | {name: value})
            assert (answer.status, name) == (400, answer.json["error"].split(":")[0]), value
    for name, value in {"image": "x", "mask": "", "resamples": 0, "jump_length": 101}.items():
        asked = ASKED | {"image": base64.b64encode(bytes(256)).decode(), "resamples": 1}
        asked |= {"mask": base64.b64encode(b"\xff" * 256).decode(), "jump_length": 1}
        assert post(app, "/inpaint", asked | {name: value}).json["error"].startswith(name)
    for name, value in {"other": -1, "count": 17}.items():
        asked = ASKED | {"other": 1, "count": 3, name: value}
        assert post(app, "/interpolate", asked).json["error"].startswith(name)


def test_several_devices_are_refused():
    from ddpm.jobs.play import play

    with pytest.raises(InputError, match=r"hardware\.devices: job=play draws on one device"):
        play(
            run=None,
            fabric=SimpleNamespace(world_size=2),
            pipeline=None,
            weights="ema",
            host="127.0.0.1",
            port=0,
        )
