"""Folders of runs as the program leaves them, made without it."""

import json

import numpy as np
import yaml
from PIL import Image

CHOICES = {"job": "train", "model": "unet", "data": "digits", "optimizer": "adam"}
CHOICES |= {"objective": "eps", "schedule": "linear", "size": "unet_digits", "tracker": "local"}


def config(seed=0, choices=None, overrides=(), **parts):
    """The configuration of a run; `parts` are put over its own."""
    made = {
        "version": 1,
        "seed": seed,
        "run_id": f"{seed:08x}",
        "model": {"_target_": "ddpm.models.unet.UNet", "widths": [32, 64], "channels": 1},
        "data": {"_target_": "ddpm.data.digits.Digits", "channels": 1},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.002},
        "objective": {"_target_": "ddpm.objectives.eps.Eps", "learned_variance": False},
        "diffusion": {"betas": {"T": 1000}},
        "job": {"_target_": "ddpm.jobs.train.Train", "max_steps": 100, "batch_size": 8},
        "tracker": {},
        "choices": CHOICES | (choices or {}),
        "overrides": list(overrides),
    }
    for name, part in parts.items():
        made[name] = made.get(name, {}) | part if isinstance(part, dict) else part
    return made


def run_folder(path, losses=None, *, status=None, steps=(), rows=None, **more):
    """A run's folder: `losses` logged every ten steps, previews at `steps`; returns its path.

    `status` is put over one that is done; False: there is none.
    """
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(**more), sort_keys=False))
    if losses is not None:
        rows = [
            {"step": 10 * i, "train/loss": loss, "train/images_per_sec": 100.0}
            for i, loss in enumerate(losses, 1)
        ]
    if rows is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status is not False:
        last = 10 * len(rows or ())
        done = {"state": "done", "step": last, "total": last, "seconds": 60.0}
        (path / "status.json").write_text(json.dumps(done | (status or {})))
        about = {"device": "cpu, 1 threads", "parameters": 54785}
        (path / "about.json").write_text(json.dumps(about))
    for step in steps:
        picture(path / "samples" / f"step-{step:06d}.png")
    return path


def picture(path, size=(24, 16), scale=4, seed=0):
    """A picture of noise, each pixel a square."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).save(path)
