"""Data sets: pixels against independent computations, the cache, and all errors."""

import errno
import gzip
import hashlib
import os
import pickle
import shutil
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from support.image_sets import (
    ROOT,
    Counted,
    Large,
    build,
    everything,
    fake_celeba,
    folder,
    fork,
    random_pixels,
    save,
)

from ddpm.data import cache, decode
from ddpm.data.digits import Digits
from ddpm.errors import InputError

REAL = ROOT / "data"


def square(picture, **changes):
    settings = {"channels": 3, "image_size": 8, "resize_mode": "resize", "center_crop": None}
    settings |= {"background": 255, "resample": Image.Resampling.LANCZOS}
    return decode.square(picture, **(settings | changes))


# -- digits ---------------------------------------------------------------------------------------


def test_digits_agree_with_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    data = build("digits", tmp_path, holdout=0)
    images, labels = data.__getitems__(range(len(data)))
    assert images.shape == (1797, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert (labels.numpy() == load_digits().target).all()
    assert (images.amin(), images.amax()) == (0, 255)
    small = torch.nn.functional.avg_pool2d(images.float(), 2)[:, 0]  # 8x8 again
    assert np.corrcoef(small.flatten(), load_digits().images.flatten())[0, 1] > 0.99


def test_digits_at_size_8_are_unchanged(tmp_path):
    from sklearn.datasets import load_digits

    images, _ = everything(build("digits", tmp_path, image_size=8, holdout=0))
    assert (images[..., 0] == (load_digits().images * 255 / 16).round()).all()


# -- items ----------------------------------------------------------------------------------------


def test_png_folder_gives_exact_pixels_and_labels(tree):
    root, pixels = tree
    data = folder(root, num_classes=2)
    images, labels = everything(data)
    assert (images == pixels).all()
    assert labels == [0, 0, 1, 1, 1]
    assert data.class_names == ["a", "b"]
    assert len(data) == 5


def test_item_equals_its_image_in_a_batch(tree):
    data = folder(tree[0])
    order = [3, 0, 3, 4]
    images, labels = data.__getitems__(order)
    assert images.is_contiguous()
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    for i, image, label in zip(order, images, labels, strict=True):
        one, its_label = data[i]
        assert torch.equal(one, image)
        assert type(its_label) is int
        assert its_label == label
    with pytest.raises(IndexError):
        data[5]


def test_items_are_copies(tree):
    data = folder(tree[0])
    data[0][0].zero_()
    data.__getitems__([0])[0].zero_()
    assert (everything(data)[0] == tree[1]).all()


def test_images_beside_folders_have_no_classes(tree):
    root, _ = tree
    save(root / "0.png", random_pixels(8, 8, 3))
    data = folder(root)
    assert data.class_names is None
    assert everything(data)[1] == [0] * 6


def test_hidden_files_and_other_suffixes_are_left_out(tree):
    root, _ = tree
    save(root / ".thumbnails" / "a.png", random_pixels(8, 8, 3))
    save(root / "a" / "._1.png", random_pixels(8, 8, 3))
    (root / "a" / "notes.txt").write_text("not an image")
    assert len(folder(root)) == 5


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "bmp"])
def test_image_file_formats_are_decoded(tmp_path, suffix):
    gradient = np.linspace(0, 255, 64).reshape(8, 8).repeat(3).reshape(8, 8, 3).astype(np.uint8)
    save(tmp_path / "images" / f"x.{suffix}", gradient)
    images, _ = everything(folder(tmp_path / "images"))
    assert np.abs(images[0].astype(int) - gradient).max() < 16


# -- modes ----------------------------------------------------------------------------------------


def test_grey_and_colour_are_converted():
    pixels = random_pixels(8, 8, 3)
    grey = Image.fromarray(pixels[..., 0])
    assert (square(grey) == pixels[..., 0]).all()
    assert (square(grey, channels=1)[0] == pixels[..., 0]).all()
    luma = pixels @ [0.299, 0.587, 0.114]
    assert np.abs(square(Image.fromarray(pixels), channels=1)[0] - luma).max() <= 0.51


