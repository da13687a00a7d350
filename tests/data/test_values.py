"""Pictures that are not square, have other channels, or values of 16 bits and floats."""

import errno
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_sets import build, random_pixels, save

from ddpm.data import values
from ddpm.errors import InputError
from ddpm.images import codec_of, load_image, save_image, suffix

RNG = np.random.default_rng(0)


def folder(root, **changes):
    defaults = {"image_size": [6, 9], "resize_mode": "resize", "holdout": 0}
    return build("folder", root.parent / "cache", root=str(root), **(defaults | changes))


def only(data):
    return data[0][0].numpy().transpose(1, 2, 0)


DEEP = {"value_range": [0, 65535]}
FLOAT = {"value_range": [-1000, 3000.5]}
GREY = RNG.integers(0, 65536, (6, 9, 1)).astype(np.uint16)
COLOUR = RNG.integers(0, 65536, (6, 9, 3)).astype(np.uint16)
SEVEN = RNG.uniform(-1000, 3000, (6, 9, 7)).astype(np.float32)


def tiff_of_16_bit_colours(array):
    """Little-endian, one strip, uncompressed: Pillow writes no such file."""
    height, width, channels = array.shape
    data, count = array.astype("<u2").tobytes(), 9
    after = 8 + 2 + 12 * count + 4
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, after)),
        *((259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, after + 6), (277, 3, 1, channels)),
        *((278, 4, 1, height), (279, 4, 1, len(data))),
    ]
    entries = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + n.to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, n, value in tags
    )  # fmt: skip
    head = b"II*\0" + (8).to_bytes(4, "little") + count.to_bytes(2, "little")
    return head + entries + bytes(4) + (16).to_bytes(2, "little") * channels + data


