"""What job=play draws for its page: images as they form, inpainting, and images between two seeds.

Everything that arrives from the page is checked here; a page can name no file.
"""

import base64
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm.denoising import Denoiser, Prediction
from ddpm.editing import interpolation, repaint
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance
from ddpm.images import png_bytes
from ddpm.pipeline import Pipeline, without_gradients
from ddpm.randomness import image_noise
from ddpm.runner.config.rules import AREAS
from ddpm.samplers.base import Sampler

FRAMES = 60  # steps that are shown, at most
MAX_SCALE = 20.0
MAX_MIXTURES = 16

Event = dict[str, Any]
MakeGuidance = Callable[[float], Guidance]


class X0Recorder(Denoiser):
    """A denoiser that keeps the first prediction of x_0 since the last `take`."""

    x_0: Tensor | None = None

    def __call__(self, x_t: Tensor, t: int) -> Prediction:
        prediction = super().__call__(x_t, t)
        if self.x_0 is None:
            self.x_0 = prediction.x_0
        return prediction

    def take(self, otherwise: Tensor) -> Tensor:
        """The kept prediction; `otherwise` if there was none."""
        kept, self.x_0 = self.x_0, None
        return otherwise if kept is None else kept


@dataclass(frozen=True)
class Request:
    """A checked request to draw: the seed, the class or None, the sampler, and the guidance."""

    seed: int
    label: int | None
    sampler: Sampler
    guidance: Guidance


