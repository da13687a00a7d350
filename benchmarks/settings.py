"""What is measured: networks of this program that diffusers has, too, and how they run."""

import json
from dataclasses import dataclass

import torch
from gpu_parts.configuration import MODES, build_job, configuration
from torch import Tensor

from ddpm.jobs.train import Train

# Networks that diffusers has, too, as words of a command line. The one for 256x256 is that of
# Ho et al. 2020 for LSUN and CelebA-HQ (appendix B).
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


def on_digits(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words for the same network on pictures that need no download, of the size and colours that it
    takes. (Other data may choose another network, therefore all of it is said.)"""
    config = configuration(*words)
    follows = ("_target_", "channels", "out_channels", "image_size", "num_classes")
    said = {f"model.{k}": v for k, v in config["model"].items() if k not in follows}
    said |= {f"data.{k}": config["data"][k] for k in ("channels", "image_size", "flip")}
    more = (f"{key}={json.dumps(value).replace(' ', '')}" for key, value in said.items())
    return (*words, "data=digits", *more)
