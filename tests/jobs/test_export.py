"""Exported weights: they draw the images of the run, hold no private data, and are checked.

Foreign files are made here byte by byte, with a correct checksum unless that is tested.
"""

import hashlib
import json
import re
import resource
import struct
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.base import TINY
from support.runs import SAMPLE, go, pngs

from ddpm import Pipeline
from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint, safetensors_file
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.heun import Heun

QUICK = ["optimizer.lr=1e-2", "job.warmup_steps=0", "schedule.T=40", "job.save_every=null"]
WORDS = [*TINY, *QUICK, "model.width=8", "job.max_steps=3", "job.sample_every=null"]
CLASSIFIER = [word for word in WORDS if not word.startswith(("model", "sampler", "job.num_s"))]
CLASSIFIER = [word for word in CLASSIFIER if not word.startswith("job.sample")] + [
    *("job=train_classifier", "model.widths=[4,8]", "model.num_heads=1", "job.evaluate_every=null")
]
EXPORT = ["job=export", "hardware=cpu"]
DRAW = [*SAMPLE, "job.num_samples=3"]

HPARAMS = {
    "model": {"_target_": "ddpm.models.convnet.ConvNet", "width": 4},
    "schedule": {"_target_": "ddpm.schedules.linear.linear", "T": 40},
    "diffusion": {"_target_": "ddpm.diffusion.GaussianDiffusion", "betas": {"T": 40}},
    "data": {
        "_target_": "ddpm.data.folder.Folder",
        "data_dir": "/marker/data",
        "root": "/marker/pictures",
        "channels": 1,
        "image_size": 16,
    },
    "sampler": {"_target_": "ddpm.samplers.ddim.DDIM", "steps": 2, "table": "/marker/table"},
    "guidance": {
        "_target_": "ddpm.guidance.classifier.from_checkpoint",
        "classifier": "marker/run",
    },
    "optimizer": {"_target_": "torch.optim.Adam", "note": "marker"},
    "tracker": {"wandb": {"entity": "marker", "notes": "marker"}},
    "hardware": {"_target_": "lightning_fabric.Fabric", "note": "marker"},
    "overrides": ["data.root=marker"],
    "seed": 3,
    "choices": {"job": "train", "model": "convnet", "guidance": "classifier", "tracker": "marker"},
}


