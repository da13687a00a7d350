"""One network, trained and sampled three ways: by diffusers' own example, by diffusers tuned by
hand, and as a run of this program does it. benchmarks/against_diffusers.py and the throughput parts
of benchmarks/gpu_check.py measure them.

All start from the same weights and do the same work. A training step draws steps and noise, noises
images that are already on the device, evaluates the network, takes the mean squared error and its
gradient, clips that, and updates the weights and their moving average. A sampling step is one
network evaluation and one step of ancestral sampling.

Stock is the loop of examples/unconditional_image_generation/train_unconditional.py (without
accelerate, whose mixed precision is autocast): contiguous tensors, AdamW as it comes, an average
that is updated weight by weight, and the loss read at every step for the progress bar.

Tuned is what an expert changes: channels_last, the fused optimizer, foreach operations for the
average, no waiting for the device, weights in bfloat16 for sampling in bfloat16, and torch.compile
if asked for.
"""

import contextlib
import copy
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_parts.configuration import MODES, build_fabric, build_job, configuration
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddpm.jobs.train import Train
from ddpm.pipeline import Pipeline
from ddpm.pretrained import ready

# What they train, as words of a command line. The 256x256 network is that of Ho et al. 2020 for
# LSUN and CelebA-HQ (appendix B).
NETWORKS = {
    "ho": ("experiment=ho2020_cifar10",),
    "mnist": ("model=resunet", "data=mnist"),
    "digits": ("model=resunet", "data=digits"),
    "celeba64": ("experiment=celeba64",),
    "ho256": (
        "model=resunet",
        "data=celeba",
        "data.image_size=256",
        "model.widths=[128,128,256,256,512,512]",
        "model.attention_resolutions=[16]",
    ),
}
ANCESTRAL = ("sampler=ddpm", "sampler.variance=fixed_large")
STOCK, TUNED, OURS = "diffusers, stock", "diffusers, tuned", "ours"
STOCK_FP32 = "diffusers, stock in fp32"  # the example's default, whatever the others compute in
COMPILED = ", compiled"


