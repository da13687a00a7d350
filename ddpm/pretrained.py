"""A network and its process from the checkpoint of a run: everything they need is in it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError, shown
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.config.build import build


def load_network(
    path: str | Path,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    job: str = "train",
) -> tuple[nn.Module, GaussianDiffusion, dict[str, Any], Path]:
    """Network, process, configuration and file of a run.

    Args:
        path: a run folder (its newest whole checkpoint) or a checkpoint file.
        weights: "ema", or "model" for the weights without averaging.
        device: for network and process.
        job: that the run must have been of.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of this program, or of another
            job.
    """
    file, state = checkpoint.find(path)
    hparams = state["hparams"]
    if (found := hparams["choices"]["job"]) != job:
        raise InputError(f"checkpoint={path}: of job={found}, not of job={job}.")
    check_fits(hparams["model"], state, file)
    model = build(hparams["model"], "model")
    diffusion = build(hparams["diffusion"], "diffusion")
    fill(model, diffusion, state, weights, file)
    return ready(model, device), diffusion.to(device), hparams, file


def fill(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    state: dict[str, Any],
    weights: str,
    file: Path,
) -> None:
    """Put what a run has learned, its schedule too where that learns, into network and process.

    Raises:
        InputError: an export holds the other weights alone, or they are of another network, or
            not finite.
    """
    if weights not in state:
        held = "ema" if "ema" in state else "model"
        hint = "leave it out" if held == "ema" else "say job.weights=model"
        raise InputError(
            f"job.weights={weights}: checkpoint={file} holds only the {held} weights; {hint}."
        )
    if broken := [k for k, v in state[weights].items() if not torch.isfinite(v).all()]:
        raise InputError(f"checkpoint={file}: its weights are not finite ({shown(broken[0])}).")
    checkpoint.load_weights(model, state[weights], file)
    checkpoint.load_weights(diffusion, state.get("diffusion", {}), file)
    diffusion.refresh()


def check_fits(node: dict[str, Any], state: dict[str, Any], file: Path) -> None:
    """Hold the weights in a file against the network that is to take them, before it takes any
    memory: what describes the network may be a stranger's, and of any size.

    Raises:
        InputError: they are of another network.
    """
    with torch.device("meta"):
        model = build(node, "model")
    checkpoint.check_weights(model, state["ema"] if "ema" in state else state["model"], file)


def ready(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The network on a device, not to be trained any more."""
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
