"""Networks of diffusers as the Hub has them: published configurations with random weights."""

from dataclasses import dataclass
from typing import Any

import torch

_COMMON = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}


def _blocks(levels, attended):
    kinds = ["Attn" if level == attended else "" for level in range(levels)]
    return {
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
    }


CIFAR10 = _COMMON | {"block_out_channels": [128, 256, 256, 256], "sample_size": 32} | _blocks(4, 1)
LSUN = _COMMON | {"block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256}
LSUN |= _blocks(6, 4)
# Of no pipeline on the Hub: the CelebA network of Song et al. 2021 (DDIM).
CELEBA = _COMMON | {"block_out_channels": [128, 256, 256, 256, 512], "sample_size": 64}
CELEBA |= _blocks(5, 2)
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


@dataclass(frozen=True)
class Case:
    unet: dict[str, Any]
    parameters: int
    scheduler: dict[str, Any]


LARGE = SCHEDULER | {"variance_type": "fixed_large"}
CASES = {
    "ddpm-cifar10-32": Case(CIFAR10, 35_746_307, LARGE),
    "celeba-64": Case(CELEBA, 78_700_803, SCHEDULER),
    "ddpm-celebahq-256": Case(LSUN, 113_673_219, SCHEDULER),
    "ddpm-bedroom-256": Case(LSUN, 113_673_219, SCHEDULER),
}


def small(config):
    """The same with a sixteenth of the width."""
    widths = [width // 16 for width in config["block_out_channels"]]
    return config | {"block_out_channels": widths, "norm_num_groups": 4}


def unet_of(config):
    from diffusers import UNet2DModel

    return UNet2DModel.from_config(config)


def randomised(unet, std=0.1):
    """Random weights everywhere, so that each of them tells."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=std, generator=generator)
    return unet.eval()


def saved(unet, folder, scheduler=SCHEDULER, **options):
    """The folder of a pipeline, written by diffusers."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(unet, DDPMScheduler.from_config(scheduler)).save_pretrained(folder, **options)
    return folder
