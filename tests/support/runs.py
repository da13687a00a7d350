"""What tests ask of runs: their folders, states, metrics and pictures."""

import json
import os
import signal
import subprocess
import sys

import torch
from support.base import ROOT, without_replaced

from ddpm.images import load_png

SAMPLE = ["job=sample", "hardware=cpu", "tracker=local"]


def status_of(folder):
    """How a run says it stands, without the time it took and the steps there are."""
    status = json.loads((folder / "status.json").read_text())
    return {key: value for key, value in status.items() if key not in ("seconds", "total")}


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [(row["step"], row["train/loss"]) for row in metrics_of(folder)]


def files_of(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths}


def state_of(folder, step):
    return torch.load(folder / "checkpoints" / f"step-{step:07d}.pt", weights_only=True)


def pngs(folder):
    """uint8 (B, C, H, W), in the order of the seeds."""
    return torch.stack([load_png(path) for path in sorted((folder / "samples").glob("*.png"))])


def tensors(state):
    """Every tensor and number of a checkpoint's weights and optimizer, by its path."""
    found = {}

    def walk(node, path):
        if isinstance(node, dict):
            for name, value in node.items():
                walk(value, f"{path}.{name}")
        elif isinstance(node, list | tuple):
            for index, value in enumerate(node):
                walk(value, f"{path}[{index}]")
        else:
            found[path] = node

    for name in ("model", "ema", "averages", "optimizer"):
        walk(state.get(name, {}), name)
    return found


def assert_equal_state(one, other):
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys()
    assert len(one) > 20
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def go(run, *arguments):
    """Run and expect success: stdout."""
    status, out, err = run(*arguments)
    assert status == 0, out + err
    assert err == ""
    return out


def process(tmp_path, *arguments, **options):
    """A real `python run.py` in `tmp_path`, started; Ctrl-C ends it also where the tests run in the
    background of a shell, which ignores that signal."""
    environment = os.environ | {"DDPM_DATA": str(tmp_path / "data"), "HOME": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *without_replaced(arguments)],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
