"""All figures, in the order of the page. A new one is a module with `draw`, and its name here."""

from ddpm.figures import (
    attention,
    denoising,
    forward,
    guidance,
    loss,
    reverse,
    schedules,
    timesteps,
    weights,
)
from ddpm.figures.base import Draw

FIGURES: dict[str, Draw] = {
    "forward": forward.draw,
    "schedules": schedules.draw,
    "weights": weights.draw,
    "denoising": denoising.draw,
    "loss": loss.draw,
    "reverse": reverse.draw,
    "timesteps": timesteps.draw,
    "guidance": guidance.draw,
    "attention": attention.draw,
}
