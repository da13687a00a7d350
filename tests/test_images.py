"""Images: exact round trips, grids, atomic files."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.images import Pixels, load_png, make_grid, save_gif, save_png


def random_image(channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator).to(torch.uint8)


def test_every_grey_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = Pixels().encode(levels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    torch.testing.assert_close(x.flatten()[51], torch.tensor(51 / 127.5 - 1))
    assert torch.equal(Pixels().decode(x), levels)


def test_encode_keeps_its_argument_and_its_memory_format():
    images = random_image(3, 4, 4)[None].to(memory_format=torch.channels_last)
    before = images.clone()
    assert Pixels().encode(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_decode_rounds_and_clips():
    half = 1 / 127.5 / 2  # half a grey level
    x_0 = torch.tensor([-7.0, -1.0, -1 + 0.9 * half, -1 + 1.1 * half, 1.0, 1.2, float("inf")])
    assert Pixels().decode(x_0).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert Pixels().decode(torch.tensor([0.5], dtype=torch.bfloat16)).item() == 191


@pytest.mark.parametrize(("count", "rows", "columns"), [(16, 4, 4), (10, 3, 4), (2, 1, 2)])
def test_grid_is_near_square_and_holds_the_images_in_order(count, rows, columns):
    images = torch.stack([random_image(3, 8, 8, seed) for seed in range(count)])
    grid = make_grid(images)
    assert grid.shape == (3, 9 * rows + 1, 9 * columns + 1)  # lines of one pixel
    for i, image in enumerate(images):
        y, x = 1 + 9 * (i // columns), 1 + 9 * (i % columns)
        assert torch.equal(grid[:, y : y + 8, x : x + 8], image)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("columns", [1, 3, 9])
def test_grid_equals_that_of_torchvision(count, columns):
    from torchvision.utils import make_grid as of_torchvision

    images = torch.stack([random_image(3, 70, 40, seed) for seed in range(count)])
    theirs = of_torchvision(images, nrow=columns, padding=1, pad_value=128)
    assert torch.equal(make_grid(images, columns), theirs)


def test_grid_keeps_grey_grey_and_takes_columns():
    images = torch.stack([random_image(1, 8, 8, seed) for seed in range(6)])
    assert make_grid(images, columns=6).shape == (1, 10, 55)
    assert make_grid(images, columns=1).shape == (1, 55, 10)
    assert make_grid(images[:1]).shape[0] == 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_round_trip(tmp_path, channels, mode):
    image = random_image(channels, 5, 7)
    save_png(image, tmp_path / "new" / "image.png")
    with Image.open(tmp_path / "new" / "image.png") as picture:
        assert (picture.mode, picture.size) == (mode, (7, 5))
    assert torch.equal(load_png(tmp_path / "new" / "image.png"), image)


def test_png_is_enlarged_in_whole_pixels(tmp_path):
    image = random_image(3, 5, 7)
    save_png(image, tmp_path / "image.png", scale=3)
    large = image.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    assert torch.equal(load_png(tmp_path / "image.png"), large)


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "image.png"
    save_png(random_image(1, 4, 4), path)
    before = path.read_bytes()

    def half(self, file, **_):
        file.write_bytes(b"\x89PNG")
        if failing == "write":
            raise OSError("No space left on device")

    def refuse(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        save_png(random_image(1, 4, 4, seed=1), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_shows_each_frame_and_holds_the_last(tmp_path, channels):
    frames = (torch.full((channels, 4, 6), level, dtype=torch.uint8) for level in (0, 100, 255))
    save_gif(frames, tmp_path / "movie.gif", duration_ms=40, hold_ms=1000, scale=2)
    levels, durations = [], []
    with Image.open(tmp_path / "movie.gif") as movie:
        assert (movie.n_frames, movie.size, movie.info["loop"]) == (3, (12, 8), 0)
        for i in range(3):
            movie.seek(i)
            levels.append(int(np.asarray(movie.convert("L")).mean()))
            durations.append(movie.info["duration"])
    assert levels == [0, 100, 255]
    assert durations == [40, 40, 1000]
    assert [file.name for file in tmp_path.iterdir()] == ["movie.gif"]


def test_other_tensors_are_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"uint8 expected, got torch\.float32"):
        save_png(torch.zeros(1, 4, 4), tmp_path / "image.png")
    with pytest.raises(AssertionError, match="1 or 3 channels expected, got 2"):
        save_png(torch.zeros(2, 4, 4, dtype=torch.uint8), tmp_path / "image.png")
    assert list(tmp_path.iterdir()) == []