@pytest.mark.parametrize("background", [0, 90, 255])
def test_transparency_is_blended_with_the_background(background):
    rgba = random_pixels(8, 8, 4)
    alpha = rgba[..., 3:] / 255
    over = rgba[..., :3] * alpha + background * (1 - alpha)
    found = square(Image.fromarray(rgba), background=background).transpose(1, 2, 0)
    assert np.abs(found - over).max() <= 1
    grey = Image.fromarray(rgba[..., [0, 3]])  # LA
    assert np.abs(square(grey, background=background, channels=1)[0] - over[..., 0]).max() <= 1


def test_palette_images_are_decoded(tmp_path):
    picture = Image.fromarray(random_pixels(8, 8) % 4).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]])
    assert (square(picture).transpose(1, 2, 0) == colours[np.asarray(picture)]).all()
    picture.save(tmp_path / "p.png", transparency=3)
    colours[3] = 77
    found = square(Image.open(tmp_path / "p.png"), background=77)
    assert (found.transpose(1, 2, 0) == colours[np.asarray(picture)]).all()


def test_cmyk_images_are_converted():
    cmyk = random_pixels(8, 8, 4).astype(float)
    found = square(Image.fromarray(cmyk.astype(np.uint8), mode="CMYK")).transpose(1, 2, 0)
    assert np.abs(found - (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255).max() <= 1


def test_16_bit_grey_is_scaled(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    save(tmp_path / "images" / "x.png", values)
    assert Image.open(tmp_path / "images" / "x.png").mode == "I;16"
    images, _ = everything(folder(tmp_path / "images", channels=1))
    assert (images[0, ..., 0] == np.round(values / 257)).all()


def test_one_bit_images_are_decoded():
    bits = random_pixels(8, 8) > 127
    assert (square(Image.fromarray(bits), channels=1)[0] == 255 * bits).all()


# -- geometry -------------------------------------------------------------------------------------


def test_padding_centres_without_enlarging():
    pixels = random_pixels(28, 28)
    found = square(
        Image.fromarray(pixels), resize_mode="pad", image_size=32, channels=1, background=7
    )
    expected = np.pad(pixels, 2, constant_values=7)
    assert (found[0] == expected).all()


def test_padding_shrinks_large_images():
    found = square(Image.new("RGB", (64, 32)), resize_mode="pad", image_size=16)
    assert (found[:, 4:12] == 0).all()
    assert (found[:, :4] == 255).all()
    assert (found[:, 12:] == 255).all()
    assert (
        square(Image.new("RGB", (1000, 1)), resize_mode="pad", image_size=16) == 0
    ).sum() == 3 * 16


@pytest.mark.parametrize("shape", [(60, 100, 3), (100, 60, 3), (61, 60, 3)])
def test_crop_takes_the_centre(shape):
    pixels = random_pixels(*shape)
    found = square(Image.fromarray(pixels), resize_mode="crop", image_size=60).transpose(1, 2, 0)
    top, left = (shape[0] - 60) // 2, (shape[1] - 60) // 2
    assert (found == pixels[top : top + 60, left : left + 60]).all()


@pytest.mark.parametrize(("center_crop", "first"), [(None, 20), (40, 30), (999, 20)])
def test_crop_scales_the_centre(center_crop, first):
    """On a ramp, pixel i has the grey level at the centre of its source interval."""
    ramp = np.tile(2 * np.arange(100, dtype=np.uint8), (60, 1))
    side = min(60, center_crop or 60)
    found = square(
        Image.fromarray(ramp),
        resize_mode="crop",
        image_size=10,
        channels=1,
        center_crop=center_crop,
    )[0].astype(float)
    middles = first + (np.arange(10) + 0.5) * side / 10 - 0.5
    assert np.abs(found - 2 * middles)[:, 1:-1].max() <= 1
    assert np.abs(found - 2 * middles).max() <= 4


def test_resize_stretches():
    ramp = np.tile(2 * np.arange(100, dtype=np.uint8), (60, 1))
    found = square(Image.fromarray(ramp), resize_mode="resize", image_size=10, channels=1)[
        0
    ].astype(float)
    assert np.abs(found - 2 * (np.arange(10) * 10 + 4.5))[:, 1:-1].max() <= 1


def test_jpeg_draft_mode_gives_nearly_the_same_pixels(tmp_path):
    y, x = np.mgrid[:512, :768] / 40
    waves = np.stack([np.sin(x + y), np.cos(x * y / 9), np.sin(y)], axis=-1) * 120 + 127
    path = save(tmp_path / "x.jpg", waves.astype(np.uint8), quality=95)
    picture = Image.open(path)
    small = square(picture, resize_mode="crop", image_size=64).astype(float)
    assert picture.size == (192, 128), "not decoded at a quarter"
    whole = Image.fromarray(np.asarray(Image.open(path)))
    difference = np.abs(small - square(whole, resize_mode="crop", image_size=64))
    assert difference.mean() < 1
    assert difference.max() < 10


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_exif_orientation_is_applied(tmp_path, mode):
    pixels = random_pixels(8, 8, 3)
    opaque = np.full((8, 8, 1), 255, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    stored = pixels if mode == "RGB" else np.concatenate([pixels, opaque], axis=-1)
    path = save(tmp_path / "x.png", stored, exif=exif)
    assert (square(Image.open(path)).transpose(1, 2, 0) == np.rot90(pixels, -1)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_is_ignored(tmp_path):
    pixels = random_pixels(8, 8, 3)
    path = save(tmp_path / "x.png", pixels, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (square(Image.open(path)).transpose(1, 2, 0) == pixels).all()


# -- cache ----------------------------------------------------------------------------------------


def caches(directory):
    return sorted(path.name for path in (directory / "cache").glob("*.npy"))


def no_decoding(*_, **__):
    raise AssertionError("decoded")


def test_cache_is_reused(tree, monkeypatch):
    root, pixels = tree
    first = folder(root)
    first.prepare()
    assert len(caches(root.parent)) == 2  # images and labels
    monkeypatch.setattr("ddpm.data.base.square", no_decoding)
    assert (everything(folder(root))[0] == pixels).all()
    with pytest.raises(AssertionError, match="decoded"):
        folder(root, image_size=4).prepare()


def test_constructors_touch_no_file(tmp_path):
    folder(tmp_path / "nowhere" / "images")
    build("mnist", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"image_size": 4}, {"channels": 1}, {"resize_mode": "pad"}, {"background": 0}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_use_another_cache(tree, change):
    one, other = folder(tree[0]), folder(tree[0], **change)
    assert one.fingerprint != other.fingerprint
    assert one.cache_file != other.cache_file


def test_settings_without_effect_on_pixels_keep_the_cache(tree):
    one, other = folder(tree[0]), folder(tree[0], flip=True, num_classes=2)
    assert (one.fingerprint, one.cache_file) == (other.fingerprint, other.cache_file)


def test_changed_source_is_decoded_again(tree):
    root, pixels = tree
    before = folder(root)
    before.prepare()
    new = 255 - pixels[2]
    save(root / "b" / "1.png", new)
    os.utime(root / "b" / "1.png", ns=(0, time.time_ns() + 10**9))
    assert (everything(folder(root))[0][2] == new).all()
    (root / "b" / "1.png").unlink()
    after = folder(root)
    assert len(after) == 4
    assert after.fingerprint != before.fingerprint


def test_copied_folder_has_the_same_fingerprint(tree, tmp_path):
    root, _ = tree
    copy = tmp_path / "elsewhere" / "copy"
    for path in root.rglob("*.*"):
        target = copy / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert folder(root).fingerprint == folder(copy).fingerprint


@pytest.mark.parametrize("suffix", [".npy", ".labels.npy"])
@pytest.mark.parametrize("left", [0, 60, 130])  # nothing, half a header, a header and a bit
def test_damaged_cache_is_built_again(tree, caplog, suffix, left):
    root, pixels = tree
    data = folder(root)
    data.prepare()
    path = data.cache_file.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:left])
    with caplog.at_level("WARNING"):
        images, labels = everything(folder(root))
    assert (images == pixels).all()
    assert labels == [0, 0, 1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{data.cache_file} is damaged: building it again"
    ]


def test_a_cache_with_the_wrong_labels_is_built_again(tree):
    root, pixels = tree
    data = folder(root)
    data.prepare()
    np.save(data.cache_file.with_suffix(".labels.npy"), np.zeros(4, np.int64))
    assert (everything(folder(root))[0] == pixels).all()


def test_images_are_memory_mapped(tree):
    data = folder(tree[0])
    owner = data.arrays[0]
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    assert not data.arrays[0].flags.writeable


def test_pickled_dataset_is_small_and_reopens_the_map(tmp_path):
    data = build("digits", tmp_path, image_size=32)
    data.prepare()
    before = data.__getitems__([5, 7])
    frozen = pickle.dumps(data)
    assert len(frozen) < 2000
    for one, other in zip(before, pickle.loads(frozen).__getitems__([5, 7]), strict=True):
        assert torch.equal(one, other)


def test_workers_read_whole_batches(tree):
    loader = torch.utils.data.DataLoader(
        folder(tree[0]), batch_size=4, num_workers=1, collate_fn=tuple
    )
    shapes = [tuple(images.shape) for images, _ in loader]
    assert shapes == [(4, 3, 8, 8), (1, 3, 8, 8)]


def test_two_processes_build_the_cache_once(tree):
    root, pixels = tree
    Counted.built.value = 0
    data = folder(root, kind=Counted)
    processes = [fork.Process(target=data.prepare) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert Counted.built.value == 1
    assert (everything(folder(root))[0] == pixels).all()
    assert not list((root.parent / "cache").glob("*.tmp"))


def test_a_killed_process_frees_the_lock(tree):
    root, pixels = tree

    def die():
        with cache.writing(root.parent / "cache", "folder"):
            (root.parent / "cache" / f"{folder(root).cache_file.name}.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = fork.Process(target=die)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert (everything(folder(root))[0] == pixels).all()
    assert not list((root.parent / "cache").glob("*.tmp"))


# -- errors ---------------------------------------------------------------------------------------


def fails(data, *parts):
    """`prepare` fails with one to three lines that contain these parts, and leaves no cache."""
    with pytest.raises(InputError) as caught:
        data.prepare()
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for part in parts:
        assert part in message
    assert list((data.data_dir / "cache").glob("*.*")) in (
        [],
        [data.data_dir / "cache/folder.lock"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, "data.channels=2: not possible, allowed: 1, 3"),
        ({"channels": "3"}, "data.channels=3"),
        ({"image_size": 0}, "data.image_size=0: must be a whole number from 1"),
        ({"image_size": 16.0}, "data.image_size=16.0"),
        ({"image_size": True}, "data.image_size=True"),
        ({"split": "trian"}, "data.split=trian: not possible, allowed: train"),
        (
            {"resize_mode": "stretch"},
            "data.resize_mode=stretch: must be one of crop, pad, resize",
        ),
        ({"background": 256}, "data.background=256: must be a whole number from 0 to"),
        ({"num_classes": -1}, "data.num_classes=-1"),
        ({"flip": "yes"}, "data.flip=yes: must be true or false"),
    ],
)
def test_arguments_are_checked_in_the_constructor(tmp_path, change, message):
    arguments = {"channels": 1, "image_size": 16, "split": "train", "resize_mode": "resize"}
    arguments |= {"background": 0, "num_classes": 10, "flip": False, "data_dir": tmp_path}
    Digits(**arguments)
    with pytest.raises(InputError) as caught:
        Digits(**(arguments | change))
    assert message in str(caught.value)


def test_wrong_number_of_classes_is_refused(tree):
    fails(folder(tree[0], num_classes=3), "data.num_classes=3", "allowed: 2, null")
    shutil.copy(next(tree[0].rglob("*.png")), tree[0])
    fails(folder(tree[0], num_classes=2), "data.num_classes=2", "allowed: null", "below data.root")


def test_missing_root_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^data\.root: must be the folder"):
        build("folder", tmp_path).prepare()


def test_missing_folder_is_refused(tmp_path):
    fails(folder(tmp_path / "nowhere"), "data.root: there is no folder", "nowhere")


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    fails(folder(tmp_path / "images"), "data.root", str(tmp_path / "images"), "no files")
    for name in ("a.txt", "b.txt", "c.gif", "README"):
        (tmp_path / "images" / name).touch()
    fails(folder(tmp_path / "images"), "2 '.txt'", "1 '.gif'", "1 'without suffix'", ".webp")


@pytest.mark.parametrize("name", ["bad.png", "bad.jpg", "line\nbreak\x1b[31m.png"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
def test_corrupt_image_is_named(tree, name, kind):
    root, _ = tree
    whole = root.parent / f"whole{Path(name).suffix}"
    save(whole, random_pixels(64, 64, 3))
    data = whole.read_bytes()
    content = {"empty": b"", "text": b"no image", "cut": data[: len(data) // 2]}[kind]
    (root / "a" / name).write_bytes(content)
    escaped = name.replace("\n", "\\n").replace("\x1b", "\\x1b")
    fails(folder(root), "data: cannot read image", f"a/{escaped}'", "Repair or remove it")


def test_other_formats_are_refused(tree):
    save(tree[0] / "a" / "gif.png", random_pixels(8, 8), format="GIF")
    fails(folder(tree[0]), "gif.png", "not a PNG, JPEG, WebP or BMP file")


def test_dangling_link_is_named(tree):
    (tree[0] / "a" / "link.png").symlink_to("nowhere")
    fails(folder(tree[0]), "link.png", "No such file")


@pytest.mark.parametrize("limit", [50, 20])  # more than the limit, and more than twice of it
def test_huge_image_is_refused(tree, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    fails(folder(tree[0]), "1.png")


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "Free some space there"), (errno.EROFS, "Make it writable")]
)
def test_full_or_read_only_disk_is_reported(tree, monkeypatch, code, advice):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(cache.np.lib.format, "write_array_header_1_0", refuse)
    fails(
        folder(tree[0]), "cannot write to", os.strerror(code), advice, "set data_dir=", "DDPM_DATA"
    )


def test_unwritable_data_dir_is_reported(tree):
    (tree[0].parent / "cache").touch()  # a file where the folder should be
    fails(folder(tree[0]), "cannot write to", "set data_dir=")


# -- torchvision's sets, on files in its layout ---------------------------------------------------


def idx(values):
    """LeCun's format: magic number, sizes, bytes."""
    return (
        struct.pack(f">{1 + values.ndim}i", 0x0800 | values.ndim, *values.shape) + values.tobytes()
    )


def write_idx(raw):
    """All four files; returns the training images and labels."""
    raw.mkdir(parents=True)
    for stem, count in (("t10k", 3), ("train", 5)):
        images, labels = random_pixels(count, 28, 28), random_pixels(count, seed=1) % 10
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return images, labels


@pytest.mark.parametrize(("name", "raw"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read(tmp_path, name, raw):
    images, labels = write_idx(tmp_path / raw / "raw")
    found, its_labels = everything(build(name, tmp_path))
    assert (found[..., 0] == np.pad(images, ((0, 0), (2, 2), (2, 2)))).all()
    assert its_labels == labels.tolist()
    assert len(build(name, tmp_path, split="test")) == 3


def test_damaged_idx_file_is_refused(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="no MNIST in") as caught:
        build("mnist", tmp_path).prepare()
    assert "download failed" not in str(caught.value)


def test_pets_are_read_from_their_archive_layout(tmp_path):
    pets = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "beagle_2", "yorkshire_terrier_3"):
        save(pets / "images" / f"{name}.jpg", np.full((40, 60, 3), 99, np.uint8))
    save(pets / "images" / "beagle_2.jpg", np.full((40, 60, 4), 0, np.uint8), format="PNG")
    (pets / "annotations").mkdir()
    (pets / "annotations" / "trainval.txt").write_text(
        "Abyssinian_1 1 1 1\nbeagle_2 5 2 4\nyorkshire_terrier_3 37 2 25\n"
    )
    data = build("pets", tmp_path, image_size=32, background=255)
    images, labels = everything(data)
    assert [data.class_names[label] for label in labels] == [
        *("Abyssinian", "Beagle", "Yorkshire Terrier")
    ]
    assert images.shape == (3, 32, 32, 3)
    assert (images[1] == 255).all()  # a transparent PNG under a JPEG's name, as the set has some
    assert np.abs(images[0].astype(int) - 99).max() <= 1
    (pets / "annotations" / "test.txt").write_text("beagle_2 5 2 4\n")
    every = build("pets", tmp_path, image_size=32, split="all")
    assert everything(every)[1] == [*labels, labels[1]]
    assert every.held_out() is None
    assert every.fingerprint != build("pets", tmp_path, image_size=32).fingerprint


def checksum(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_celeba_is_read_from_its_archive_layout(tmp_path, monkeypatch):
    """On three faces of our own, whose checksums replace the official ones."""
    ramp = np.tile(np.arange(178, dtype=np.uint8)[None, :, None], (218, 1, 3))
    rows = [("train", True, False), ("test", True, True), ("train", False, True)]
    fake_celeba(tmp_path, monkeypatch, [(*row, ramp) for row in rows])
    images, labels = everything(build("celeba", tmp_path, image_size=70))
    assert labels == [0, 0]
    middles = 19 + np.arange(70) * 2 + 0.5  # the centre 140 of 178
    assert np.abs(images[0, ..., 0] - middles).max() <= 2
    whole = build("celeba", tmp_path, image_size=70, center_crop=None)
    assert whole.cache_file != build("celeba", tmp_path, image_size=70).cache_file
    assert np.abs(everything(whole)[0][0, :, 0, 0] - 0.77).max() <= 1
    smiling = build("celeba", tmp_path, image_size=8, attribute="Smiling", num_classes=2)
    assert everything(smiling)[1] == [0, 1]
    both = build("celeba", tmp_path, image_size=8, attribute=["Male", "Smiling"])
    assert both.class_names == [
        *("not Male, not Smiling", "not Male, Smiling", "Male, not Smiling", "Male, Smiling")
    ]
    assert everything(both)[1] == [2, 1]
    assert len({smiling.cache_file, both.cache_file, whole.cache_file}) == 3
    with pytest.raises(InputError, match=r"data\.attribute=Smilling.*Did you mean 'Smiling'"):
        build("celeba", tmp_path, attribute="Smilling")
    with pytest.raises(InputError, match=r"data\.center_crop=0"):
        build("celeba", tmp_path, center_crop=0)


def test_cifar10_is_read_from_its_batches(tmp_path, monkeypatch):
    """On six batches of our own, whose checksums replace the official ones."""
    from torchvision.datasets import CIFAR10

    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    pixels = random_pixels(6, 2, 3, 32, 32)
    for i, name in enumerate(names):
        batch = {"data": pixels[i].reshape(2, -1), "labels": [i, 9 - i]}
        (batches / name).write_bytes(pickle.dumps(batch))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    sums = [[name, checksum(batches / name)] for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": checksum(batches / "batches.meta")})
    images, labels = everything(build("cifar10", tmp_path))
    assert (images == pixels[:5].reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)).all()
    assert labels == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    images, labels = everything(build("cifar10", tmp_path, split="test"))
    assert (images == pixels[5].transpose(0, 2, 3, 1)).all()


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("mnist", ["-images-idx3-ubyte.gz", "https://", "MNIST/raw"]),
        ("fashion_mnist", ["-labels-idx1-ubyte.gz", "https://", "FashionMNIST/raw"]),
        ("cifar10", ["cifar-10-python.tar.gz", "https://"]),
        ("celeba", ["img_align_celeba.zip", "list_eval_partition.txt", "https://", "celeba"]),
        ("pets", ["images.tar.gz", "annotations.tar.gz", "https://", "oxford-iiit-pet"]),
    ],
)
def test_failed_download_names_the_file_to_fetch(tmp_path, monkeypatch, name, by_hand):
    from urllib.error import URLError

    from torchvision.datasets import celeba, cifar, mnist, oxford_iiit_pet

    def offline(*_, **__):
        raise URLError("Name or service not known")

    for module in (mnist, cifar, oxford_iiit_pet):
        monkeypatch.setattr(module, "download_and_extract_archive", offline)
    monkeypatch.setattr(celeba, "download_file_from_google_drive", offline)
    with pytest.raises(InputError) as caught:
        build(name, tmp_path).prepare()
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for part in [str(tmp_path), "download failed", "not known", "By hand", *by_hand]:
        assert part in message
    assert not list(tmp_path.rglob("*.npy"))


# -- the real files, where they are ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "raw", "mean"),
    [
        ("mnist", "MNIST", 33.3),
        ("fashion_mnist", "FashionMNIST", 72.9),
    ],
)
def test_real_idx_archives_are_read(tmp_path, name, raw, mean):
    archives = list((REAL / raw / "raw").glob("*-ubyte.gz"))
    if len(archives) < 4:
        pytest.skip(f"no {raw} in data/")
    (tmp_path / raw / "raw").mkdir(parents=True)
    for path in archives:
        (tmp_path / raw / "raw" / path.name).symlink_to(path)
    data = build(name, tmp_path)
    data.prepare()
    images, labels = data.arrays
    assert images.shape == (60000, 1, 32, 32)
    assert images[:, :, 2:-2, 2:-2].mean() == pytest.approx(mean, abs=0.1)
    assert not images[:, :, :2].any()
    with gzip.open(REAL / raw / "raw" / "train-labels-idx1-ubyte.gz") as file:
        assert file.read()[8:] == labels.astype(np.uint8).tobytes()


def test_real_pets_are_read(tmp_path):
    if not (REAL / "oxford-iiit-pet" / "images").is_dir():
        pytest.skip("no oxford-iiit-pet in data/")
    (tmp_path / "oxford-iiit-pet").symlink_to(REAL / "oxford-iiit-pet")
    data = build("pets", tmp_path)
    images, labels = everything(data)
    assert images.shape == (len(data), 64, 64, 3)
    assert len(data) >= 640
    for index in (0, len(data) // 2, len(data) - 1):  # a breed's name begins its files' names
        listing = REAL / "oxford-iiit-pet" / "annotations" / "trainval.txt"
        breed = listing.read_text().splitlines()[index].split()[0].rpartition("_")[0]
        assert data.class_names[labels[index]].lower() == breed.replace("_", " ").lower()
    assert len(set(labels)) == 37


# -- conf/data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf" / "data").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_data_option_of_conf_builds(tmp_path, path):
    key = next((key for key in ("root", "path", "shards") if key in OmegaConf.load(path)), None)
    changes = {key: str(tmp_path)} if key else {}
    data = build(path.stem, tmp_path, **changes)
    assert data.name == path.stem
    config = OmegaConf.load(path)
    assert (data.channels, data.image_size) == (config.channels, config.image_size)
    assert data.num_classes == config.num_classes
    assert type(data.flip) is bool


@pytest.mark.slow
def test_large_dataset_is_read_without_filling_memory(tmp_path, monkeypatch):
    """The same images as through the map, but the file does not count as memory of the process."""
    data = Large(tmp_path, 8000)
    index = [7999, 0, 5, 5, 4000]
    with_map = data.__getitems__(index)[0]
    monkeypatch.setattr(cache, "LARGE", 1000)
    data = pickle.loads(pickle.dumps(Large(tmp_path, 8000)))
    assert torch.equal(data.__getitems__(index)[0], with_map)
    assert with_map[:, 0, 0, 0].tolist() == [n % 251 for n in index]
    data = pickle.loads(pickle.dumps(data))  # with the file open
    before = resident()
    for first in range(0, 8000, 100):
        data.__getitems__(range(first, first + 100))
    grown = {name: size - before[name] for name, size in resident().items()}
    assert grown["RssFile"] < 10
    assert grown["RssAnon"] < 10  # of 98 MB
    os.truncate(data.cache_file, 90_000_000)
    with pytest.raises(InputError, match="has lost its end"):
        data.__getitems__([0, 7999])


def resident():
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file if line.startswith("Rss"))
    return {name: int(rows[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}
