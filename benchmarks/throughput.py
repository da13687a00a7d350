"""Images per second of training and sampling, beside what the machine can do.

    python benchmarks/throughput.py
    python benchmarks/throughput.py model=resunet data=pets hardware=gpu --batch-size 64

Takes the overrides that run.py takes. In the same process it measures the FLOP/s of a large fp32
and bf16 convolution, so that ratios hold on a noisy machine: `of conv` is the share of that rate
(in the precision the network runs in) that the network reaches, a training step counted as three
forward passes. Data are random: reading is measured by benchmarks/data_cache.py.
"""

import argparse
import signal
import time
from collections.abc import Callable

import hydra
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.runner.config.build import build
from ddpm.runner.config.catalog import CONF
from ddpm.runner.distributed.fabric import describe


def rate(call: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Calls per second, after two calls to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    call(), call(), wait()
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        call()
        wait()
        calls += 1
    return calls / spent


def conv_flops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a 3x3 convolution of 256 channels, channels_last, forward."""
    batch = 256 if device.type == "cuda" else 16
    conv = nn.Conv2d(256, 256, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, 256, 32, 32, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return rate(lambda: conv(x), device, seconds) * batch * 32 * 32 * 256 * 256 * 9 * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="as for run.py")
    parser.add_argument("--batch-size", type=int, help="default: job.batch_size")
    parser.add_argument("--seconds", type=float, default=5, help="for each figure")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [*options.overrides, "tracker=local"])
    fabric = build(cfg.hardware, "hardware")
    device, batch = fabric.device, options.batch_size or cfg.job.batch_size
    cfg.job.compile, cfg.job.batch_size = options.compile, batch
    job = build(OmegaConf.to_container(cfg.job, resolve=True), "job")  # as run.py does
    x_0 = torch.rand(batch, *job.shape, device=device) * 2 - 1
    t = torch.randint(job.diffusion.T, (batch,), device=device)
    learned = job.make_state(fabric)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        learned.model(x_0, t)
    flops = counter.get_total_flops() / batch  # of one image, forward
    train_step = job.make_step(fabric, learned, slice(0, batch))
    images = torch.randint(256, (batch, *job.shape), dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    @torch.no_grad()
    def evaluate() -> None:
        with fabric.autocast():
            learned.ema.model(x_0, t)

    reference = {
        name: conv_flops(device, dtype, options.seconds)
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items()
    }
    own = reference["bf16" if "bf16" in fabric._precision.precision else "fp32"]
    train_rate = rate(lambda: train_step(0, images, labels), device, options.seconds) * batch
    sample_rate = rate(evaluate, device, options.seconds) * batch
    steps = getattr(job.sampler, "steps", None) or job.diffusion.T

    print(f"{describe(fabric)}, torch {torch.__version__}, compile {options.compile}")
    print(f"convolution   {reference['fp32'] / 1e9:9.0f} GFLOP/s fp32")
    print(f"              {reference['bf16'] / 1e9:9.0f} GFLOP/s bf16")
    print(f"network       {flops / 1e9:9.3f} GFLOP/image forward; batch {batch} of {job.shape}")
    print(f"training      {train_rate:9.1f} images/s {3 * flops * train_rate / own:6.1%} of conv")
    print(f"evaluation    {sample_rate:9.1f} images/s {flops * sample_rate / own:6.1%} of conv")
    print(f"sampling      {sample_rate / steps:9.2f} images/s in {steps} steps")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