@pytest.mark.parametrize(
    ("name", "array", "settings"),
    [
        ("a.png", GREY, DEEP),
        ("a.tif", GREY, DEEP),
        ("a.npy", GREY, DEEP),
        ("a.png", COLOUR, DEEP),
        ("a.tiff", COLOUR, DEEP),
        ("a.npz", COLOUR, DEEP),
        ("a.npy", SEVEN, FLOAT),
        ("a.npz", SEVEN, FLOAT),
        ("a.tif", SEVEN[..., :1], FLOAT),
        ("a.npy", (SEVEN % 256).astype(np.uint8), {}),
        ("a.png", random_pixels(6, 9, 4), {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_values_are_the_same_in_file_cache_and_sample(tmp_path, name, array, settings):
    """File, cache, x_0, and the file of a sample: the same values."""
    root = tmp_path / "pics"
    root.mkdir()
    if name.endswith(".npy"):
        np.save(root / name, array)
    elif name.endswith(".npz"):
        np.savez_compressed(root / name, array)
    elif array.shape[2] == 3 and name.endswith(".tiff"):
        (root / name).write_bytes(tiff_of_16_bit_colours(array))
    elif array.shape[2] == 3:
        save_image(torch.from_numpy(array).permute(2, 0, 1), root / name)
    else:
        save(root / name, array[..., 0] if array.shape[2] == 1 else array)
    data = folder(root, channels=array.shape[2], **settings)
    assert data.dtype == array.dtype.name
    assert (only(data) == array).all()
    codec = codec_of(settings.get("value_range"))
    images = data.__getitems__([0])[0]
    x_0 = codec.encode(images)
    assert x_0.abs().max() <= 1
    back = codec.decode(x_0)
    assert back.dtype == images.dtype
    assert (back.double() - images.double()).abs().max() <= (1e-3 if data.dtype == "float32" else 0)
    written = tmp_path / f"000000{suffix(array.shape[2], codec.dtype)}"
    save_image(images[0], written)
    assert torch.equal(load_image(written), images[0])
    assert codec.show(images).dtype == torch.uint8
    assert codec.show(images).shape[1] in (1, 3)


def test_sixteen_bit_samples_are_read_by_other_programs(tmp_path):
    """Pillow reads the grey file; of colours it reads the high bytes."""
    for array in (GREY, COLOUR):
        save_image(torch.from_numpy(array).permute(2, 0, 1), tmp_path / "a.png")
        seen = np.asarray(Image.open(tmp_path / "a.png"))
        expected = array[..., 0] if array.shape[2] == 1 else array >> 8
        assert (seen == expected).all()


def test_values_are_scaled_to_minus_1_to_1():
    codec = codec_of([-1000, 3000.5])
    ends = torch.tensor([[[[-1000.0, 3000.5, 1000.25]]]])
    assert codec.encode(ends).flatten().tolist() == [-1, 1, 0]
    assert codec.decode(torch.tensor([-5.0, 5.0])).tolist() == [-1000, 3000.5]
    assert codec.show(ends).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize("mode", ["crop", "pad", "resize"])
@pytest.mark.parametrize("turned", [False, True])
def test_non_square_images_keep_their_orientation(tmp_path, mode, turned):
    """A bright left half stays the left half as a viewer shows it."""
    pixels = np.zeros((24, 36, 3), np.uint8)
    pixels[:, :18] = 255
    image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)) if turned else pixels)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # to be turned clockwise
    (tmp_path / "pics").mkdir()
    image.save(tmp_path / "pics" / "a.png", exif=exif)
    data = folder(tmp_path / "pics", resize_mode=mode, background=0, image_size=[6, 12])
    seen = only(data)
    assert seen.shape == (6, 12, 3)
    columns = {"crop": (2, 9), "pad": (3, 8), "resize": (2, 9)}[mode]
    assert (seen[:, columns[0]] > 200).all()
    assert (seen[:, columns[1]] < 50).all()
    assert "6x12" in data.cache_file.name


def test_image_size_as_a_pair_is_the_same_dataset(tmp_path):
    save(tmp_path / "pics" / "a.png", random_pixels(20, 30, 3))
    one, other = (folder(tmp_path / "pics", image_size=size) for size in (8, [8, 8]))
    assert (one.cache_file, one.fingerprint) == (other.cache_file, other.fingerprint)


def test_sixteen_bit_images_are_resized_within_their_range(tmp_path):
    wide = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    save(tmp_path / "pics" / "a.png", wide)
    seen = only(folder(tmp_path / "pics", channels=1, image_size=[6, 8], **DEEP))[0, :, 0]
    assert (np.diff(seen.astype(int)) > 6000).all()
    assert seen[0] < 8000 < 58000 < seen[-1]


@pytest.mark.parametrize(
    ("array", "changes", "match"),
    [
        (GREY, {"value_range": [0, 1000]}, "its values go from"),
        (SEVEN * np.nan, {"channels": 7, "value_range": [0, 1]}, "its values go from nan"),
        (GREY + 0.5, DEEP, "no whole numbers"),
        (COLOUR, DEEP, "has 3 channels, and data.channels=1"),
        (np.array(["a"]), DEEP, "an array of"),
        (np.array([{}], dtype=object), DEEP, "an array of object"),
        (np.zeros((0, 4)), DEEP, "an array of"),
    ],
)
def test_arrays_of_wrong_shape_or_type_are_refused(tmp_path, array, changes, match):
    (tmp_path / "pics").mkdir()
    np.save(tmp_path / "pics" / "a.npy", array)
    with pytest.raises(InputError, match=match):
        folder(tmp_path / "pics", **({"channels": 1} | changes)).prepare()


def test_array_header_larger_than_the_file_is_refused(tmp_path):
    for count, match in ((10**7, "cut short"), (10**12, "an array of")):
        file = io.BytesIO()
        header = {"descr": "<f8", "fortran_order": False, "shape": (count, 1, 1)}
        np.lib.format.write_array_header_1_0(file, header)
        (tmp_path / "a.npy").write_bytes(file.getvalue() + bytes(64))
        with pytest.raises(InputError, match=match):
            values.read(tmp_path / "a.npy", 1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"value_range": [5, 5]}, r"data\.value_range"),
        ({"value_range": [0, float("inf")]}, r"data\.value_range"),
        ({"channels": 17}, r"data\.channels=17"),
        ({"image_size": [4, 0]}, r"data\.image_size"),
        ({"image_size": [4, 4, 4]}, r"data\.image_size"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        folder(tmp_path, **changes)


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), MemoryError()])
@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_operating_system_errors_while_decoding_do_not_count_as_damage(
    tmp_path, monkeypatch, name, error
):
    """Nor is the picture skipped with on_error=skip."""

    def fail(*_, **__):
        raise error

    root = tmp_path / "root"
    for i in range(2):
        save_image(torch.from_numpy(GREY.transpose(2, 0, 1).copy()), root / f"{i}{name}")
    monkeypatch.setattr(values.ImageOps, "exif_transpose", fail)
    monkeypatch.setattr(values, "_array", fail)
    with pytest.raises(InputError, match="not the image's fault"):
        folder(root, channels=1, on_error="skip", **DEEP).prepare()
