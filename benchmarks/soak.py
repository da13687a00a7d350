"""Does a run survive being killed? One run is left alone, another is killed again and again, at any
moment, and resumed. Both must end with the same weights, averages, optimizer, losses and pictures,
to the bit. At the end a sampling run is killed in the same way.

    python benchmarks/soak.py                    # 50 kills, about ten minutes on two cores
    python benchmarks/soak.py --kills 10 hardware.precision=32-true job.num_workers=2
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

RUN = Path(__file__).parent.parent / "run.py"
STEPS, IMAGES = 900, 96
WORDS = [
    *("tracker=local", f"job.max_steps={STEPS}", "job.batch_size=64", "job.log_every=7"),
    *("job.save_every=20", "job.sample_every=150", "job.num_samples=16", "sampler.steps=10"),
    *("job.warmup_steps=50", "hardware=cpu"),
]
SAMPLE = ["job=sample", "tracker=local", "hardware=cpu", "job.batch_size=8"]
SAMPLE += [f"job.num_samples={IMAGES}", "sampler=ddpm", "sampler.steps=250"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A `python run.py` in a group of its own."""
    with open(folder / "out.txt", "a") as out:
        return subprocess.Popen(
            [sys.executable, str(RUN), *words],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )


@dataclass
class Pace:
    """Seconds that a run takes to start and, left alone, to do its work."""

    start: float
    work: float

    def life(self, left: float, kills: int) -> float:
        """The longest of lives of which so many, of evenly spread lengths, do what is left of the
        work, with something to spare: most of a life is its start."""
        each = 0.5 * left * self.work / kills
        return self.start + each + math.sqrt(each * each + 2 * each * self.start)


def alone(folder: Path, sign: str, *words: str) -> Pace:
    """A run that is left alone; `sign`: a file of it that tells that the work has begun."""
    began = time.monotonic()
    process = start(folder, *words)
    while process.poll() is None and not list(folder.glob(sign)):
        time.sleep(0.05)
    started = time.monotonic()
    assert process.wait() == 0, (folder / "out.txt").read_text()
    return Pace(started - began, time.monotonic() - started)


def killed(
    folder: Path,
    first: list[str],
    again: list[str],
    kills: int,
    pace: Pace,
    left: Callable[[Path], float],
    chance: random.Random,
) -> list[str]:
    """A run that is killed so many times and then let go on to its end; what was met.

    Args:
        left: what share of the work is still to be done.
    """
    met: list[str] = []
    while len(met) < kills and "ended first" not in met:
        begun = (folder / "run" / "config.yaml").exists()
        process = start(folder, *(again if begun else first))
        wait = chance.uniform(0, pace.life(left(folder / "run"), kills - len(met)))
        number = chance.choice([signal.SIGKILL] * 9 + [signal.SIGTERM])
        try:
            process.wait(wait)
            met.append("ended first")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            process.wait()
            met.append(number.name)
        state = standing(folder / "run")
        print(f"{len(met):3}  after {wait:4.1f} s  {met[-1]:12} {state}", flush=True)
    begun = (folder / "run" / "config.yaml").exists()
    assert start(folder, *(again if begun else first)).wait() == 0, (folder / "out.txt").read_text()
    return met


def untrained(run: Path) -> float:
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*.pt"))
    return 1 - int(saved[-1][5:-3]) / STEPS if saved else 1.0


def undrawn(run: Path) -> float:
    return 1 - len(list((run / "samples").glob("*.png"))) / IMAGES


def standing(run: Path) -> str:
    """How far a run is."""
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*.pt"))
    half = [path for path in run.rglob("*.tmp") if path.is_file()]
    pictures = len(list((run / "samples").glob("*.png")))
    cut = f", {len(half)} half-written file(s)" if half else ""
    return f"checkpoint {saved[-1] if saved else 'none'}, {pictures} pictures{cut}"


def assert_equal(one: Path, other: Path) -> int:
    """Hold all that two training runs leave against each other; how many tensors were compared."""
    names = [
        sorted(p.name for p in (run / "checkpoints").glob("step-*.pt"))[-1] for run in (one, other)
    ]
    assert names[0] == names[1], names
    states = [torch.load(run / "checkpoints" / names[0], weights_only=True) for run in (one, other)]
    count = compare(*({k: s[k] for k in ("step", "model", "ema", "optimizer")} for s in states))
    lines = []
    for run in (one, other):
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        left = ("train/images_per_sec", "train/memory_mb")  # no functions of the step
        lines.append([{k: v for k, v in row.items() if k not in left} for row in rows])
    assert lines[0] == lines[1], "the logs differ"
    assert_same_pictures(one, other)
    return count


def compare(a: object, b: object) -> int:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        return 1
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return sum(compare(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return sum(compare(x, y) for x, y in zip(a, b, strict=True))
    assert a == b, (a, b)
    return 0


def assert_same_pictures(one: Path, other: Path) -> int:
    pictures = [
        {p.name: p.read_bytes() for p in (run / "samples").iterdir()} for run in (one, other)
    ]
    assert pictures[0] == pictures[1], "the pictures differ"
    return len(pictures[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as work:
        left, hit = Path(work) / "left-alone", Path(work) / "killed"
        for folder in (left, hit):
            folder.mkdir()
        words = [*WORDS, *args.overrides]
        pace = alone(left, "run/metrics.jsonl", *words, "output_dir=run")
        print(f"left alone: {pace.start:.0f} s to start, {pace.work:.0f} s of work")
        first = [*words, "output_dir=run"]
        met = killed(hit, first, ["resume=run"], args.kills, pace, untrained, chance)
        count = assert_equal(left / "run", hit / "run")
        print(f"training: {summary(met)}; {count} tensors, the log and the pictures are equal")

        words = [*SAMPLE, f"checkpoint={left / 'run'}"]
        pace = alone(left, "s/samples/*.png", *words, "output_dir=s")
        first = [*words, "output_dir=run"]
        (hit / "run").rename(hit / "trained")
        met = killed(hit, first, first, max(1, args.kills // 5), pace, undrawn, chance)
        count = assert_same_pictures(left / "s", hit / "run")
        for name in ("grid.png", "denoising.gif"):
            assert (left / "s" / name).read_bytes() == (hit / "run" / name).read_bytes(), name
        print(f"sampling: {summary(met)}; {count} pictures, the grid and the film are equal")


def summary(met: list[str]) -> str:
    return ", ".join(f"{met.count(what)} x {what}" for what in dict.fromkeys(met))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