class Studio:
    """Draws with one pipeline. Several pages may ask at once: their steps take turns.

    Args:
        pipeline: with the sampler and guidance of the command line.
        samplers: by name, the command's own first: what builds one for a number of steps, and its
            default (None: all T; "fixed": it takes no number).
        labelled: whether images can be drawn by class.
        make_guidance: classifier-free guidance of a scale; None where it is not of use.
        facts: lines about the network, for the page.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        samplers: Mapping[str, tuple[Callable[[int | None], Sampler], int | str | None]],
        *,
        labelled: bool,
        make_guidance: MakeGuidance | None,
        facts: Mapping[str, str],
    ) -> None:
        self.pipeline, self.samplers = pipeline, dict(samplers)
        self.labelled, self.make_guidance, self.facts = labelled, make_guidance, dict(facts)
        self.scale = getattr(pipeline.guidance, "scale", None)
        self._lock = threading.Lock()

    @property
    def T(self) -> int:
        return self.pipeline.diffusion.T

    def model(self) -> Event:
        """The facts and settings that the page shows."""
        channels, height, width = self.pipeline.shape
        steps = {name: default for name, (_, default) in self.samplers.items()}
        guided = self.make_guidance is not None or self.scale is not None
        return {
            "facts": self.facts,
            "T": self.T,
            "shape": [channels, height, width],
            "classes": self.pipeline.num_classes if self.labelled else None,
            "samplers": [
                {"name": name, "steps": self.T if n is None else n} for name, n in steps.items()
            ],
            "scale": (1.0 if self.scale is None else self.scale) if guided else None,
            "areas": list(AREAS),
        }

    def draw(self, asked: Mapping[str, Any]) -> Iterator[Event]:
        """The image of a seed as it forms: x_t and x_0_hat of steps, and the image.

        Raises:
            InputError: a value that is not allowed.
        """
        request = self._request(asked)
        denoiser = self._denoiser(request, 1)
        x_T, randn = self.pipeline.noise([request.seed])
        steps = request.sampler.timesteps(self.pipeline.diffusion)
        images = without_gradients(request.sampler(denoiser, x_T, randn))
        return self._frames(denoiser, x_T, images, [t for t, _ in steps])

    def inpaint(self, asked: Mapping[str, Any]) -> Iterator[Event]:
        """The white part of a mask painted anew: RePaint.

        Raises:
            InputError: a value that is not allowed.
        """
        request = self._request(asked)
        channels, height, width = self.pipeline.shape
        picture = _pixels(asked.get("image"), (channels, height, width), "image")
        mask = _pixels(asked.get("mask"), (1, height, width), "mask") > 127
        if not mask.any():
            raise InputError("mask: mark a part of the picture first.")
        resamples = _integer(asked, "resamples", 1, 20)
        jump_length = _integer(asked, "jump_length", 1, 100)
        denoiser = self._denoiser(request, 1)
        x_T, randn = self.pipeline.noise([request.seed])
        device = self.pipeline.device
        levels = request.sampler.timesteps(self.pipeline.diffusion)
        moves = repaint.path(len(levels), resamples, jump_length)
        images = without_gradients(
            repaint.inpaint(
                denoiser,
                request.sampler,
                self.pipeline.diffusion.codec.encode(picture).to(device),
                mask.to(device),
                x_T,
                randn,
                resamples=resamples,
                jump_length=jump_length,
            )
        )
        ts = [t for t, _ in reversed(levels)]
        return self._frames(denoiser, x_T, images, [ts[level] for level, _ in moves])

    def interpolate(self, asked: Mapping[str, Any]) -> Iterator[Event]:
        """Images from one seed to another; see `interpolation.between`.

        Raises:
            InputError: a value that is not allowed.
        """
        request = self._request(asked)
        other = _integer(asked, "other", 0, 2**32 - 1)
        count = _integer(asked, "count", 3, MAX_MIXTURES)
        denoiser = self._denoiser(request, count)
        first, second = (image_noise([s], self.pipeline.device) for s in (request.seed, other))
        randn = interpolation.between(first, second, count)
        x_T = randn(torch.empty(count, *self.pipeline.shape, device=self.pipeline.device))
        steps = request.sampler.timesteps(self.pipeline.diffusion)
        images = without_gradients(request.sampler(denoiser, x_T, randn))
        return self._frames(denoiser, x_T, images, [t for t, _ in steps], most=12)

    def _frames(
        self,
        denoiser: X0Recorder,
        x_T: Tensor,
        images: Iterator[Tensor],
        ts: list[int],
        most: int = FRAMES,
    ) -> Iterator[Event]:
        """An event for some of the steps, and one for the result."""
        began, x_t, shown_every = time.perf_counter(), x_T, math.ceil(len(ts) / most)
        for step, t in enumerate(ts):
            with self._lock:
                x_s = next(images)
            x_0 = denoiser.take(x_t)
            if step % shown_every == 0 or step == len(ts) - 1:
                yield {"t": t, "step": step + 1, "steps": len(ts)} | self._pair(x_t, x_0)
            x_t = x_s
        seconds = round(time.perf_counter() - began, 2)
        yield {"t": -1, "steps": len(ts), "seconds": seconds, "images": self._encoded(x_t)}

    def _pair(self, x_t: Tensor, x_0: Tensor) -> Event:
        if len(x_t) == 1:
            return {"x_t": self._encoded(x_t)[0], "x_0": self._encoded(x_0)[0]}
        return {"images": self._encoded(x_0)}

    def _encoded(self, x: Tensor) -> list[str]:
        """PNG files, base64."""
        images = self.pipeline.diffusion.codec.decode(x).cpu()
        return [base64.b64encode(png_bytes(image)).decode() for image in images]

    def _denoiser(self, request: Request, count: int) -> X0Recorder:
        labels = None if request.label is None else [request.label] * count
        plain = self.pipeline.denoiser(self.pipeline.to_labels(labels))
        return X0Recorder(plain.model, plain.diffusion, request.guidance, plain.label)

    def _request(self, asked: Mapping[str, Any]) -> Request:
        """The settings that all kinds of pictures have.

        Raises:
            InputError: a value that is not allowed.
        """
        label = asked.get("label")
        if label is not None:
            if not self.labelled or self.pipeline.num_classes is None:
                raise InputError("label: this network was trained without labels.")
            label = _integer(asked, "label", 0, self.pipeline.num_classes - 1)
        name = asked.get("sampler")
        if not isinstance(name, str) or name not in self.samplers:
            raise InputError(f"sampler: must be one of {', '.join(self.samplers)}.")
        make, default = self.samplers[name]
        steps = None if default == "fixed" else _integer(asked, "steps", 1, self.T)
        return Request(
            seed=_integer(asked, "seed", 0, 2**32 - 1),
            label=label,
            sampler=make(steps),
            guidance=self._guidance(asked),
        )

    def _guidance(self, asked: Mapping[str, Any]) -> Guidance:
        """The guidance of the command line, at the scale of the page."""
        scale = asked.get("scale")
        if scale is None:
            return self.pipeline.guidance
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise InputError("scale: must be a number.")
        if not 0 <= scale <= MAX_SCALE:
            raise InputError(f"scale: must be from 0 to {MAX_SCALE:g}.")
        if self.scale is not None:
            guidance = copy(self.pipeline.guidance)
            vars(guidance)["scale"] = float(scale)
            return guidance
        if self.make_guidance is None:
            raise InputError("scale: this network cannot be guided.")
        return self.make_guidance(float(scale)).to(self.pipeline.device)


def _integer(asked: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = asked.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name}: must be a whole number from {least} to {most}.")
    return value


def _pixels(text: Any, shape: tuple[int, int, int], name: str) -> Tensor:
    """uint8 (C, H, W) from base64 of as many bytes.

    Raises:
        InputError: it is something else.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        content = b""
    if len(content) != math.prod(shape):
        raise InputError(f"{name}: must be {math.prod(shape)} bytes in base64.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
