"""CUDA graphs: training steps and samples that are replayed, against the same without a graph."""

import functools

import torch
from torch import Tensor

from ddpm.pretrained import for_inference
from gpu_parts.against_cpu import random_images
from gpu_parts.configuration import MODES, SMALL, build_fabric, build_job
from gpu_parts.part import CheckFailed, Figures, Machine, Part
from gpu_parts.variants import BATCH

STEPS = 6  # some before the graph is recorded, and some after
VARIANTS = [
    SMALL,
    ("model=unet",),
    ("model=resunet", "model.dropout=0.5"),
    ("model=dit",),
    ("data.conditional=true", "guidance=classifier_free"),
    ("objective=edm",),
    ("objective=v", "timesteps=importance"),
    ("augment=edm", "model=resunet"),
    ("experiment=ho2020_cifar10", "data=digits"),
]


def graph_parts(machine: Machine) -> list[Part]:
    return [
        Part(
            f"graph/{what}/{' '.join(words)}",
            functools.partial(check, machine, words),
            ("gpu",),
        )
        for words in VARIANTS
        for what, check in (("train", check_training), ("sample", check_sampling))
    ]


def check_training(machine: Machine, words: tuple[str, ...], figures: Figures) -> None:
    """The weights after some steps are equal to the bit, dropout included."""
    with_graph, without = (weights_after(machine, words, graph=graph) for graph in (True, False))
    compare(with_graph, without)


def weights_after(machine: Machine, words: tuple[str, ...], *, graph: bool) -> list[Tensor]:
    """The losses and weights after STEPS steps."""
    job = build_job(words, MODES["bf16"], batch_size=BATCH)
    fabric = build_fabric(machine.hardware, MODES["bf16"])
    learned = job.make_state(fabric)
    step = job.make_step(fabric, learned, slice(0, BATCH))
    if not graph:
        step.graph = None
    losses = [step(n, *random_images(step)).loss for n in range(STEPS)]
    if graph and (step.graph is None or step.graph.recorded is None):
        raise CheckFailed("no graph was recorded")
    return [*losses, *(parameter.detach() for parameter in learned.model.parameters())]


def check_sampling(machine: Machine, words: tuple[str, ...], figures: Figures) -> None:
    """The images are equal to the bit."""
    compare(*(images(machine, words, graph=graph) for graph in (True, False)))


def images(machine: Machine, words: tuple[str, ...], *, graph: bool) -> list[Tensor]:
    """x_t after each of some steps of the sampler."""
    words = (*words, "sampler=respaced", f"sampler.steps={STEPS}")
    job = build_job(words, MODES["bf16"])
    fabric = build_fabric(machine.hardware, MODES["bf16"])
    network = for_inference(job.net, fabric.device, fabric.autocast)
    labelled = job.data.conditional or job.guidance.labelled
    job.diffusion.to(fabric.device)
    pipeline = job.pipeline(fabric, network, job.sampler)
    if not graph:
        pipeline.graphs = None
    found = list(pipeline.trajectory(range(4), [0, 1, 2, 3] if labelled else None))
    if graph and not (pipeline.graphs and pipeline.graphs.graphs):
        raise CheckFailed("no graph was recorded")
    return found


def compare(with_graph: list[Tensor], without: list[Tensor]) -> None:
    """Raises CheckFailed if any bit differs."""
    differ = [not torch.equal(a, b) for a, b in zip(with_graph, without, strict=True)]
    if any(differ):
        raise CheckFailed(f"{sum(differ)} of {len(differ)} tensors differ from those without graph")
