"""The training loop and the sampling of diffusers' own example, as it is and tuned by hand.

Stock is the loop of examples/unconditional_image_generation/train_unconditional.py (without
accelerate, whose mixed precision is autocast): contiguous tensors, AdamW as it comes, an average
that is updated weight by weight, and the loss read at every step for the progress bar.

Tuned is what an expert changes: channels_last, the fused optimizer, foreach operations for the
average, no waiting for the device, weights in bfloat16 for sampling in bfloat16, and torch.compile
if asked for.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from gpu_parts.configuration import configuration
from settings import Setting
from torch import Tensor, nn


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
            nn.Module.to(self.sampled, torch.bfloat16)  # diffusers' own warns of nothing
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
