"""A network and its diffusion process from the checkpoint of a run."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError, shown
from ddpm.runner.checkpoints import averages, checkpoint
from ddpm.runner.config.build import build
from ddpm.runner.hub import reference

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


def load_network(
    path: str | Path,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    job: str = "train",
) -> tuple[nn.Module, GaussianDiffusion, dict[str, Any], Path]:
    """Network, process, configuration and checkpoint file of a run.

    Args:
        path: a run folder (its newest whole checkpoint), a checkpoint file, an export, a pipeline
            of diffusers, `wandb:...` or `hf:...`.
        weights: "ema", an average by its length as "ema:0.05", or "model" for the weights without
            averaging.
        device: of network and process.
        job: the job that the run must have been.

    Raises:
        InputError: the file is missing, damaged, no checkpoint of this program, or of another job.
    """
    file, state = checkpoint.find(reference.find(str(path)).path)
    hparams = state["hparams"]
    if (trained_by := hparams["choices"]["job"]) != job:
        raise InputError(f"checkpoint={path}: of job={trained_by}, not of job={job}.")
    check_fits(hparams["model"], state, file)
    model = build(hparams["model"], "model")
    diffusion = build(hparams["diffusion"], "diffusion")
    load_weights_into(model, diffusion, state, weights, file)
    return for_inference(model, device), diffusion.to(device), hparams, file


def load_weights_into(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    state: dict[str, Any],
    weights: str,
    file: Path,
) -> None:
    """Load the weights of a checkpoint, with a learned schedule, into network and process. Weights
    that are not in `state` under this name, as those of "ema:0.07", are added to it.

    Raises:
        InputError: the file does not hold these weights, or they do not fit the network or are not
            finite.
    """
    state[weights] = averages.find(state, weights, file)
    if broken := [k for k, v in state[weights].items() if not torch.isfinite(v).all()]:
        raise InputError(f"checkpoint={file}: its weights are not finite ({shown(broken[0])}).")
    checkpoint.load_weights(model, state[weights], file)
    checkpoint.load_weights(diffusion, state.get("diffusion", {}), file)


def check_fits(node: dict[str, Any], state: dict[str, Any], file: Path) -> None:
    """Check that the weights in a file fit its network, before the network takes any memory: the
    file may come from a stranger, and its configuration may describe a network of any size.

    Raises:
        InputError: they do not fit.
    """
    with torch.device("meta"):
        model = build(node, "model")
    checkpoint.check_weights(model, state["ema"] if "ema" in state else state["model"], file)


def for_inference(
    model: nn.Module, device: torch.device | str, autocast: Autocast = contextlib.nullcontext
) -> nn.Module:
    """The network on a device, in evaluation mode and without gradients.

    Args:
        autocast: context manager in which it will run. Of this program's networks, the weights
            that it would convert at every call are converted here; results are equal to the bit.
    """
    device = torch.device(device)
    model = model.to(device).to(memory_format=torch.channels_last)
    model = model.eval().requires_grad_(False)
    with autocast():
        converts = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type)
    # Other networks may leave the context for some of their layers.
    if converts and type(model).__module__.startswith("ddpm.models."):
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
    return model
