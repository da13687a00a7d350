"""One training step, and a few sampling steps, on the device against float32 on the CPU."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ddpm.jobs.train import Train
from ddpm.pipeline import Pipeline, without_gradients
from ddpm.pretrained import for_inference
from ddpm.randomness import StepNoise, image_noise
from ddpm.training.step import Step
from gpu_parts.comparison import TOLERANCE, Tensors, compare
from gpu_parts.configuration import (
    MODES,
    Mode,
    build_fabric,
    build_job,
    configuration,
    has_key,
    needs,
)
from gpu_parts.part import CheckFailed, Figures, Machine, Part
from gpu_parts.program import Program
from gpu_parts.variants import BATCH, Variant, sampling_variants, training_variants

REFERENCE = MODES["fp32"]
NARROW = 32  # its channels where a CPU stands in for the GPU


def training_parts(machine: Machine, names: Sequence[str]) -> list[Part]:
    """A training step in each of these modes; published set-ups are not compiled."""
    return [
        Part(
            f"train/{variant.name}/{name}",
            functools.partial(check_training, machine, variant, MODES[name]),
            needs(MODES[name]),
        )
        for variant in training_variants()
        for name in names
        if not (MODES[name].compiled and variant.is_published)
    ]


def sampling_parts(
    machine: Machine, names: Sequence[str], guides: Mapping[str, Program]
) -> list[Part]:
    """A few sampling steps in each of these modes.

    Args:
        guides: runs for guidance, by the key that names them.
    """
    return [
        Part(
            f"sample/{variant.name}/{name}",
            functools.partial(check_sampling, machine, variant, guides, MODES[name]),
            needs(MODES[name]),
            programs=[guides[variant.guide]] if variant.guide else [],
        )
        for variant in sampling_variants()
        for name in names
    ]


def check_training(machine: Machine, variant: Variant, mode: Mode, figures: Figures) -> None:
    """One step of training against the CPU's."""
    words = (*variant.around, *variant.words)
    if not machine.is_gpu and variant.is_published:
        words += narrow(words)
    elif not machine.is_gpu and mode.compiled:
        words += tiny(words)
    words += one_step(words)
    with exact():
        expected = reference_step(words, variant.batch)
    with exact(), compiling(mode):
        found = train_step(words, variant.batch, machine.hardware, mode)
    compare(found, expected, TOLERANCE["train"][mode.precision], figures)


def check_sampling(
    machine: Machine,
    variant: Variant,
    guides: Mapping[str, Program],
    mode: Mode,
    figures: Figures,
) -> None:
    """The images that a few steps of sampling give against the CPU's."""
    words = (*variant.around, *variant.words)
    if variant.guide:
        guide = guides[variant.guide]
        guide.wait()
        words += (f"{variant.guide}={guide.run}",)
    with exact():
        expected = reference_images(words)
    with exact(), compiling(mode):
        found = images(words, machine.hardware, mode)
    compare({"x_0": found}, {"x_0": expected}, TOLERANCE["sample"][mode.precision], figures)


