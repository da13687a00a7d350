"""Realistic folders of images: cyclic links, folders that cannot be listed, runs among the images,
other endings, damaged files, and files that the machine cannot read now."""

import errno
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.base import TINY

from ddpm.data import base, cache, decode
from ddpm.data.digits import Digits
from ddpm.data.folder import Folder
from ddpm.errors import InputError
from ddpm.jobs.sampling import read_picture
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell

CLASSES = ("cats", "dogs")


def folder(root, **changes):
    """A `Folder` of `root` with its cache beside it."""
    settings = {"channels": 3, "image_size": 8, "num_classes": None, "resize_mode": "resize"}
    settings |= {"split": "train", "background": 255, "flip": False, "root": root}
    return Folder(**({"data_dir": Path(root).parent} | settings | changes))


def save(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, 0, 0)).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Six images in two classes, each of another grey level."""
    for i, kind in enumerate(CLASSES):
        for j in range(3):
            save(tmp_path / "pics" / kind / f"{j}.png", 10 * i + j)
    return tmp_path / "pics"


def levels(data):
    return data.arrays[0][:, 0, 0, 0].tolist()


ALL = [0, 1, 2, 10, 11, 12]


def refusing(monkeypatch, name, code):
    """Make the listing of folders of this name fail."""
    scandir = os.scandir

    def refuse(path="."):
        if Path(os.fsdecode(path)).name == name:
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


# -- links in circles -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "links",
    [
        {"cats/back": ".."},
        {"cats/back": "..", "dogs/back": ".."},
        {"cats/back": "../..", "dogs/back": "../../pics/dogs"},
        {"cats/self": "."},
        {"kitty": "cats"},
        {"a": "b/..", "b": "a/../cats"},
    ],
    ids=lambda links: " ".join(f"{a}={b}" for a, b in links.items()),
)
def test_each_folder_is_read_once(root, links, caplog):
    for name, target in links.items():
        (root / name).symlink_to(target)
    data = folder(root)
    assert levels(data) == ALL
    assert data.class_names == list(CLASSES), "by their real names"
    assert any("read once" in line for line in caplog.messages) is (
        "a" not in links  # a cycle of links without a folder
    )


def test_a_warning_names_omitted_folders(root, caplog):
    for i in range(7):
        (root / "dogs" / f"back{i}").symlink_to("..")
    data = folder(root)
    data.prepare()
    len(data)
    (line,) = caplog.messages
    assert "7 folders (dogs/back0, dogs/back1, " in line
    assert "and 2 more)" in line
    assert str(root) in line


def test_links_to_other_folders_are_followed(root, tmp_path, caplog):
    save(tmp_path / "elsewhere" / "deep" / "x.png", 99)
    (root / "birds").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    data = folder(root)
    assert sorted(levels(data)) == [*ALL, 99]
    assert "again" in data.class_names, "of two links the first one, by name"


def test_a_link_to_the_parent_folder_is_followed_once(root, caplog):
    """Its other folders are read; the one with the link only once."""
    (root / "cats" / "back").symlink_to("..")
    assert levels(folder(root / "cats")) == [0, 1, 2, 10, 11, 12]


def test_folders_without_inodes_are_identified_by_path(root, monkeypatch):
    """On some file systems every inode is 0."""
    stat = os.stat

    def unnumbered(path, **options):
        found = list(stat(path, **options))
        found[1] = 0
        return os.stat_result(found)

    (root / "cats" / "back").symlink_to("..")
    monkeypatch.setattr(listing.os, "stat", unnumbered)
    assert len(folder(root).files("train")) == 6


def test_link_cycle_is_ignored(root):
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert levels(folder(root)) == ALL


# -- folders that cannot be listed ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["pics", "cats", "deep"])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_folder_that_cannot_be_listed_is_refused(root, monkeypatch, name, code):
    save(root / "dogs" / "deep" / "x.png")
    refusing(monkeypatch, name, code)
    with pytest.raises(InputError) as caught:
        folder(root).prepare()
    assert name in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert "data.root" in str(caught.value)
    assert not (root.parent / "cache").exists()


def test_a_folder_removed_while_it_is_listed_is_refused(root, monkeypatch):
    refusing(monkeypatch, "cats", errno.ENOENT)
    with pytest.raises(InputError, match="cats"):
        folder(root).prepare()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES, errno.ENOTCONN])
def test_link_to_an_unreachable_disk_is_refused(root, monkeypatch, code):
    """It is unknown whether the link points to a folder or to a file."""
    (root / "mount").symlink_to("cats")
    is_folder = listing.is_folder

    class Gone:
        def __init__(self, entry):
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink

        def is_dir(self):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(
        listing, "is_folder", lambda e: is_folder(Gone(e) if e.name == "mount" else e)
    )
    with pytest.raises(InputError, match=f"mount.*{os.strerror(code)}"):
        folder(root).prepare()


def test_file_whose_metadata_cannot_be_read_is_refused(root, monkeypatch):
    stat = os.stat

    def refuse(path, **options):
        if str(path).endswith("cats/1.png"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(path, **options)

    monkeypatch.setattr(listing.os, "stat", refuse)
    with pytest.raises(InputError, match=r"cats/1\.png: cannot be looked at \(Stale file handle"):
        folder(root).prepare()


def test_unreadable_cache_is_not_rebuilt(root, monkeypatch):
    data = folder(root)
    data.prepare()
    before = data.cache_file.read_bytes()

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(cache.np, "load", refuse)
    with pytest.raises(InputError, match=r"\.npy: cannot be read \(Too many open files"):
        folder(root).prepare()
    assert data.cache_file.read_bytes() == before


# -- runs among the images ------------------------------------------------------------------------

IMAGES = ["data=folder", "data.root=pics", "data.image_size=8", "data.flip=false"]
SHORT = [*TINY, "job.max_steps=2", "job.num_samples=2"]


def fingerprint_of(run_folder, step):
    file = run_folder / "checkpoints" / f"step-{step:07d}.pt"
    return torch.load(file, weights_only=True)["data"]


def test_run_folder_among_images_is_skipped_and_resumes(run, root):
    """Also a run older than the key `data.on_error`."""
    status, out, err = run(*SHORT, *IMAGES, "output_dir=pics/results")
    assert status == 0, out + err
    assert list((root / "results" / "samples").glob("*.png"))
    assert levels(folder(root)) == ALL
    assert folder(root).class_names == list(CLASSES)
    config = yaml.safe_load((root / "results" / "config.yaml").read_text())
    del config["data"]["on_error"]
    (root / "results" / "config.yaml").write_text(yaml.safe_dump(config))
    status, out, err = run("resume=pics/results", "job.max_steps=3", "data.on_error=skip")
    assert status == 2
    assert "data.on_error=skip: resume=pics/results was trained with stop" in err
    status, out, err = run("resume=pics/results", "job.max_steps=3")
    assert status == 0, out + err
    assert "they hold runs: 1 folder (results)" in out + err
    assert fingerprint_of(root / "results", 2) == fingerprint_of(root / "results", 3)


def test_sweep_and_samples_among_images_are_skipped(run, root):
    before = folder(root).fingerprint
    status, out, err = run(*SHORT, *IMAGES, "-m", "sweep=pics/sweep", "seed=1")
    assert status == 0, out + err
    status, out, err = run(
        *("job=sample", "checkpoint=pics/sweep/0-convnet-folder", "output_dir=pics/cats/drawn"),
        *("tracker=local", "hardware=cpu", "job.num_samples=2", "sampler.steps=1"),
    )
    assert status == 0, out + err
    assert len(list(root.rglob("samples/*.png"))) == 3
    assert levels(folder(root)) == ALL
    assert folder(root).fingerprint == before


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    ("output", "images"),
    [
        ("pics", "pics"),
        ("cats/../pics", "pics"),
        ("link", "pics"),
        ("pics", "link"),
        (".", "samples"),
        ("own", "own/samples"),
        ("own", "own/samples/deep"),
        ("own", "own/wandb"),
    ],
)
def test_run_cannot_write_into_its_images(run, root, tmp_path, output, images):
    (tmp_path / "link").symlink_to("pics")
    (tmp_path / "cats").mkdir()
    for place in ("samples", "own/samples/deep", "own/wandb"):
        save(tmp_path / place / "x.png")
    status, out, err = run(*SHORT, "data=folder", f"data.root={images}", f"output_dir={output}")
    assert status == 2, out + err
    assert shell.word("output_dir", output) in err
    assert "data.root=" in err
    assert len(err.splitlines()) == 2
    assert not list(tmp_path.rglob("config.yaml"))


def test_images_beside_run_folders_are_read(run, root):
    before = folder(root).fingerprint
    status, out, err = run(*SHORT, *IMAGES, "output_dir=.", "data_dir=pics")
    assert status == 0, out + err
    assert list((root / "cache").glob("*.npy"))
    for data_dir in ("pics", root):
        data = folder(root, data_dir=data_dir)
        assert data.fingerprint == before
        assert data.notes == [], "what our own cache holds is nobody's affair"


def test_old_run_in_its_image_folder_resumes_once_the_images_are_moved(run, root, tmp_path):
    """Older versions allowed it; its previews are now images of the data set."""
    status, out, err = run(*SHORT, *IMAGES, "output_dir=old")
    assert status == 0, out + err
    config = yaml.safe_load((tmp_path / "old" / "config.yaml").read_text())
    for file in list((tmp_path / "old").iterdir()):
        file.rename(root / file.name)
    config["data"]["root"] = str(root)
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    status, out, err = run("resume=pics", "job.max_steps=3")
    assert status == 2, out + err
    assert "resume=pics" in err
    assert "Move the images" in err
    assert "allow_changes" not in err
    for kind in CLASSES:
        (tmp_path / "moved").mkdir(exist_ok=True)
        (root / kind).rename(tmp_path / "moved" / kind)
    status, out, err = run("resume=pics", "job.max_steps=3", "data.root=moved")
    assert status == 0, out + err


def test_run_folder_is_no_dataset_but_its_samples_are(root):
    save(root / "samples" / "000000.png", 77)
    (root / "config.yaml").write_text("{}")
    assert sorted(levels(folder(root))) == [*ALL, 77], "a configuration alone is no run"
    (root / "status.json").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a run"):
        folder(root).prepare()
    assert levels(folder(root / "samples")) == [77]


# -- endings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jfif", "jpe", "JPE", "jpeg", "JPG"])
def test_all_jpeg_suffixes_are_read(root, ending):
    Image.new("RGB", (8, 8)).save(root / "cats" / f"x.{ending}", "JPEG")
    assert len(folder(root)) == 7


def test_unknown_suffixes_are_counted_in_a_warning(root, caplog):
    for name in ("a.gif", "b.GIF", "c.tiff", "notes.txt", "README", "._a.png", "d.esc\x1b"):
        (root / "dogs" / name).write_bytes(b"x")
    assert levels(folder(root)) == ALL
    (line,) = caplog.messages
    assert "left out by their endings: 2 '.gif', 1 " in line
    assert "1 '.tiff'" in line
    assert "1 'without suffix'" in line
    assert "\x1b" not in line


def test_no_warning_for_a_folder_of_images(root, caplog):
    folder(root).prepare()
    assert caplog.messages == []


# -- damaged pictures -----------------------------------------------------------------------------


def damage(root, *names):
    for name in names:
        (root / name).write_bytes(b"no picture")


def test_all_damaged_images_are_named_at_once(root):
    damage(root, "cats/a.png", "cats/\x1b.png", "dogs/z.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dogs" / "cut.png")
    os.truncate(root / "dogs" / "cut.png", 1000)
    with pytest.raises(InputError) as caught:
        folder(root).prepare()
    message = str(caught.value)
    assert "4 of 10 images" in message
    for name in ("'cats/a.png'", r"'cats/\x1b.png'", "'dogs/z.jpg'", "'dogs/cut.png'"):
        assert name in message
    assert "data.on_error=skip" in message
    assert len(message.splitlines()) <= 5
    assert not list((root.parent / "cache").glob("*.npy*"))


@pytest.mark.parametrize("count", [20, 21, 300])
def test_at_most_twenty_damaged_images_are_named(root, count):
    damage(root, *(f"cats/bad{i:03d}.png" for i in range(count)))
    with pytest.raises(InputError) as caught:
        folder(root).prepare()
    message = str(caught.value)
    assert message.count("bad") == 20
    assert f"{count} of {count + 6} images" in message
    assert ("and 1 more" in message) is (count == 21)
    assert ("and 280 more" in message) is (count == 300)


def test_a_single_damaged_file_is_named_with_the_remedy(root):
    damage(root, "cats/a.png")
    with pytest.raises(InputError, match=r"Repair or remove it\..* data\.on_error=skip"):
        folder(root).prepare()


def test_skipping_is_not_advised_where_no_image_is_left(root):
    with pytest.raises(InputError, match="6 of 6 images") as caught:
        folder(root, channels=5).prepare()
    assert "on_error" not in str(caught.value)


def test_damaged_images_are_skipped_on_request(root, caplog):
    whole = folder(root, on_error="skip")
    whole.prepare()
    assert caplog.messages == []
    damage(root, "cats/a.png", "dogs/0.png")
    data = folder(root, on_error="skip", num_classes=2)
    assert levels(data) == [0, 1, 2, 11, 12]
    assert data.arrays[1].tolist() == [0, 0, 0, 1, 1]
    assert data.skipped == ["cats/a.png", "dogs/0.png"]
    (line,) = caplog.messages
    assert "left out 2 of 7 images" in line
    assert "'cats/a.png', 'dogs/0.png'" in line
    assert data.fingerprint != whole.fingerprint


def test_warning_is_repeated_when_the_cache_is_used(root, caplog, monkeypatch):
    damage(root, "cats/a.png")
    first = folder(root, on_error="skip")
    first.prepare()
    caplog.clear()
    monkeypatch.setattr(base, "square", None)  # nothing is decoded
    again = folder(root, on_error="skip")
    assert levels(again) == ALL
    assert "left out 1 of 7 images" in caplog.text
    assert again.fingerprint == first.fingerprint


def test_fingerprint_depends_on_skipped_files(root, monkeypatch):
    """The same files, but another one cannot be read."""
    one = folder(root, on_error="skip")
    one.prepare()
    open_image = base.open_image

    def fail(path):
        if path.name == "1.png":
            raise decode.Unreadable(path, "too new")
        return open_image(path)

    monkeypatch.setattr(base, "open_image", fail)
    other = folder(root, on_error="skip", data_dir=root.parent / "elsewhere")
    assert len(other) == 4
    assert other.fingerprint != one.fingerprint
    assert other.cache_file.name == one.cache_file.name


@pytest.mark.parametrize("part", [".npy", ".labels.npy", ".skipped.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"7"])
def test_damaged_cache_with_skipped_images_is_rebuilt(root, part, content):
    damage(root, "cats/a.png")
    data = folder(root, on_error="skip")
    data.prepare()
    data.cache_file.with_suffix(part).write_bytes(content)
    again = folder(root, on_error="skip")
    assert levels(again) == ALL
    assert json.loads(data.cache_file.with_suffix(".skipped.json").read_text()) == ["cats/a.png"]


def test_folder_of_damaged_files_is_refused(root):
    for file in root.rglob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"cannot read 6 of 6 images[\s\S]* None is left"):
        folder(root, on_error="skip").prepare()


@pytest.mark.slow
def test_a_run_resumes_without_damaged_images(run, root):
    damage(root, "cats/a.png", "cats/b.png")
    status, out, err = run(*SHORT, *IMAGES, "output_dir=run")
    assert status == 2
    assert "'cats/a.png'" in err
    assert "'cats/b.png'" in err
    assert not Path("run").exists()
    status, out, err = run(*SHORT, *IMAGES, "output_dir=run", "data.on_error=skip")
    assert status == 0, out + err
    assert "left out 2 of 8 images" in out + err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["on_error"] == "skip"
    status, out, err = run("resume=run", "job.max_steps=3")
    assert status == 0, out + err
    damage(root, "cats/c.png")
    status, out, err = run("resume=run", "job.max_steps=4")
    assert status == 2, out + err
    assert "the data set differs" in err


@pytest.mark.parametrize("value", ["no", "Skip", "null", "[skip]"])
def test_invalid_on_error_is_refused(run, root, value):
    status, _, err = run(*SHORT, *IMAGES, f"data.on_error={value}")
    assert status == 2
    assert "data.on_error=" in err
    assert "stop, skip" in err


# -- what is not the fault of a picture -----------------------------------------------------------


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "too many files open"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Free some memory"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "the disk or the network"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "the disk or the network"),
        (OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), "the disk or the network"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "Make it readable"),
        (MemoryError(), "Free some memory"),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("where", ["open", "load"])
def test_operating_system_errors_do_not_count_as_damage(
    root, monkeypatch, where, error, advice, on_error
):
    """Nor is the image skipped with on_error=skip."""

    def fail(*_, **__):
        raise error

    if where == "open":
        monkeypatch.setattr(decode.Image, "open", fail)
    else:
        monkeypatch.setattr(decode, "convert", fail)
    with pytest.raises(InputError) as caught:
        folder(root, on_error=on_error).prepare()
    message = str(caught.value)
    assert "not the image's fault" in message
    assert advice in message
    assert "remove" not in message
    assert len(message.splitlines()) == 1
    assert not list((root.parent / "cache").glob("*.npy*"))


def test_operating_system_error_is_not_reported_as_a_damaged_job_image(root, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(decode.Image, "open", fail)
    with pytest.raises(InputError, match=r"job\.image: cannot read image .* not the image"):
        read_picture("job.image", str(root / "cats" / "0.png"), folder(root).read, " Another hint.")


def test_decoding_needs_few_open_files(root):
    for i in range(150):
        save(root / "cats" / f"more{i}.png")
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
    try:
        assert len(folder(root)) == 156
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_file_limit_is_reported(root):
    held = [open(os.devnull) for _ in range(3)]  # noqa: SIM115
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd")))
    for file in held:
        file.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(InputError, match="may have 1 files open"):
            folder(root).read(root / "cats" / "0.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert most < soft


# -- the cache ------------------------------------------------------------------------------------

KEY = "0123456789abcdef"


@pytest.mark.parametrize("built", [False, True], ids=["build", "there already"])
def test_leftovers_of_interrupted_builds_are_removed(root, built):
    if built:
        folder(root).prepare()
    where = root.parent / "cache"
    where.mkdir(exist_ok=True)
    ours = [f"folder-train-64-{KEY}{end}" for end in (".npy", ".labels.npy", ".skipped.json")]
    ours.append(f"folder-test-64-{KEY}.npy")
    others = [f"pets-train-64-{KEY}.npy", f"folder-two-train-64-{KEY}.npy", "folder-train-64.npy"]
    others += [f"folder-valid-64-{KEY}.npy", f"my-folder-train-64-{KEY}.npy", "folder"]
    for name in (*ours, *others):
        (where / f"{name}.tmp").write_bytes(b"half")
    (where / f"folder-train-64-{KEY}.npy").write_bytes(b"whole")
    folder(root).prepare()
    left = {path.name for path in where.glob("*.tmp")}
    assert left == {f"{name}.tmp" for name in others}
    assert (where / f"folder-train-64-{KEY}.npy").exists()


def test_running_build_is_not_removed(root):
    folder(root).prepare()
    file = root.parent / "cache" / f"folder-train-64-{KEY}.npy.tmp"
    file.write_bytes(b"being written")
    with cache.writing(root.parent / "cache", "folder"):
        began = time.monotonic()
        folder(root).prepare()
        assert time.monotonic() - began < 60, "nobody waits for it"
    assert file.exists()
    folder(root).prepare()
    assert not file.exists()


def test_a_cache_that_cannot_be_listed_is_still_used(root, monkeypatch, caplog):
    folder(root).prepare()
    refusing(monkeypatch, "cache", errno.EACCES)
    assert levels(folder(root)) == ALL
    assert "cache: cannot be listed (Permission denied)" in caplog.text


# -- data that were there before ------------------------------------------------------------------


def test_fingerprints_of_older_versions_are_kept(tmp_path, monkeypatch):
    """Computed by the version before `data.on_error`. Its caches are rebuilt because it decoded
    some images wrongly, not because of the settings."""
    assert base.CACHE_VERSION == 2
    monkeypatch.setattr(base, "CACHE_VERSION", 1)
    for i, name in enumerate(["a/1.png", "a/2.PNG", "b/1.bmp", "b/deep/0.bmp"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(range(i + 10)))
        os.utime(path, ns=(0, 10**18))
    colour = folder(tmp_path / "images")
    assert colour.fingerprint == (
        "efd1d85845a58210034c06f2d9e078e81fc25c995097248c0540d5ea07bea956"
    )
    assert colour.cache_file.name == "folder-train-8-2ac8306c7a2940e2.npy"
    grey = folder(tmp_path / "images", resize_mode="pad", background=0, channels=1, image_size=4)
    assert grey.fingerprint == "3f2740d3fbadaa2e1561d50c50181e246a1d3183cf1c867e9943dc18defa9925"
    assert grey.cache_file.name == "folder-train-4-fa7d4b0efbd11564.npy"
    settings = {"channels": 1, "image_size": 16, "num_classes": 10, "resize_mode": "resize"}
    digits = Digits(data_dir=tmp_path, split="train", background=0, flip=False, **settings)
    assert digits.fingerprint == (
        "40fc05f62e9c4f83725bf6c2a69830442446a6e4263a716dbc44a4a9e2e3c4b1"
    )
    assert digits.cache_file.name == "digits-train-16-a148a3a556afda7a.npy"


def test_grey_png_pixels_are_unchanged(root):
    grid = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grid).save(root / "cats" / "grey.png")
    images = folder(root).arrays[0]
    assert (images[3] == grid).all()


def test_broken_links_are_reported(root, tmp_path):
    (root / "loop").symlink_to("loop")
    (root / "gone").symlink_to(tmp_path / "unmounted")
    made = folder(root)
    made.files("train")
    assert any("2 links (gone, loop)" in note for note in made.notes)
