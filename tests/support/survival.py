"""Runs that are killed, and what must be equal afterwards."""

import json

import torch
from support.crash import TINY
from support.runs import assert_equal_state, files_of, state_of, status_of

# 9 steps are an epoch of the 1,617 digits; lines of the log and checkpoints do not coincide.
RUN = [
    *(w for w in TINY if w.split("=")[0] not in ("job.max_steps", "job.batch_size")),
    "job.max_steps=13",
    "job.batch_size=180",
    "job.log_every=4",
    "job.save_every=3",
    "job.sample_every=6",
    "job.keep_checkpoints=2",
    "data.flip=true",
]


STEPS = 13


def lines_of(folder):
    """The lines of the log, without what a clock and the machine's memory say."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left = ("train/images_per_sec", "train/memory_mb")
    return [{k: v for k, v in row.items() if k not in left} for row in rows]


def assert_same_run(one, other):
    """Weights, averages, optimizer, losses, pictures and files of two runs are equal."""
    assert status_of(one) == status_of(other) == {"state": "done", "step": STEPS, "saved": STEPS}
    assert_equal_state(state_of(one, STEPS), state_of(other, STEPS))
    assert lines_of(one) == lines_of(other)
    assert [row["step"] for row in lines_of(one)] == [4, 8, 12, 13]
    # Killed between a checkpoint and the removal of an older one, a run may keep one more.
    assert files_of(one) - checkpoints(one) == files_of(other) - checkpoints(other)
    assert len(checkpoints(one)) in (2, 3)
    for name in sorted(path.name for path in one.glob("snapshots/*")):
        paths = (run / "snapshots" / name for run in (one, other))
        stored = [torch.load(path, weights_only=True)["averages"] for path in paths]
        torch.testing.assert_close(*stored, rtol=0, atol=0)
    for picture in (one / "samples").iterdir():
        assert picture.read_bytes() == (other / "samples" / picture.name).read_bytes()


def checkpoints(folder):
    return {name for name in files_of(folder) if name.startswith("checkpoints/")}
