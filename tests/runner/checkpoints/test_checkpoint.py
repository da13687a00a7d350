import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkpoints import state
from torch import nn

from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint


def test_round_trip_of_plain_types(tmp_path):
    path = checkpoint.save(tmp_path, state(7), keep=2)
    assert path.name == "step-0000007.pt"
    loaded = checkpoint.load(path)
    assert loaded["step"] == 7
    assert loaded["hparams"] == state()["hparams"]
    assert torch.equal(loaded["model"]["weight"], torch.full((4,), 7.0))
    torch.load(path, weights_only=True)


def test_newest_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, state(step), keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == [
        "step-0000004.pt",
        "step-0000005.pt",
    ]


def test_all_checkpoints_are_kept_with_minus_1(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, state(step), keep=-1)
    assert len(checkpoint.list_checkpoints(tmp_path)) == 5


def test_order_is_by_step_not_by_time(tmp_path):
    checkpoint.save(tmp_path, state(9_999_999), keep=-1)
    checkpoint.save(tmp_path, state(10_000_000), keep=-1)
    os.utime(tmp_path / "step-9999999.pt", (2e9, 2e9))
    assert checkpoint.find(tmp_path)[1]["step"] == 10_000_000


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path):
    """Change one byte in the middle of the tensor's bytes."""
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((1000,), 2.0).numpy().tobytes()) + 2000
    content[at] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "harm",
    [
        lambda p: cut(p, p.stat().st_size // 2),
        lambda p: cut(p, p.stat().st_size - 10),
        lambda p: cut(p, 0),
        lambda p: p.write_text("<html>404</html>"),
        lambda p: p.write_bytes(bytes(5000)),
        lambda p: p.write_bytes(pickle.dumps({"format": "hydra-ddpm"})),
        flip,
    ],
    ids=["half", "tail", "empty", "html", "zeros", "pickle", "flipped byte"],
)
def test_damaged_checkpoints_are_named_and_skipped(tmp_path, harm, capsys):
    checkpoint.save(tmp_path, state(1, 1000), keep=2)
    bad = checkpoint.save(tmp_path, state(2, 1000), keep=2)
    harm(bad)
    with pytest.raises(InputError, match=re.escape(str(bad))):
        checkpoint.load(bad)
    path, loaded = checkpoint.find(tmp_path)
    assert loaded["step"] == 1
    assert path.name == "step-0000001.pt"
    assert str(bad) in capsys.readouterr().out


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_pickled_code_is_not_run(tmp_path):
    path, marker = tmp_path / "step-0000001.pt", tmp_path / "marker"
    torch.save({"format": "hydra-ddpm", "schema": 1, "x": Hostile(marker)}, path)
    with pytest.raises(InputError, match="holds code or unknown objects"):
        checkpoint.load(path)
    assert not marker.exists()


def test_foreign_and_newer_files_are_refused(tmp_path):
    torch.save({"weights": 1}, tmp_path / "a.pt")
    torch.save({"format": "hydra-ddpm", "schema": 99}, tmp_path / "b.pt")
    torch.save({"format": "hydra-ddpm", "schema": 1}, tmp_path / "c.pt")
    for name, reason in {"a": "not a checkpoint", "b": "version 99", "c": "lacks step"}.items():
        with pytest.raises(InputError, match=reason):
            checkpoint.load(tmp_path / f"{name}.pt")
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load(tmp_path / "d.pt")
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.find(tmp_path / "..")


def test_prefixes_of_wrapped_networks_are_removed(tmp_path):
    wrapped = state() | {"model": {"_orig_mod.module.a.weight": torch.ones(1)}}
    path = checkpoint.save(tmp_path, wrapped, keep=2)
    assert list(checkpoint.load(path)["model"]) == ["a.weight"]


def test_weights_of_another_network_are_named(tmp_path):
    weights = nn.Linear(2, 3).state_dict()
    with pytest.raises(InputError, match=r"weight is \(3, 2\), the network's \(5, 2\)"):
        checkpoint.load_weights(nn.Linear(2, 5), weights, tmp_path)
    with pytest.raises(InputError, match="bias is unknown"):
        checkpoint.load_weights(nn.Linear(2, 3, bias=False), weights, tmp_path)


def test_checkpoint_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1]
        )
    checkpoint.save(tmp_path, state(), keep=2)
    assert calls == ["fsync", "replace", "fsync"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from ddpm.runner.checkpoints import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, sys.argv[2])
from support.checkpoints import state
folder = Path(sys.argv[1])
checkpoint.save(folder, state(1), keep=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, state(2, 1_000_000), keep=2)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_full_disk_keeps_older_checkpoints(tmp_path):
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), tests],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=os.path.dirname(tests),
    )
    assert "could not be written" in done.stdout, done.stderr
    assert "step-0000001.pt" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001.pt"]