@dataclass(frozen=True)
class Setting:
    """What all of them do.

    Args:
        words: of a command line that chooses model=resunet with one head of attention.
        batch: images in a training step, and in a sampling step.
        dtype: "fp32", or "bf16" for autocast to bfloat16.
    """

    words: tuple[str, ...]
    batch: int
    dtype: str
    device: torch.device

    @property
    def hardware(self) -> str:
        """The option of conf/hardware for the device."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    def job(self, *, compiled: bool = False) -> Train:
        """The training job, with weights that depend on the words alone."""
        mode = MODES[self.dtype]._replace(compiled=compiled)
        job = build_job((*self.words, *ANCESTRAL), mode, batch_size=self.batch)
        assert isinstance(job, Train)
        return job

    def pixels(self) -> Tensor:
        """uint8 images (B, C, H, W) on the device."""
        data = configuration(*self.words)["data"]
        shape = (self.batch, data["channels"], data["image_size"], data["image_size"])
        generator = torch.Generator().manual_seed(1)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(self.device)


class Contender(NamedTuple):
    """One of those that are compared.

    Args:
        train: takes a training step.
        sample: takes a sampling step, of one batch of images after the other.
        network: in training; (x_t (B, C, H, W), t (B,)) -> the predicted noise, or an output of
            diffusers that holds it.
    """

    name: str
    train: Callable[[], object]
    sample: Callable[[], object]
    network: nn.Module


def has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def make(name: str, setting: Setting) -> Contender:
    """The contender of this name: one of those above, TUNED and OURS also with COMPILED added."""
    kind, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    if kind == OURS:
        return ours(name, setting, compiled)
    if kind == STOCK_FP32:
        setting = replace(setting, dtype="fp32")
    loop = Diffusers(setting, tuned=kind == TUNED, compiled=compiled)
    return Contender(name, loop.train, loop.sampling().__next__, loop.model)


def ours(name: str, setting: Setting, compiled: bool) -> Contender:
    """The step of a training run, and the steps of its sampler in `Pipeline`."""
    fabric = build_fabric(setting.hardware, MODES[setting.dtype])
    job = setting.job(compiled=compiled)
    learned = job.make_learned(fabric)
    step = job.make_step(fabric, learned, slice(0, setting.batch))
    images = setting.pixels()
    labels = torch.zeros(setting.batch, dtype=torch.int64, device=setting.device)
    numbers = itertools.count()
    network = ready(copy.deepcopy(learned.ema.model), setting.device)
    if compiled:
        network.compile()
    pipeline = Pipeline(
        network,
        learned.diffusion,
        job.sampler,
        job.shape,
        device=setting.device,
        autocast=fabric.autocast,
    )
    return Contender(
        name,
        lambda: step(next(numbers), images, labels),
        trajectories(pipeline, setting.batch).__next__,
        learned.model,
    )


def trajectories(pipeline: Pipeline, batch: int) -> Iterator[Tensor]:
    """x_t after each network evaluation, of one batch of images after the other."""
    for first in itertools.count(step=batch):
        trajectory = pipeline.trajectory(range(first, first + batch))
        next(trajectory)  # x_T, for which the network was not needed
        yield from trajectory


class Diffusers:
    """The training loop and the pipeline of diffusers' example, see the head of this file."""

    def __init__(self, setting: Setting, *, tuned: bool, compiled: bool = False) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.setting, self.tuned = setting, tuned
        self.layout = torch.channels_last if tuned else torch.contiguous_format
        self.model = unet(setting).to(setting.device, memory_format=self.layout)
        self.sampled = copy.deepcopy(self.model).eval().requires_grad_(False)
        if tuned and setting.dtype == "bf16":
            self.sampled.to(torch.bfloat16)
        if compiled:
            self.model.compile()
            self.sampled.compile()
        self.noising, self.denoising = scheduler(), scheduler()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=1e-4,
            betas=(0.95, 0.999),
            weight_decay=1e-6,
            eps=1e-8,
            fused=True if tuned else None,
        )
        self.rate = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=500, num_training_steps=1_000_000
        )
        self.ema = EMAModel(
            self.model.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            foreach=tuned,
        )
        images = setting.pixels() / 127.5 - 1
        self.images = images.contiguous(memory_format=self.layout)
        self.shown = 0.0  # the loss in the progress bar

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(
            self.setting.device.type, torch.bfloat16, enabled=self.setting.dtype == "bf16"
        )

    def train(self) -> None:
        """A step of the example's loop."""
        T = self.noising.config.num_train_timesteps
        noise = torch.randn_like(self.images)
        t = torch.randint(0, T, (len(self.images),), device=self.images.device)
        noisy = self.noising.add_noise(self.images, noise, t)
        with self.autocast():
            output = self.model(noisy, t).sample
        loss = F.mse_loss(output.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        if not self.tuned:
            self.shown = loss.item()

    def sampling(self) -> Iterator[Tensor]:
        """x_t (B, C, H, W) after each step of DDPMPipeline, of one batch after the other."""
        device = self.setting.device
        generator = torch.Generator(device).manual_seed(0)
        self.denoising.set_timesteps(self.denoising.config.num_train_timesteps)
        ts: Sequence[Any] = self.denoising.timesteps
        if self.tuned:
            ts = ts.tolist()  # indexing by a tensor would make tensors of all coefficients
        while True:
            x_t = torch.randn(self.images.shape, generator=generator, device=device)
            x_t = x_t.contiguous(memory_format=self.layout)
            for t in ts:
                with torch.no_grad():  # a context must not span a yield
                    output = self.evaluate(x_t, t)
                    x_t = self.denoising.step(output, t, x_t, generator=generator).prev_sample
                yield x_t

    def evaluate(self, x_t: Tensor, t: Any) -> Tensor:
        """The noise in x_t (B, C, H, W), like x_t."""
        if self.tuned:
            steps = torch.full((len(x_t),), t, device=x_t.device)
            dtype = torch.bfloat16 if self.setting.dtype == "bf16" else torch.float32
            return self.sampled(x_t.to(dtype), steps).sample.float()
        with self.autocast():
            return self.sampled(x_t, t).sample


def unet(setting: Setting) -> nn.Module:
    """diffusers' network with the weights of ours, in training, on the CPU."""
    from diffusers import UNet2DModel

    config = configuration(*setting.words)
    model, size = config["model"], config["data"]["image_size"]
    if model.get("num_heads") != 1 or "num_res_blocks" not in model:
        raise ValueError(f"{setting.words}: diffusers has model=resunet, with model.num_heads=1")
    sizes = [size >> level for level in range(len(model["widths"]))]
    kinds = ["Attn" if one in model["attention_resolutions"] else "" for one in sizes]
    network = UNet2DModel(
        sample_size=size,
        in_channels=model["channels"],
        out_channels=model["out_channels"],
        block_out_channels=tuple(model["widths"]),
        layers_per_block=model["num_res_blocks"],
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=model["groups"],
        dropout=model["dropout"],
    )
    network.load_state_dict(setting.job().net.state_dict())
    return network.train()


def scheduler() -> Any:
    """diffusers' process, with the defaults of conf/schedule/linear.yaml and its ancestral
    sampling."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_large")


def flops(contender: Contender, setting: Setting) -> float:
    """FLOP of a forward pass for one image; a multiplication and an addition are two. The counter
    does not know the fused attention of CPUs, so attention is counted as matrix products."""
    x = setting.pixels()[:1] / 127.5 - 1
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        contender.network(x, torch.zeros(1, dtype=torch.int64, device=setting.device))
    return counter.get_total_flops()


def seconds_for(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds for so many calls, with one wait for the device at the end."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return time.perf_counter() - began


def rate(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls per second, measured over about so many seconds. The device is waited for at the end,
    not after every call: a run does not wait either."""
    first = seconds_for(call, 1, device)
    times = max(1, round(seconds / first))
    return times / seconds_for(call, times, device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Round = dict[str, dict[str, float]]  # contender -> "training" and "sampling" -> images/s


def measure_round(contenders: Sequence[Contender], setting: Setting, seconds: float) -> Round:
    """Images per second of each, one after the other; sampling counts evaluated images."""
    return {
        contender.name: {
            what: setting.batch * rate(call, setting.device, seconds)
            for what, call in (("training", contender.train), ("sampling", contender.sample))
        }
        for contender in contenders
    }


class Spread(NamedTuple):
    """Over the rounds."""

    median: float
    least: float
    most: float


def images_per_second(rounds: Sequence[Round], name: str, what: str) -> Spread:
    return spread([one[name][what] for one in rounds])


def ratio(rounds: Sequence[Round], name: str, other: str, what: str) -> Spread:
    """How much faster one contender is than another, round by round."""
    return spread([one[name][what] / one[other][what] for one in rounds])


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
