"""The files `sample` and `checkpoint` in a run's folder: followed once, with no other effect."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from support.base import TINY
from support.crash import output_of
from support.rank_runs import CPU
from support.ranks import ranks
from support.runs import assert_equal_state, files_of, go, state_of, status_of

from ddpm.runner.runs import requests
from ddpm.training import health, loop
from ddpm.training.health import Requests, Watch


@pytest.fixture(autouse=True)
def look_every_tenth_step(monkeypatch):
    """The files are looked for at every tenth step, at any speed."""
    monkeypatch.setattr(health, "LOOK_EVERY", float("inf"))


LONG = [*TINY, "job.max_steps=31", "job.log_every=31", "job.save_every=null"]
LONG += ["job.sample_every=null", "job.keep_checkpoints=-1"]


def test_requests_draw_and_save_without_changing_the_weights(run, tmp_path, monkeypatch):
    go(run, *LONG, "output_dir=undisturbed")
    asked = {4: ["sample"], 14: ["checkpoint"], 24: ["sample", "checkpoint"]}
    steps = iter(range(1, 32))

    def touch(name):
        if name == "train.step":
            for file in asked.get(next(steps), []):
                requests.ask(tmp_path / "run", file)

    monkeypatch.setattr(loop, "crashpoint", touch)
    monkeypatch.setattr(health, "LOOK_EVERY", math.inf)
    go(run, *LONG, "output_dir=run")
    new = files_of(tmp_path / "run") - files_of(tmp_path / "undisturbed")
    assert new == {
        *("samples/step-000010.png", "samples/step-000030.png"),
        *("checkpoints/step-0000020.pt", "checkpoints/step-0000030.pt"),
    }
    pair = (state_of(tmp_path / name, 31) for name in ("run", "undisturbed"))
    assert_equal_state(*pair)


@pytest.mark.slow
def test_two_processes_follow_requests_after_the_same_step(tmp_path, monkeypatch):
    asked = {4: requests.SAMPLE, 14: requests.CHECKPOINT, 24: requests.STOP}
    steps = iter(range(1, 32))

    def touch(name):
        if name == "train.step" and (file := asked.get(next(steps))) and os.environ["RANK"] == "1":
            requests.ask(tmp_path / "run", file)  # as from another machine

    monkeypatch.setattr(loop, "crashpoint", touch)
    words = [word for word in LONG if not word.startswith("hardware")]
    words += ["hardware=ddp", *CPU, "output_dir=run"]
    ended = ranks(tmp_path, *words, monkeypatch=monkeypatch)
    assert ended == [143, 0], output_of(tmp_path)  # the first speaks for both
    done = status_of(tmp_path / "run")
    assert (done["state"], done["step"]) == ("preempted", 30), output_of(tmp_path)
    files = files_of(tmp_path / "run")
    assert {f for f in files if f.startswith("samples/")} == {"samples/step-000010.png"}
    names = {"checkpoints/step-0000020.pt", "checkpoints/step-0000030.pt"}
    assert {f for f in files if f.startswith("checkpoints/")} == names
    assert not {*requests.ONCE} & files


def test_requests_of_an_earlier_start_are_removed(tiny, run):
    for name in requests.ONCE:
        requests.ask(tiny, name)
    go(run, f"resume={tiny}", "job.max_steps=8")
    assert not {*requests.ONCE} & files_of(tiny)


def watch(folder, world_size=1, others=(0.0, 0.0, 0.0)):
    """A watch of rank zero, which looks at each call; the other ranks add what they have seen."""
    fabric = SimpleNamespace(
        is_global_zero=True,
        world_size=world_size,
        device=torch.device("cpu"),
        all_reduce=lambda flags, reduce_op: flags + torch.tensor(others),
    )
    made = Watch(fabric, 1, SimpleNamespace(wanted=False), folder)
    made.looked_at = float("-inf")
    return made


@pytest.mark.parametrize("name", requests.ONCE)
def test_a_request_is_returned_once(name, tmp_path):
    looking = watch(tmp_path)
    assert looking.requested(10) == Requests()
    requests.ask(tmp_path, name)
    assert looking.requested(20) == Requests(**{name: True})
    assert list(tmp_path.iterdir()) == []
    assert looking.requested(30) == Requests()


def test_a_request_waits_for_the_step_at_which_all_ranks_agree(tmp_path):
    looking = watch(tmp_path, world_size=2)
    looking.every = 10
    requests.ask(tmp_path, requests.SAMPLE)
    assert looking.requested(9) == Requests()  # seen, and kept
    assert list(tmp_path.iterdir()) == []
    assert looking.requested(10) == Requests(sample=True)
    assert looking.requested(20) == Requests()
    other = watch(tmp_path, world_size=2, others=(1.0, 0.0, 0.0))  # a signal to another rank
    assert other.requested(10) == Requests(stop=True)


def test_a_stop_file_stays_for_the_end_state(tmp_path):
    requests.ask_to_stop(tmp_path, "pruned")
    assert watch(tmp_path).requested(10) == Requests(stop=True)
    assert requests.end_state(tmp_path) == "pruned"


def test_removed_folder_has_no_requests(tmp_path):
    assert watch(tmp_path / "gone").requested(10) == Requests()
