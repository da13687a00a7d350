"""Averages by name: those in a checkpoint, and lengths that are rebuilt from snapshots."""

import logging

import pytest
import torch
from torch import nn

from ddpm.ema.power import Power
from ddpm.errors import InputError
from ddpm.runner.checkpoints import averages, checkpoint, snapshots
from ddpm.training.state import halved

STEPS, TRACKED, OTHERS = 1000, [0.05, 0.1], [0.03, 0.04, 0.07, 0.12, 0.2]


def state_of(ema, step):
    return {
        "step": step,
        "run_id": "0123abcd",
        "hparams": {"choices": {"ema": "power"}, "ema": {"sigma_rel": TRACKED}},
        "model": {},
        "ema": ema.model.state_dict(),
        "averages": {name: average.state_dict() for name, average in ema.others.items()},
        "optimizer": {},
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose weights walk at random: its checkpoint, and averages of other lengths that were
    tracked beside it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = nn.Linear(40, 25)
    for weight in net.parameters():
        nn.init.zeros_(weight)
    ema = Power(net, decay=0, ramp=1, sigma_rel=TRACKED, snapshots=32)
    beside = Power(net, decay=0, ramp=1, sigma_rel=OTHERS, snapshots=32)
    for n in range(STEPS):
        with torch.no_grad():
            for weight in net.parameters():
                weight += torch.randn_like(weight)
        ema.update(n)
        beside.update(n)
        if (n + 1) % -(-STEPS // 32) == 0:
            stored = {
                name: {key: halved(weight) for key, weight in average.state_dict().items()}
                for name, average in ema.models.items()
            }
            snapshots.save(folder, n + 1, "0123abcd", stored)
    file = checkpoint.save(folder / "checkpoints", state_of(ema, STEPS), keep=-1)
    return file, beside


def flat(weights):
    return torch.cat([weight.flatten() for weight in weights.values()]).double()


def distance(found, wanted):
    return ((flat(found) - flat(wanted)).norm() / flat(wanted).norm()).item()


def read(file):
    """A checkpoint, without the checks of its configuration."""
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("length", OTHERS)
def test_lengths_that_were_not_tracked_are_rebuilt(trained, length):
    """The weights start at 0, so that the averages have no common part."""
    file, beside = trained
    found = averages.find(read(file), f"ema:{length}", file)
    assert distance(found, beside.models[str(length)].state_dict()) < 0.01


def test_snapshots_of_later_steps_and_of_other_runs_are_left_out(trained):
    file, _ = trained
    assert len(list(snapshots.beside(file, "0123abcd", STEPS))) == 31
    assert len(list(snapshots.beside(file, "0123abcd", 100))) == 3
    assert list(snapshots.beside(file, "another", STEPS)) == []


def test_tracked_lengths_come_from_the_checkpoint(trained):
    file, _ = trained
    state = read(file)
    assert averages.lengths(state) == ["0.05", "0.1"]
    assert averages.find(state, "ema:0.050", file) is state["ema"]
    assert averages.find(state, "ema:0.10", file) is state["averages"]["0.1"]
    assert averages.origin(state, "ema:0.1", file) == "tracked during the run"
    assert "31 snapshots" in averages.origin(state, "ema:0.07", file)


def test_damaged_snapshot_is_skipped_with_a_warning(trained, tmp_path, caplog):
    file, beside = trained
    for folder in ("checkpoints", "snapshots"):
        (tmp_path / folder).mkdir()
        for path in (file.parent.parent / folder).iterdir():
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "snapshots" / "step-0000512.pt").write_bytes(b"damaged")
    place = tmp_path / "checkpoints" / file.name
    with caplog.at_level(logging.WARNING):
        found = averages.find(read(place), "ema:0.12", place)
    assert "step-0000512.pt: left out" in caplog.text
    assert distance(found, beside.models["0.12"].state_dict()) < 0.01


SEVERAL = {"choices": {"ema": "several"}, "ema": {"decays": [0.05, 0.1]}}


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        ({}, "ema:0.002", r"and its 0 snapshots give that length only with an error of \d+ %"),
        ({}, "ema:0.3", r"ema:0\.3: .*above 0 and below 0\.289"),
        ({"hparams": SEVERAL}, "ema:0.07", r"holds ema:0\.05, ema:0\.1; other lengths come from"),
    ],
)
def test_unavailable_averages_are_refused(trained, changes, weights, message, tmp_path):
    state = read(trained[0]) | changes
    with pytest.raises(InputError, match=message):
        averages.find(state, weights, tmp_path / "moved.pt")
    simple = {key: value for key, value in state.items() if key != "averages"}
    with pytest.raises(InputError, match="holds one average, ema"):
        averages.find(simple | {"hparams": {"choices": {}}}, "ema:0.07", tmp_path / "moved.pt")


def test_later_snapshots_are_removed_on_resume(tmp_path):
    for step in (3, 6, 9):
        snapshots.save(tmp_path, step, "0123abcd", {"0.05": {"a": torch.ones(1)}})
    snapshots.forget_after(tmp_path, 6)
    left = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert left == ["step-0000003.pt", "step-0000006.pt"]
    snapshots.forget_after(tmp_path / "none", 6)


def test_values_too_large_for_float16_are_kept_in_float32():
    assert halved(torch.tensor([1.0, 2.0])).dtype == torch.float16
    assert halved(torch.tensor([1e6])).dtype == torch.float32
    assert halved(torch.tensor([3])).dtype == torch.int64