def made(**changes):
    """A state with tensors of every type and some odd shapes."""
    g = torch.Generator().manual_seed(0)
    weights = {
        f"layer.{name}": (3 * torch.randn(3, 5, generator=g)).to(getattr(torch, name))
        for name in safetensors_file.DTYPES
    }
    weights |= {"scalar": torch.tensor(1.5), "none": torch.empty(0, 4)}
    weights |= {"channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    weights |= {"tied": weights["scalar"]}
    return {
        "step": 7,
        "run_id": "0123abcd",
        "hparams": HPARAMS,
        "ema": weights,
        "model": {"other": torch.zeros(2)},
        "diffusion": {"schedule.weight": torch.ones(4, dtype=torch.float64)},
        "optimizer": {"state": {}},
    } | changes


@pytest.fixture
def file(tmp_path):
    """A file of a few kilobytes."""
    small = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    return safetensors_file.write(tmp_path, made(ema=small), "ema")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def trained(run, runs):
    """The folder of a finished run, trained once for all tests that ask for it."""
    folder, done = runs

    def train(name, *arguments):
        if name not in done:
            go(run, *arguments, f"output_dir={folder / name}")
            done[name] = arguments
        return folder / name

    return train


# writing and reading


def test_a_round_trip_of_every_type_and_shape(tmp_path):
    given = made()
    path = safetensors_file.write(tmp_path, given, "ema")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    state = safetensors_file.read(path)
    assert (state["step"], state["run_id"], state["schema"]) == (7, "0123abcd", 2)
    assert "model" not in state
    assert "optimizer" not in state
    for entry in ("ema", "diffusion"):
        assert state[entry].keys() == given[entry].keys()
        for name, tensor in given[entry].items():
            assert state[entry][name].dtype == tensor.dtype
            assert torch.equal(state[entry][name], tensor), name
    other = safetensors_file.read(safetensors_file.write(tmp_path, given, "model"))
    assert torch.equal(other["model"]["other"], torch.zeros(2))
    assert "ema" not in other


def test_export_can_be_read_by_other_programs(tmp_path):
    given = made()
    path = safetensors_file.write(tmp_path, given, "ema")
    tensors = load_file(path)
    assert torch.equal(tensors["network.layer.bfloat16"], given["ema"]["layer.bfloat16"])
    assert torch.equal(tensors["diffusion.schedule.weight"], torch.ones(4, dtype=torch.float64))
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    beside = json.loads((tmp_path / "config.json").read_text())
    assert metadata.keys() == {"hydra-ddpm"}
    assert json.loads(metadata["hydra-ddpm"]) == beside
    content = path.read_bytes().replace(beside["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(content).hexdigest() == beside["sha256"]


def test_the_same_state_gives_the_same_bytes(tmp_path):
    given = made()
    one, other = (safetensors_file.write(tmp_path, given, "ema").read_bytes() for _ in range(2))
    assert one == other


def test_export_contains_nothing_of_this_machine(tmp_path):
    path = safetensors_file.write(tmp_path, made(), "ema")
    for name in ("model.safetensors", "config.json"):
        assert b"marker" not in (tmp_path / name).read_bytes()
    hparams = safetensors_file.read_head(path)[2]
    assert hparams["data"]["root"] is None
    assert "guidance" not in hparams
    assert hparams["choices"] == {"job": "train", "model": "convnet", "guidance": "none"}
    assert hparams["seed"] == 3
    assert safetensors_file.shared(hparams) == hparams


def test_full_disk_leaves_no_partial_file_and_keeps_existing_ones(tmp_path):
    big = made(ema={"a": torch.ones(100_000)})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for before in (set(), {"model.safetensors", "config.json"}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        try:
            with pytest.raises(InputError, match=r"safetensors: the export could not be written"):
                safetensors_file.write(tmp_path, big, "ema")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert {p.name for p in tmp_path.iterdir()} == before
        if before:
            assert safetensors_file.read(tmp_path / "model.safetensors")["step"] == 8
        safetensors_file.write(tmp_path, made(step=8), "ema")


def test_only_plain_data_can_be_exported(tmp_path):
    for broken in (
        {"hparams": HPARAMS | {"model": {"x": torch.zeros(1)}}},
        {"hparams": HPARAMS | {"model": {"x": float("nan")}}},
        {"hparams": HPARAMS | {"model": {"x": "${oc.env:HOME}"}}},
        {"ema": {"x": torch.zeros(1, dtype=torch.complex64)}},
    ):
        with pytest.raises(InputError, match="could not be written"):
            safetensors_file.write(tmp_path, made(**broken), "ema")
    assert list(tmp_path.iterdir()) == []


# files of others


def parts(path):
    """Header, where the tensors begin, and their bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), 8 + length, content[8 + length :]


def put(path, header, data, *, length=None):
    """Write a file with this header, text or not yet, and with the checksum it should have."""
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    head = text.encode()
    head = struct.pack("<Q", len(head) if length is None else length) + head
    if found := re.search(rb'"sha256\\?":\\?"([0-9a-f]{64})', head):
        old = found[1]
        blank = head.replace(old, b"0" * 64)
        head = head.replace(old, hashlib.sha256(blank + data).hexdigest().encode())
    path.write_bytes(head + data)


def about_of(header):
    """The entries of the metadata."""
    return json.loads(header["__metadata__"]["hydra-ddpm"])


def put_about(path, about):
    """Write a file again with other entries in its metadata."""
    header, _, data = parts(path)
    header["__metadata__"]["hydra-ddpm"] = json.dumps(about, separators=(",", ":"))
    put(path, header, data)


def assert_refused(path, *words):
    """In one line that names the file, and no other error."""
    with pytest.raises(InputError) as error:
        safetensors_file.read(path)
    message = str(error.value)
    assert message.startswith(f"checkpoint={path}: ")
    assert len(message) < len(str(path)) + 400
    assert message.isprintable()
    for word in words:
        assert word in message


def test_file_built_byte_by_byte_is_read(file):
    header, _, data = parts(file)
    before = safetensors_file.read(file)
    put(file, header, data)
    after = safetensors_file.read(file)
    assert after["hparams"] == before["hparams"]
    assert torch.equal(after["ema"]["a"], before["ema"]["a"])


def test_an_export_of_the_first_schema_is_read(file):
    """Each entry was a text under a key of its own."""
    header, _, data = parts(file)
    about = about_of(header) | {"schema": 1}
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    put(file, header | {"__metadata__": texts}, data)
    state = safetensors_file.read(file)
    assert (state["schema"], state["step"], state["run_id"]) == (1, 7, "0123abcd")
    assert state["hparams"] == about["hparams"] | {"kind": "trains"}
    assert torch.equal(state["ema"]["a"], torch.arange(6.0).reshape(2, 3))
    for entry in ("schema", "step", "hparams", "weights", "sha256"):
        put(file, header | {"__metadata__": texts | {entry: "x"}}, data)
        assert_refused(file, "not a whole export")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert_refused(file, "not a whole export")


def test_every_flipped_bit_is_detected(file):
    content = file.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        file.write_bytes(bytes(changed))
        with pytest.raises(InputError):
            safetensors_file.read(file)
    file.write_bytes(content)
    safetensors_file.read(file)


def test_every_truncation_is_detected(file):
    content = file.read_bytes()
    for length in [*range(0, len(content), 7), len(content) - 1]:
        file.write_bytes(content[:length])
        assert_refused(file, "not a whole export of this program")
    file.write_bytes(content + b"\0")
    assert_refused(file, "not a whole export of this program")


METADATA = {  # change -> part of the message
    "schema": (3, "version 3, newer than this program's 2"),
    "step": ("many", "step=many"),
    "run_id": ("../../etc", "run_id"),
    "weights": ("optimizer", "weights=optimizer"),
    "sha256": ("0" * 63, "checksum"),
    "hparams": ("[" * 100_000, "not a whole export"),
}


@pytest.mark.parametrize("key", METADATA)
def test_foreign_metadata_is_refused(key, file):
    value, words = METADATA[key]
    about = about_of(parts(file)[0])
    put_about(file, about | {key: value})
    assert_refused(file, words)
    put_about(file, about | {key: {"a": 1}})
    assert_refused(file, "configuration" if key == "hparams" else key)
    put_about(file, {other: about[other] for other in about if other != key})
    assert_refused(file, key)


@pytest.mark.parametrize("about", [[], "text", 3, None])
def test_metadata_other_than_objects_are_refused(about, file):
    put_about(file, about)
    assert_refused(file, "not a whole export")


@pytest.mark.parametrize("step", [-1, 1.5, "1e3", "", "9" * 5000, 10**15, True, None])
def test_invalid_step_is_refused(step, file):
    put_about(file, about_of(parts(file)[0]) | {"step": step})
    assert_refused(file, "step=")


@pytest.mark.parametrize(
    "hparams",
    [
        [],
        "text",
        {},
        {"choices": {"job": "train"}},
        HPARAMS | {"model": 3},
        HPARAMS | {"sampler": "ddim"},
        HPARAMS | {"model": {"x": "${oc.env:HOME}"}},
        HPARAMS | {"choices": {}},
        HPARAMS | {"choices": {"job": ["train"]}},
        HPARAMS | {"choices": {"job": 3}},
        HPARAMS | {"data": {"channels": "1", "image_size": 16}},
        HPARAMS | {"more": "x" * 2**20},
    ],
    ids=lambda hparams: str(hparams)[:30],
)
def test_invalid_config_is_refused(hparams, file):
    put_about(file, about_of(parts(file)[0]) | {"hparams": hparams})
    assert_refused(file, "not a whole export of this program")


def entry(begin, end, dtype="F32", shape=None):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LAYOUTS = {
    "overlapping": {"network.a": entry(0, 24), "network.b": entry(16, 32)},
    "one inside the other": {"network.a": entry(0, 32), "network.b": entry(8, 16)},
    "twice the same": {"network.a": entry(0, 32), "network.b": entry(0, 32)},
    "a gap": {"network.a": entry(0, 8), "network.b": entry(16, 32)},
    "not from the start": {"network.a": entry(8, 32)},
    "beyond the end": {"network.a": entry(0, 4096)},
    "before the end": {"network.a": entry(0, 16)},
    "beyond all ends": {"network.a": entry(0, 2**63, shape=[2**61])},
    "backwards": {"network.a": entry(32, 0)},
    "negative": {"network.a": entry(-32, 0, shape=[8])},
    "too few bytes": {"network.a": entry(0, 32, shape=[9])},
    "too many bytes": {"network.a": entry(0, 32, "U8", [8])},
    "vast and empty": {
        "network.a": entry(0, 32),
        "network.b": entry(32, 32, shape=[0, *[2**47] * 9]),
    },
    "many dimensions": {"network.a": entry(0, 32, shape=[8, *[1] * 60])},
    "no list": {"network.a": entry(0, 32, shape=8)},
    "truth for a size": {"network.a": entry(0, 4, shape=[True])},
    "a fraction": {"network.a": entry(0, 32, shape=[8.0])},
    "another type": {"network.a": entry(0, 32, "F8_E4M3", [32])},
    "no type": {"network.a": entry(0, 32, ["F32"])},
    "no entry": {"network.a": [0, 32]},
    "less in an entry": {"network.a": {"dtype": "F32"}},
    "another name": {"elsewhere.a": entry(0, 32)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_do_not_fit_the_file_are_refused(layout, file):
    header, _, _ = parts(file)
    put(file, {"__metadata__": header["__metadata__"]} | LAYOUTS[layout], bytes(32))
    assert_refused(file, "not a whole export of this program")


def test_duplicate_tensor_name_is_refused(file):
    header, _, _ = parts(file)
    put(file, {"__metadata__": header["__metadata__"], "network.a": entry(0, 32)}, bytes(32))
    assert safetensors_file.read(file)["ema"]["a"].shape == (8,)
    text = json.dumps({"__metadata__": header["__metadata__"]}, separators=(",", ":"))
    again = json.dumps({"network.a": entry(0, 32)})[1:-1]
    put(file, f"{text[:-1]},{again},{again}}}", bytes(32))
    assert_refused(file)


def test_size_of_the_header_is_limited(file):
    header, _, data = parts(file)
    for length in (0, 1, 9 * 2**20, 2**63, 2**64 - 1):
        put(file, header, data, length=length)
        assert_refused(file, "not a whole export of this program")
    put(file, " " * (8 * 2**20 + 8), data)
    assert_refused(file, "a header of 8388616 bytes")
    for text in ("[]", "null", "{", '{"a":' * 100_000, "[" * 2**20, '{"__metadata__":"\\ud800"}'):
        put(file, text, data)
        assert_refused(file)
    file.write_bytes(struct.pack("<Q", 4) + b"\xff\xfe{}" + data)
    assert_refused(file)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1_000_000, 30_000])
def test_a_million_tensors_take_little_memory_to_refuse(count, file):
    header, _, _ = parts(file)
    about = json.dumps({"__metadata__": header["__metadata__"]}, separators=(",", ":"))
    one = '"network.{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    put(file, f"{about[:-1]},{','.join(map(one.format, range(count)))}}}", b"")
    tracemalloc.start()
    try:
        assert_refused(file, "not a whole export of this program")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * 2**20


def test_files_of_other_programs_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"network.a": torch.zeros(3)}, path, metadata)
        assert_refused(path, "not an export of this program")
    for content in (b"", b"<html>404</html>" * 9, b"version https://git-lfs\n" * 9, bytes(5000)):
        path.write_bytes(content)
        assert_refused(path, "not a")
    torch.save({"weights": 1}, path)
    assert_refused(path, "not a")


# as a user calls it

KINDS = {
    "eps": [],
    "v-learned-variance": ["objective=v", "objective.learned_variance=true", "sampler=ddpm"],
    "learned-schedule": ["schedule=learned", "objective=x_0", "weighting=min_snr"],
    "edm-measured": [
        *("objective=edm", "objective.sigma_data=data", "weighting=edm", "timesteps=importance"),
        "schedule=rectified",
    ],
    "dit-power": [
        *("model=dit", "model.depth=1", "model.width=8", "model.num_heads=2", "ema=power"),
        *("objective=velocity", "weighting=velocity", "timesteps=logit_normal"),
    ],
    "labels-guided": ["data.conditional=true", "guidance=classifier_free", "guidance.scale=3"],
}


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "kind",
    [
        *("v-learned-variance", "labels-guided"),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("eps", "learned-schedule", "edm-measured", "dit-power")
        ),
    ],
)
def test_export_and_checkpoint_draw_the_same_images(kind, run, trained, tmp_path):
    words = [word for word in WORDS if kind != "v-learned-variance" or "sampler" not in word]
    source = trained(kind, *words, *KINDS[kind])
    go(run, *EXPORT, f"checkpoint={source}", "output_dir=given")
    assert {p.name for p in (tmp_path / "given").iterdir()} == {"model.safetensors", "config.json"}
    (tmp_path / "given" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    go(run, *DRAW, f"checkpoint={source}", "output_dir=one")
    go(run, *DRAW, "checkpoint=alone.safetensors", "output_dir=other")
    names = {path.name for path in (tmp_path / "one" / "samples").iterdir()}
    assert len(names) == 3
    for name in names:
        one, other = (tmp_path / folder / "samples" / name for folder in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_export_by_folder_file_and_python_is_equal(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    out = go(run, *EXPORT, f"checkpoint={source}", "output_dir=given")
    file = tmp_path / "given" / "model.safetensors"
    assert f"done     given/model.safetensors ({file.stat().st_size / 1e6:.1f} MB)" in out
    assert "python run.py job=sample checkpoint=given/model.safetensors\n" in out
    images = Pipeline.from_checkpoint(source).sample(3)
    go(run, *DRAW, "checkpoint=given", "output_dir=drawn")
    assert torch.equal(pngs(tmp_path / "drawn"), images)
    for given in ("given", "given/model.safetensors"):
        assert torch.equal(Pipeline.from_checkpoint(given).sample(3), images)


@pytest.mark.slow
def test_options_of_an_export_are_known_on_the_command_line(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    go(run, *EXPORT, f"checkpoint={source}", "output_dir=given")
    go(run, *DRAW, "checkpoint=given", "sampler.eta=1", "sampler.steps=4", "output_dir=drawn")
    images = Pipeline.from_checkpoint(source, sampler=DDIM(steps=4, eta=1.0)).sample(3)
    assert torch.equal(pngs(tmp_path / "drawn"), images)
    status, _, err = run(*DRAW, "checkpoint=given", "model.width=32")
    assert status == 2
    assert "was trained with 8" in err


@pytest.mark.slow
def test_an_export_of_an_export_and_a_second_one_are_the_same_bytes(run, trained, tmp_path):
    source = trained("learned-schedule", *WORDS, *KINDS["learned-schedule"])
    go(run, *EXPORT, f"checkpoint={source}", "output_dir=one")
    go(run, *EXPORT, f"checkpoint={source}", "output_dir=two")
    go(run, *EXPORT, "checkpoint=one", "output_dir=three")
    for name in ("model.safetensors", "config.json"):
        first = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == first
        assert (tmp_path / "three" / name).read_bytes() == first


@pytest.mark.slow
def test_export_never_overwrites_a_folder(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    for _ in range(2):
        go(run, *EXPORT, f"checkpoint={source}")
    folders = list((tmp_path / "outputs" / "export" / "convnet-digits").iterdir())
    assert len(folders) == 2
    assert all(checkpoint.find(folder)[1]["step"] == 3 for folder in folders)
    for taken in (folders[0], source):
        before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
        status, _, err = run(*EXPORT, f"checkpoint={source}", f"output_dir={taken}")
        assert status == 2
        assert f"output_dir={taken}" in err
        after = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
        assert after == before


def test_sampler_of_the_command_line_is_exported(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    go(run, *EXPORT, f"checkpoint={source}", "sampler=heun", "sampler.steps=3", "output_dir=given")
    images = Pipeline.from_checkpoint(source, sampler=Heun(steps=3)).sample(3)
    assert torch.equal(Pipeline.from_checkpoint("given").sample(3), images)


@pytest.mark.slow
def test_exported_kind_of_weights_is_the_only_one(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    go(run, *EXPORT, f"checkpoint={source}", "output_dir=average")
    out = go(run, *EXPORT, f"checkpoint={source}", "job.weights=model", "output_dir=last")
    assert "checkpoint=last/model.safetensors job.weights=model\n" in out
    go(run, *DRAW, "checkpoint=last", "job.weights=model", "output_dir=one")
    images = Pipeline.from_checkpoint(source, weights="model").sample(3)
    assert torch.equal(pngs(tmp_path / "one"), images)
    for words, message in {
        (*DRAW, "checkpoint=average", "job.weights=model"): (
            "average/model.safetensors holds only the ema weights; leave it out."
        ),
        (*EXPORT, "checkpoint=average", "job.weights=model"): "holds only the ema weights",
        (*DRAW, "checkpoint=last"): "holds only the model weights",
    }.items():
        status, _, err = run(*words)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("job.weights=")
        assert message in err
    with pytest.raises(InputError, match="holds only the ema weights"):
        Pipeline.from_checkpoint("average", weights="model")


@pytest.mark.slow
def test_a_classifier_guides_from_an_export(run, trained, tmp_path):
    classifier = trained("classifier", *CLASSIFIER)
    source = trained("eps", *WORDS)
    out = go(run, *EXPORT, f"checkpoint={classifier}", "output_dir=given")
    assert "guidance.classifier=given/model.safetensors\n" in out
    asked = ["guidance=classifier", "guidance.scale=8", "job.labels=[7]"]
    for name, folder in {"one": classifier, "other": "given/model.safetensors"}.items():
        words = [*asked, f"guidance.classifier={folder}", f"output_dir={name}"]
        go(run, *DRAW, f"checkpoint={source}", *words)
    assert torch.equal(pngs(tmp_path / "one"), pngs(tmp_path / "other"))
    status, _, err = run(*DRAW, "checkpoint=given")
    assert status == 2
    assert "not of job=train" in err
    status, _, err = run(*EXPORT, f"checkpoint={classifier}", "job.weights=model")
    assert status == 2
    assert "job.weights=model: guidance uses" in err


def test_export_contains_only_the_network(run, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "marker")
    source = trained(
        "marker-run",
        *(word for word in WORDS if not word.startswith("tracker")),
        *("tracker=wandb", "tracker.wandb.mode=disabled", "tracker.wandb.entity=marker"),
        *("tracker.wandb.notes=marker", "tracker.wandb.tags=[marker]", "tracker.wandb.name=marker"),
    )
    go(run, *EXPORT, f"checkpoint={source}", "data_dir=marker-data", "output_dir=marker-given")
    folder = tmp_path / "marker-given"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    for path in folder.iterdir():
        content = path.read_bytes()
        for word in (b"marker", b"tracker", b"overrides", b"hardware", b"data_dir", b"output_dir"):
            assert word not in content, word
        assert str(tmp_path).encode() not in content


def test_weights_of_another_network_are_not_passed_on(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    _, state = checkpoint.find(source)
    del state["ema"][next(iter(state["ema"]))]
    torch.save(state, tmp_path / "broken.pt")
    status, _, err = run(*EXPORT, "checkpoint=broken.pt", "output_dir=given")
    assert status == 2
    assert "is missing" in err
    assert not (tmp_path / "given").exists()


def test_a_hostile_configuration_in_an_export_builds_nothing(run, trained, tmp_path):
    source = trained("eps", *WORDS)
    go(run, *EXPORT, f"checkpoint={source}", "output_dir=given")
    file = tmp_path / "given" / "model.safetensors"
    about = about_of(parts(file)[0])
    about["hparams"]["model"] = {"_target_": "os.mkdir", "path": "gotcha"}
    put_about(file, about)
    for words in ([*DRAW], EXPORT):
        status, _, err = run(*words, "checkpoint=given")
        assert status == 2
        assert "_target_=os.mkdir" in err
    with pytest.raises(InputError, match=r"_target_=os\.mkdir"):
        Pipeline.from_checkpoint(file)
    assert not (tmp_path / "gotcha").exists()


def test_unknown_format_is_refused(run, trained):
    source = trained("eps", *WORDS)
    status, _, err = run(*EXPORT, f"checkpoint={source}", "job.format=safetensor")
    assert status == 2
    assert (
        "job.format=safetensor: must be one of safetensors, diffusers. Did you mean 'safetensors'?"
        in err
    )
