"""The memory that a run says it expects at its start, beside the peak that is then measured.

    python benchmarks/memory.py model=resunet data=cifar10 --batch-sizes 4 8
    python benchmarks/memory.py experiment=celeba64 hardware=gpu --batch-sizes 32 128 --recompute

Takes the overrides that run.py takes. Each batch size trains a few steps on random images in a
process of its own. On a GPU the peak is the most that PyTorch had allocated. On a CPU it is the
most private memory of the process (RssAnon, looked at every 2 ms), less what it had when the
libraries were loaded and a small convolution had been trained.
"""

import argparse
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf
from torch import nn

from ddpm.runner.config.build import build
from ddpm.runner.config.catalog import CONF
from ddpm.training.expected_memory import estimate_memory
from ddpm.training.loop import Loop


def private_bytes() -> int:
    """Memory of this process that belongs to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: no RssAnon")


class Peak:
    """The most memory while it is on, less what there was at the start: `bytes`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self.ended = threading.Event()

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            self.start = private_bytes()
            self.watch = threading.Thread(target=self._look, daemon=True)
            self.watch.start()
        return self

    def _look(self) -> None:
        while not self.ended.wait(0.002):
            self.bytes = max(self.bytes, private_bytes() - self.start)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.start
        else:
            self.ended.set()
            self.watch.join()


def make_job(cfg: OmegaConf) -> Loop:
    return build(OmegaConf.to_container(cfg.job, resolve=True), "job")  # as run.py does


def warm_up(device: torch.device) -> None:
    """Load what the first steps of any training load."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU()).to(device)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    net(torch.zeros(2, 3, 8, 8, device=device)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def expect(cfg: OmegaConf) -> int:
    """Bytes that a run of this configuration says at its start."""
    fabric, job = build(cfg.hardware, "hardware"), make_job(cfg)
    probe = job.make_probe(fabric)
    state = job.make_state(fabric)
    size, accumulate = job.batch_size, job.accumulate
    return estimate_memory(
        probe,
        job.optimizer,
        state.optimizer,
        batch=size,
        share=size,
        accumulate=accumulate,
        eval_batch=0,
    ).total(accumulate)


def measure(cfg: OmegaConf, steps: int) -> int:
    """Bytes that its steps take."""
    fabric = build(cfg.hardware, "hardware")
    warm_up(fabric.device)
    with Peak(fabric.device) as peak:
        job = make_job(cfg)
        step = job.make_step(fabric, job.make_state(fabric), slice(0, job.batch_size))
        for n in range(steps):
            images = torch.randint(256, (job.batch_size, *job.shape), dtype=torch.uint8)
            labels = torch.zeros(job.batch_size, dtype=torch.int64)
            step(n, images.to(fabric.device), labels.to(fabric.device))
    return peak.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="as for run.py")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16])
    parser.add_argument(
        "--steps", type=int, default=3, help="from 2, where the optimizer remembers"
    )
    parser.add_argument("--recompute", action="store_true", help="the same with job.recompute, too")
    parser.add_argument("--only", choices=("expect", "measure"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", [*options.overrides, "tracker=local"])
        found = expect(cfg) if options.only == "expect" else measure(cfg, options.steps)
        print(json.dumps(found))
        return
    print(f"{' '.join(options.overrides)}\nbatch  recompute  expected MB  measured MB  ratio")
    for size in options.batch_sizes:
        for recompute in (False, True) if options.recompute else (False,):
            found = {}
            for only in ("expect", "measure"):
                words = [*options.overrides, f"job.batch_size={size}"]
                words += [f"job.recompute={str(recompute).lower()}"]
                words += ["--only", only, "--steps", str(options.steps)]
                out = subprocess.run(
                    [sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True
                )
                found[only] = json.loads(out.stdout.splitlines()[-1]) / 1e6
            a, b = found["expect"], found["measure"]
            print(f"{size:5}  {recompute!s:9}  {a:11.0f}  {b:11.0f}  {a / b:5.2f}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
