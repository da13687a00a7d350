"""Every configuration that a run starts with can be read back when it is resumed.

Files that Hydra would misread are refused.
"""

import codecs
import copy
import os

import pytest
import torch
import yaml
from support.base import TINY

from ddpm.errors import InputError
from ddpm.runner.checkpoints import safetensors_file
from ddpm.runner.config import catalog
from ddpm.runner.runs import run_dir, stored_config
from ddpm.runner.runs.run_dir import read_config, write_config, write_status
from ddpm.runner.safe_io.plain import MAX_NODES, MAX_TEXT
from ddpm.runner.safe_io.yaml_json import MAX_YAML

BASE = {"kind": "trains", "choices": {"job": "train"}, "model": {}, "data": {}, "job": {}}
OPTIONS = [
    "my exp",
    "_mine",
    "a+b",
    "x" * 100,
    "7",
    "true",
    "é",
    "a=b",
    "-a",
    "it's",
    "a,b",
    "sub/x",
]


@pytest.mark.parametrize("option", [*OPTIONS, "a\x1b[31m", "\u2028", "null", "", "~"])
def test_unusual_option_names_are_read_back(option, tmp_path):
    config = BASE | {
        "choices": {"job": "train", "experiment": option, "tracker": [option, "local"]}
    }
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    "value",
    [
        *(
            "x" * MAX_TEXT,
            "a\nb\r\n\t\x00\x07\x7f\x85\u2029\ufeffz",
            "2026-01-31",
            "1e-3",
            "0o7",
            "=",
            "<<",
        ),
        *(
            1e-05,
            1e300,
            -0.0,
            float("inf"),
            2**63,
            -1,
            True,
            None,
            "",
            "🎲 日本",
            "!!python/x",
            "*a",
            "&a",
        ),
        *([], {}, [[], {}, [1, [2]]], {"a": {"b": None}, 5: "five"}, list(range(26_000))),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_values_are_read_back_unchanged(value, tmp_path):
    config = BASE | {"job": {"value": value}}
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracker.wandb.notes", "x" * (MAX_TEXT + 1)),
        ("data.root", os.fsdecode(b"caf\xe9")),
        ("job.labels", list(range(MAX_NODES // 2 + 1))),
        ("job.first_seed", 2**65),
        ("optimizer.betas", [[[[[[0.5]]]]]] * (MAX_NODES // 5)),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_configs_that_could_not_be_read_back_are_refused(key, value, tmp_path):
    config = node = copy.deepcopy(BASE)
    *parents, name = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    with pytest.raises(InputError) as error:
        write_config(tmp_path, config)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_status_with_a_long_error_can_be_read(tmp_path):
    write_status(tmp_path, "failed", words=["x" * 1000] * 1000, error="\n" * 100_000)
    assert (tmp_path / "status.json").stat().st_size < 64 * 1024
    assert run_dir.read_status(tmp_path)["state"] == "failed"


@pytest.fixture
def own(tmp_path):
    """A folder for --config-dir, with an experiment of four steps under each of OPTIONS."""
    folder = tmp_path / "own" / "experiment"
    (folder / "sub").mkdir(parents=True)
    for option in OPTIONS:
        text = "# @package _global_\njob: {max_steps: 4}\n"
        (folder / f"{option}.yaml").write_text(text)
    return folder


@pytest.mark.slow
def test_run_with_an_unusual_option_name_can_be_resumed_and_sampled(run, own):
    quick = [word for word in TINY if "max_steps" not in word]
    words = ["--config-dir", "own", "experiment='a+b, my'", *quick, "output_dir=run"]
    (own / "a+b, my.yaml").write_text((own / "a+b.yaml").read_text())
    for call in (
        words,
        ["resume=run", "job.max_steps=6"],
        ["job=sample", "checkpoint=run", "job.num_samples=1", "output_dir=drawn"],
        ["job=export", "checkpoint=run", "output_dir=given"],
        ["job=status", "runs=run"],
    ):
        status, out, err = run(*call)
        assert status == 0, out + err
    assert "6/6" in out


@pytest.mark.slow
def test_finished_sweep_over_unusual_option_names_is_skipped(run, own):
    quick = [word for word in TINY if "max_steps" not in word]
    choices = "experiment='my exp'," + "x" * 100
    sweep = ["-m", "--config-dir", "own", *quick, "sweep=s", choices]
    status, out, err = run(*sweep)
    assert status == 0, out + err
    assert "2 done" in out
    status, out, err = run(*sweep)
    assert status == 0, out + err
    assert "2 jobs in outputs/sweep/s: 2 done" in out
    status, out, err = run("job=status", "sweep=s")
    assert "2 done" in out


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (f"tracker.wandb.notes={'x' * (MAX_TEXT + 1)}", "tracker.wandb.notes"),
        (os.fsdecode(b'data_dir="caf\xe9"'), "0xe9"),
        (os.fsdecode(b'output_dir="caf\xe9"'), "0xe9"),
    ],
    ids=["text", "data_dir", "output_dir"],
)
def test_run_that_could_not_be_resumed_does_not_start(run, tmp_path, word, reason):
    status, out, err = run(*[w for w in TINY if w != "tracker=local"], word)
    assert status == 2, out + err
    assert reason in err
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"data", "home", ".cache", ".config"}, "the last two are of W&B's first import"


# files that Hydra misreads

TEXT = "# @package _global_\njob: {max_steps: 4}\n"
MISREAD = {
    "mark": (codecs.BOM_UTF8 + TEXT.encode(), "byte order mark"),
    "utf16le": (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "UTF-16"),
    "utf16be": (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "UTF-16"),
    "comment": (b"# mine\n" + TEXT.encode(), "comment.yaml:2"),
    "late": (b"job: {max_steps: 4}\n# @package _global_\n", "late.yaml:2"),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_file_that_hydra_misreads_is_named(run, tmp_path, name):
    content, message = MISREAD[name]
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    (folder / f"{name}.yaml").write_bytes(content)
    (folder / f"._{name}.yaml").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "outer.yaml").write_text(f"# @package _global_\ndefaults:\n  - {name}\n")
    for option in (name, "outer") if name.startswith("utf16") else (name,):
        status, _, err = run("--config-dir=own", f"experiment={option}", *TINY)
        assert status == 2
        assert message in err or ("outer" in option and name in err)
        assert not (tmp_path / "outputs").exists()


def test_circular_defaults_are_refused(run, tmp_path):
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    for name, other in ("ab", "ba"):
        (folder / f"{name}.yaml").write_text(f"# @package _global_\ndefaults:\n  - {other}\n")
    status, _, err = run("--config-dir=own", "experiment=a", *TINY)
    assert status == 2
    assert "circle" in err


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"\n\n{TEXT}",
        TEXT + "# more\n",
        "job: {}\n",
        "",
        "# @PACKAGE x\n",
        "#  @package a.b\n",
        f"# @mine x\n{TEXT}",
        "notes: |\n  # @package is a word of Hydra's\n",
    ],
)
def test_valid_files_are_accepted(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert catalog.misread(path) is None


def test_hidden_files_are_not_options(tmp_path, monkeypatch):
    (tmp_path / "._a.yaml").write_bytes(b"\x00\xff")
    (tmp_path / "a.yaml").write_text(yaml.dump({"a": 1}))
    assert [path.name for path in catalog.yaml_files(tmp_path)] == ["a.yaml"]
    for path in catalog.CONF.rglob("*.yaml"):
        assert catalog.misread(path) is None


def test_damaged_config_is_reported(tmp_path):
    (tmp_path / "config.yaml").write_bytes(stored_config.to_yaml(BASE).encode()[:20] + b"\xff")
    with pytest.raises(InputError, match="not the configuration of a run"):
        read_config(tmp_path)


@pytest.mark.slow
def test_the_largest_configuration_fits_into_an_export(tmp_path):
    """In JSON within JSON it takes more room than in config.yaml."""
    widths = [f'"é"{n}' for n in range(MAX_NODES // 4)]
    hparams = BASE | {
        "model": {"widths": widths},
        "data": {"names": ["日" * 100] * 500, "channels": 1, "image_size": 8},
    }
    hparams |= {"diffusion": {}, "version": 1}
    assert len(stored_config.to_yaml(hparams)) < MAX_YAML
    state = {"step": 1, "run_id": "a", "ema": {"w": torch.zeros(1)}, "hparams": hparams}
    path = safetensors_file.write(tmp_path, state, "ema")
    assert safetensors_file.read_head(path)[2]["model"]["widths"] == widths