def narrow(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words that give the network of these words few channels, where a CPU stands in for a GPU."""
    widths = configuration(*words)["model"].get("widths", [])
    return (f"model.widths={[NARROW] * len(widths)}".replace(" ", ""),) if widths else ()


def tiny(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words for the smallest network of its kind: compiled for a CPU, others take minutes."""
    smallest = {
        "widths": "[16]",
        "num_blocks": "1",
        "num_res_blocks": "1",
        "attention_resolutions": "[]",
    }
    model = configuration(*words)["model"]
    return tuple(f"model.{name}={value}" for name, value in smallest.items() if name in model)


def one_step(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words with which the first step of a run moves the weights along the gradient.

    Adam's first step is the gradient's sign, and rounding turns the sign of small gradients. With a
    large eps it is proportional to the gradient, and so can be compared.
    """
    optimizer = dict(word.split("=", 1) for word in words).get("optimizer", "adam")
    linear = [
        word
        for word in ("optimizer.lr=1", "optimizer.eps=1")
        if has_key("optimizer", optimizer, word.partition("=")[0])
    ]
    return (*linear, "job.warmup_steps=0", "job.ema_decay=0.5")


@functools.lru_cache(maxsize=1)  # the modes of a variant come one after the other
def reference_step(words: tuple[str, ...], batch: int) -> Tensors:
    return train_step(words, batch, "cpu", REFERENCE)


@functools.lru_cache(maxsize=1)
def reference_images(words: tuple[str, ...]) -> Tensor:
    return images(words, "cpu", REFERENCE)


def train_step(words: tuple[str, ...], batch: int, hardware: str, mode: Mode) -> Tensors:
    """The loss, the gradient's norm, and what a step changes in each weight of the network, its
    average and its schedule: float64 on the CPU."""
    step, parameters = make_step(words, batch, hardware, mode)
    before = [parameter.detach().cpu().double() for parameter in parameters.values()]
    metrics = step(0, *random_images(step))
    if metrics.nonfinite:
        raise CheckFailed(f"loss {metrics.loss.item()}, gradient norm {metrics.grad_norm.item()}")
    after = [parameter.detach().cpu().double() for parameter in parameters.values()]
    moved = {name: b - a for name, a, b in zip(parameters, before, after, strict=True)}
    scalars = {"loss": metrics.loss, "gradient norm": metrics.grad_norm}
    return {name: value.cpu().double() for name, value in scalars.items()} | moved


def make_step(
    words: tuple[str, ...], batch: int, hardware: str, mode: Mode
) -> tuple[Step, dict[str, nn.Parameter]]:
    """A training step with the CPU's noise, and the parameters that it changes."""
    job = build_job(words, mode, batch_size=batch)
    fabric = build_fabric(hardware, mode)
    stir(job.net)
    learned = job.make_state(fabric)
    modules = {"model": learned.model, "ema": learned.ema.model, "schedule": learned.diffusion}
    parameters = {
        f"{part}.{name}": parameter
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    step = job.make_step(fabric, learned, slice(0, batch))
    step.noise = HostNoise(step.noise, fabric.device)
    return step, parameters


def random_images(step: Step) -> tuple[Tensor, Tensor]:
    """uint8 images (B, C, H, W) and labels (B,) on the step's device, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    shape = (step.noise.batch_size, *step.noise.shape)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(step.noise.batch_size) % 2
    device = step.fabric.device
    return pixels.to(device), labels.to(device)


def images(words: tuple[str, ...], hardware: str, mode: Mode) -> Tensor:
    """x_0 (B, C, H, W) of a network that knows nothing, from the CPU's noise: float64 there."""
    job, fabric = build_job(words, mode), build_fabric(hardware, mode)
    assert isinstance(job, Train)
    stir(job.net)
    network = for_inference(job.net, fabric.device)
    if mode.compiled:
        network.compile()
    labelled = job.data.conditional or job.guidance.labelled
    pipeline = Pipeline(
        network,
        job.diffusion.to(fabric.device),
        job.sampler,
        job.shape,
        guidance=job.guidance,
        num_classes=job.data.num_classes,
        device=fabric.device,
        autocast=fabric.autocast,
    )
    randn_like = host_noise(BATCH)
    x_T = randn_like(torch.empty(BATCH, *job.shape, device=fabric.device))
    labels = pipeline.to_labels([i % 2 for i in range(BATCH)]) if labelled else None
    denoiser = pipeline.denoiser(labels)
    *_, x_0 = without_gradients(job.sampler(denoiser, x_T, randn_like))
    return x_0.cpu().double()


@torch.no_grad()
def stir(network: nn.Module) -> None:
    """Add a little to every weight: layers that start at zero hide the ones before them."""
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    for module in network.modules():  # each device draws its own dropout
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class HostNoise(StepNoise):
    """The timesteps and noise that the CPU draws, on a device: a GPU draws other numbers."""

    def __init__(self, noise: StepNoise, device: torch.device) -> None:
        super().__init__(noise.seed, noise.batch_size, noise.shape, noise.T, torch.device("cpu"))
        self.device = device

    def __call__(self, step: int, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t, eps, flip, u = (part.to(self.device) for part in super().__call__(step, rows))
        return t, eps, flip, u


def host_noise(count: int) -> Callable[[Tensor], Tensor]:
    """`randn_like` with the CPU's numbers, for a batch of so many images."""
    draw = image_noise(range(count), torch.device("cpu"))
    return lambda x: draw(x.cpu()).to(x.device)


@contextlib.contextmanager
def compiling(mode: Mode) -> Iterator[None]:
    """Let torch.compile keep as many networks as there are parts, and fail where it would give up
    and run a network uncompiled."""
    if not mode.compiled:
        yield
        return
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=100, fail_on_recompile_limit_hit=True):
        yield


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 means float32 in here: no TF32, neither in convolutions nor in matrix products."""
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
