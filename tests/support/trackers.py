"""Helpers of the tests of trackers."""

from pathlib import Path

import torch
import yaml

from ddpm.trackers.base import RunInfo

CONF = Path(__file__).parents[2] / "conf" / "tracker"
NODES = {
    name: yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for name in ("wandb", "tensorboard", "mlflow", "trackio")
}
HPARAMS = {"seed": 0, "model": {"channels": 3, "widths": [8, 16]}, "none": None}
GRID = (torch.arange(3 * 8 * 12).reshape(3, 8, 12) % 256).to(torch.uint8)


def info(**changes):
    values = {"run_id": "a1b2c3", "name": "unet-digits", "group": "sweep", "tags": ["unet"]}
    return RunInfo(**(values | {"job_type": "train", "trains": True} | changes))


def knobs(tracker, /, **changes):
    """The settings of a tracker's YAML file."""
    return {k: v for k, v in NODES[tracker].items() if not k.startswith("_")} | changes


def own_warnings(caplog):
    """Warnings of this package."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("ddpm")]
