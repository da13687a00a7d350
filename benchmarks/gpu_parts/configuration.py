"""From the words of a command line to a training job: composed, planned, built as in run.py."""

import copy
import functools
from typing import Any, NamedTuple

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning_fabric import Fabric
from omegaconf import open_dict

from ddpm.runner.config import catalog
from ddpm.runner.config.build import build
from ddpm.runner.config.catalog import groups, keys
from ddpm.runner.config.planning import plan
from ddpm.training.loop import Loop

# A network of some thousand weights, for the parts that are not about the network.
SMALL = ("model=convnet", "model.width=16")


class Mode(NamedTuple):
    """How a network runs."""

    precision: str  # of conf/hardware
    compiled: bool = False


MODES = {
    "fp32": Mode("32-true"),
    "bf16": Mode("bf16-mixed"),
    "fp32 compiled": Mode("32-true", compiled=True),
    "bf16 compiled": Mode("bf16-mixed", compiled=True),
}


def needs(mode: Mode) -> tuple[str, ...]:
    """What a part in this mode needs of the machine."""
    wanted = {"bf16": mode.precision == "bf16-mixed", "compiler": mode.compiled}
    return tuple(need for need, is_wanted in wanted.items() if is_wanted)


@functools.cache
def configuration(*words: str) -> dict[str, Any]:
    """The configuration of a run of these words, as plain data. Not to be changed: it is cached."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(catalog.CONF), version_base="1.3"):
        cfg = hydra.compose("config", [*words, "tracker=local"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        return plan(cfg).config
    finally:
        HydraConfig.instance().cfg = None


def build_fabric(hardware: str, mode: Mode) -> Fabric:
    """Fabric for one device, with as many threads as there are.

    Args:
        hardware: an option of conf/hardware.
    """
    words = (f"hardware={hardware}", f"hardware.precision={mode.precision}")
    if has_key("hardware", hardware, "hardware.threads"):  # "auto" would change them
        words += (f"hardware.threads={torch.get_num_threads()}",)
    return build(configuration(*words)["hardware"], "hardware")


def build_job(words: tuple[str, ...], mode: Mode, **knobs: Any) -> Loop:
    """The training job of these words, on the CPU, with weights that depend on nothing else.

    Args:
        knobs: keys of the job that override the words, e.g. batch_size.
    """
    node = copy.deepcopy(configuration(*words)["job"])
    node |= knobs | {"compile": mode.compiled}
    torch.manual_seed(0)
    return build(node, "job")


def has_key(group: str, option: str, name: str) -> bool:
    """Whether an option of conf/ has a key of this name, e.g. "sampler.steps"."""
    return any((key.group, key.option, key.name) == (group, option, name) for key in keys())


def variants(group: str) -> list[tuple[str, ...]]:
    """Words for every option of a group, and for every option with one of its booleans turned."""
    found = []
    for option in groups()[group]:
        choice = f"{group}={option}"
        found.append((choice,))
        for key in keys():
            if (key.group, key.option) == (group, option) and isinstance(key.default, bool):
                found.append((choice, f"{key.name}={str(not key.default).lower()}"))
    return found


def job_of(model: str) -> str:
    """The job that trains a network: the one whose file chooses it, else `train`."""
    for job in catalog.groups()["job"]:
        file = catalog.read(catalog.CONF / "job" / f"{job}.yaml")
        if file["kind"] == "trains" and {"override /model": model} in file.get("defaults", []):
            return job
    return "train"
