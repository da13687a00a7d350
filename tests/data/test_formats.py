"""The same pictures from a folder, a zip file, a parquet table, tar shards and a saved data set of
Hugging Face: the same pixels, labels and splits. And archives that must not be read."""

import io
import json
import stat
import tarfile
import zipfile
import zlib

import pytest
from PIL import Image
from support.image_sets import build, everything, random_pixels

from ddpm.data import webdataset
from ddpm.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
CLASSES = ("0", "1", "2")
FORMATS = ("folder", "zip", "parquet", "webdataset", "hf")


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)


def labelled(items):
    return json.dumps({"labels": [[name, label] for name, _, label in items]}).encode()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Forty pictures in three classes, in five forms: what `build` needs for each."""
    root = tmp_path_factory.mktemp("sources")
    items = [
        (f"{n % 3}/{n:02d}.png", png(pixels), n % 3)
        for n, pixels in enumerate(random_pixels(40, 8, 8, 3))
    ]
    items.sort()
    for name, content, _ in items:
        (root / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pics" / name).write_bytes(content)
    write_zip(
        root / "pics.zip",
        [*((name, content) for name, content, _ in items), ("dataset.json", labelled(items))],
    )
    rows = [{"bytes": content, "path": name} for name, content, _ in items]
    labels = [label for *_, label in items]
    pq.write_table(pa.table({"image": rows, "label": labels}), root / "a.parquet", row_group_size=7)
    for shard in range(3):
        members = [
            member
            for name, content, label in items[shard * 15 : (shard + 1) * 15]
            for member in ((name, content), (f"{name[:-4]}.cls", str(label).encode()))
        ]
        write_tar(root / f"s-{shard}.tar", members)
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict(
        {"image": rows, "label": labels}, features=datasets.Features(features)
    )
    table.save_to_disk(str(root / "saved"))
    return {
        "folder": {"root": str(root / "pics")},
        "zip": {"path": str(root / "pics.zip")},
        "parquet": {"path": str(root / "*.parquet")},
        "webdataset": {"shards": str(root / "s-{0..2}.tar")},
        "hf": {"path": str(root / "saved")},
    }


def opened(sources, kind, folder, **changes):
    return build(kind, folder, image_size=8, num_classes=3, holdout=0.3, **sources[kind], **changes)


@pytest.mark.parametrize("kind", FORMATS)
def test_five_formats_give_the_same_images(sources, kind, tmp_path):
    data, plain = (opened(sources, name, tmp_path) for name in (kind, "folder"))
    assert data.class_names == list(CLASSES)
    assert data.pixels == plain.pixels
    assert data.held_out().pixels == plain.held_out().pixels != data.pixels
    assert (
        len(data) + len(data.held_out()),
        len(opened(sources, kind, tmp_path, split="all")),
    ) == (
        40,
        40,
    )
    again = opened(sources, kind, tmp_path)  # from the cache, with the classes beside it
    assert (again.class_names, again.fingerprint) == (data.class_names, data.fingerprint)
    assert again.cache_file == data.cache_file


def test_labels_are_the_same_in_every_format(sources, tmp_path):
    names = {kind: everything(opened(sources, kind, tmp_path))[1] for kind in FORMATS}
    assert len({tuple(labels) for labels in names.values()}) == 1
    assert set(names["folder"]) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_named_label_column_must_exist(sources, tmp_path, kind):
    match = r"data\.label_column=labell: .*label.*Did you mean 'label'"
    refused(kind, tmp_path, match, **sources[kind], label_column="labell")
    assert opened(sources, kind, tmp_path, label_column=None).class_names is None


def test_default_label_column_may_be_missing(tmp_path):
    images = [{"bytes": png(p), "path": None} for p in random_pixels(3, 8, 8, 3)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    data = build("parquet", tmp_path, path=str(tmp_path / "a.parquet"), image_size=8, holdout=0)
    assert len(data) == 3


def test_labels_may_be_class_names(tmp_path):
    images = [{"bytes": png(p), "path": None} for p in random_pixels(3, 8, 8, 3)]
    table = pa.table({"image": images, "label": ["dog", "cat", "dog"]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = build("parquet", tmp_path, path=str(tmp_path / "a.parquet"), image_size=8, holdout=0)
    assert (everything(data)[1], data.class_names) == ([1, 0, 1], ["cat", "dog"])


def test_shards_may_be_named_by_split(tmp_path):
    images = [png(pixels) for pixels in random_pixels(5, 8, 8, 3)]
    for name, chosen in {
        "train-0": images[:2],
        "train-1": images[2:3],
        "val-0": images[3:],
    }.items():
        write_tar(tmp_path / f"{name}.tar", [(f"{i}.png", c) for i, c in enumerate(chosen)])
    where = {"shards": str(tmp_path), "image_size": 8, "splits": "named"}
    data = build("webdataset", tmp_path / "c", **where)
    assert (len(data), len(data.held_out())) == (3, 2)
    assert data.fingerprint != data.held_out().fingerprint
    with pytest.raises(InputError, match="no file of split=test"):
        build("webdataset", tmp_path / "c", **where, split="test").prepare()


# -- what cannot be read: a line, and nothing in the cache

PICTURE = png(random_pixels(8, 8, 3))


def refused(kind, folder, match, **where):
    data = build(kind, folder / "cache", image_size=8, **where)
    with pytest.raises(InputError, match=match) as caught:
        data.prepare()
    assert len(str(caught.value).splitlines()) <= 5
    left = folder / "cache" / "cache"
    assert not left.exists() or not [p for p in left.iterdir() if p.suffix != ".lock"]


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


TARS = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1700]),
    "no tar": lambda path: path.write_bytes(b"x" * 4096),
    "followed": lambda path: path.write_bytes(path.read_bytes() * 2),
}


@pytest.mark.parametrize("case", TARS)
def test_a_damaged_shard_is_refused(tmp_path, case):
    write_tar(tmp_path / "a.tar", [(f"{i}.png", PICTURE) for i in range(30)])
    TARS[case](tmp_path / "a.tar")
    refused("webdataset", tmp_path, r"cannot read.*a\.tar", shards=str(tmp_path / "a.tar"))


def test_damaged_header_in_a_shard_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{i}.png", PICTURE) for i in range(3)])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    second = content.index(b"1.png")
    content[second : second + 200] = b"\xff" * 200
    (tmp_path / "a.tar").write_bytes(content)
    refused("webdataset", tmp_path, r"cannot read.*a\.tar", shards=str(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", ["zip", "webdataset"])
def test_hidden_files_in_archives_are_left_out(tmp_path, kind):
    """As macOS packs them: each file with another one of its own, which is no picture."""
    members = [("./._a.png", b"\0\5\x16\7"), ("./a.png", png(random_pixels(1, 8, 8, 3)[0]))]
    if kind == "zip":
        file = tmp_path / "a.zip"
        write_zip(file, [*members, ("__MACOSX/._a.png", b"\0"), (".git/b.png", b"")])
        data = build("zip", tmp_path, path=str(file))
    else:
        file = tmp_path / "a.tar"
        write_tar(file, [*members, ("./._a.cls", b"\0"), ("./a.cls", b"2")])
        data = build("webdataset", tmp_path, shards=str(file), num_classes=3)
    assert len(data) == 1
    assert data[0][1] == (0 if kind == "zip" else 2)


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a/../../up.png", "C:\\up.png"])
def test_names_outside_of_the_archive_are_refused(tmp_path, name):
    write_tar(tmp_path / "a.tar", [(name, PICTURE)])
    write_zip(tmp_path / "a.zip", [(name, PICTURE)])
    refused("webdataset", tmp_path, "is named", shards=str(tmp_path / "a.tar"))
    refused("zip", tmp_path, "is named", path=str(tmp_path / "a.zip"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_archives_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(link("a.png", kind))
    refused("webdataset", tmp_path, "is a link or no file", shards=str(tmp_path / "a.tar"))
    info = zipfile.ZipInfo("a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    write_zip(tmp_path / "a.zip", [(info, b"/etc/passwd")])
    refused("zip", tmp_path, "is a link", path=str(tmp_path / "a.zip"))


def test_decompression_bomb_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm.data.zip.MAX_MEMBER", 10_000)
    monkeypatch.setattr(webdataset, "MAX_MEMBER", 10_000)
    bomb = b"\0" * 20_000
    write_zip(tmp_path / "a.zip", [("a.png", bomb)], compression=zipfile.ZIP_DEFLATED)
    write_tar(tmp_path / "a.tar", [("a.png", bomb)])
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    # The limit is a default argument as well.
    from ddpm.data import zip as zip_data

    monkeypatch.setattr(zip_data.member, "__defaults__", (10_000,))
    refused("zip", tmp_path, "holds 20,000 bytes", path=str(tmp_path / "a.zip"))
    refused("webdataset", tmp_path, "holds 20,000 bytes", shards=str(tmp_path / "a.tar"))


def test_member_larger_than_its_header_is_refused(tmp_path):
    write_zip(tmp_path / "a.zip", [("a.png", PICTURE), ("b.png", PICTURE)])
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(PICTURE) + 40] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    refused("zip", tmp_path, r"a\.png.*CRC", path=str(tmp_path / "a.zip"))


def test_an_error_without_a_message_says_that_a_member_is_cut_short(tmp_path, monkeypatch):
    def fail(*_):
        raise EOFError

    write_zip(tmp_path / "a.zip", [("a.png", PICTURE)])
    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    refused("zip", tmp_path, r"'a\.png': cut short", path=str(tmp_path / "a.zip"))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (b'{"labels": [["a.png", -1]]}', "label -1"),
        (b'{"labels": [["a.png", 3000000000]]}', "label 3000000000"),
        (b'{"labels": [["a.png", [0.5]]]}', "has the label"),
        (b'{"labels": [["b.png", 1]]}', None),
        (b'{"labels": 7', "no list of names and labels"),
        (b"[" * 100_000, "no list of names and labels"),
    ],
)
def test_labels_of_a_zip_file_are_checked(tmp_path, labels, match):
    write_zip(tmp_path / "a.zip", [("a.png", PICTURE), ("dataset.json", labels)])
    if match is None:  # labels of other pictures
        assert build("zip", tmp_path, path=str(tmp_path / "a.zip")).class_names is None
    else:
        refused("zip", tmp_path, match, path=str(tmp_path / "a.zip"))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((b"2\n", b" 0"), ["0", "1", "2"]),
        ((b"tabby cat\n", b"dog"), ["dog", "tabby cat"]),
        ((b"7", "Käse".encode()), ["7", "Käse"]),
        ((b"cat\ndog", b"0"), None),
        ((b"\xff\xd8", b"0"), None),
        ((b" ", b"0"), None),
    ],
)
def test_labels_of_a_tar_file_are_numbers_or_names(tmp_path, labels, names):
    members = [
        member
        for number, label in enumerate(labels)
        for member in ((f"{number}.png", PICTURE), (f"{number}.cls", label))
    ]
    write_tar(tmp_path / "a.tar", members)
    shards = str(tmp_path / "a.tar")
    if names is None:
        refused("webdataset", tmp_path, r"'0\.cls' holds .*, which is no label", shards=shards)
        return
    data = build("webdataset", tmp_path, shards=shards, num_classes=len(names), holdout=0)
    assert data.class_names == names
    assert [data[n][1] for n in range(2)] == [names.index(x.decode().strip()) for x in labels]


@pytest.mark.parametrize(("kind", "key"), [("zip", "path"), ("webdataset", "shards")])
def test_a_folder_without_archives_is_refused(tmp_path, kind, key):
    ending = "zip" if kind == "zip" else "tar"
    match = rf"data\.{key}=.*no \.{ending} file is there; it must be a \.{ending} file"
    (tmp_path / "pictures").mkdir()
    refused(kind, tmp_path, match, **{key: str(tmp_path / "pictures")})


def test_label_out_of_range_is_refused(tmp_path):
    pictures = [{"bytes": PICTURE, "path": None}] * 2
    pq.write_table(pa.table({"image": pictures, "label": [0, 5]}), tmp_path / "a.parquet")
    where = {"path": str(tmp_path / "a.parquet")}
    refused("parquet", tmp_path, r"data\.num_classes=3.*allowed: 6", num_classes=3, **where)
    refused("parquet", tmp_path, r"image_column=img:.*'data.*|image_column=img: .*image, label",
            image_column="img", **where)  # fmt: skip
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    refused("parquet", tmp_path, r"cannot read.*a\.parquet", **where)


def test_row_without_an_image_is_refused(tmp_path):
    rows = [{"bytes": PICTURE, "path": None}, None]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    refused("parquet", tmp_path, "row 1 holds no encoded picture", path=str(tmp_path / "a.parquet"))


def test_damaged_images_are_named_or_skipped(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", PICTURE), ("1.png", PICTURE[:60]), ("2.png", b"")])
    where = {"shards": str(tmp_path / "a.tar")}
    refused("webdataset", tmp_path, r"2 of 3 images.*a\.tar/1\.png.*a\.tar/2\.png", **where)
    data = build("webdataset", tmp_path, on_error="skip", image_size=8, **where, holdout=0)
    assert (len(data), data.skipped) == (1, ["a.tar/1.png", "a.tar/2.png"])


@pytest.mark.parametrize("kind", ["zip", "parquet", "webdataset", "hf"])
def test_missing_paths_are_named(tmp_path, kind):
    key = "shards" if kind == "webdataset" else "path"
    with pytest.raises(InputError, match=rf"data\.{key}: must be set"):
        build(kind, tmp_path)
    refused(kind, tmp_path, "nowhere", **{key: str(tmp_path / "nowhere" / f"a.{kind}")})


def test_missing_library_is_answered_with_pip_install(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.parquet").write_bytes(zlib.compress(b""))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    match = r"pip install -e '\.\[parquet\]'"
    refused("parquet", tmp_path, match, path=str(tmp_path / "a.parquet"))
