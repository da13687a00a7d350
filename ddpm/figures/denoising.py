"""x_0 as the network believes it, from every noise level."""

from typing import Any

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, log_snr, noisy, spread, times, trained

ROWS, COLUMNS, LEVELS, IMAGES = 2, 9, 25, 64


def draw(material: Material) -> Drawing:
    """Images noised to step t and x_0_hat from one call of the network, and the error over t."""
    pipeline, diffusion = trained(material), material.diffusion
    ts, x_0 = spread(diffusion.T, COLUMNS), material.x_0(ROWS)
    eps, shown = material.noise(x_0), material.shown
    denoiser = Denoiser(pipeline.denoiser().model, diffusion, label=material.label(ROWS))
    with torch.no_grad():
        x_t = [noisy(diffusion, x_0, t, eps) for t in ts]
        x_0_hat = [denoiser(x, t).x_0 for x, t in zip(x_t, ts, strict=True)]
    images = []
    for row, clean in enumerate(shown(x_0)):
        images.append([clean, *(shown(x)[row] for x in x_t)])
        images.append([clean, *(shown(x)[row] for x in x_0_hat)])
    titles = ["$x_0$\n", *times(diffusion, ts)]
    names = [r"$x_t$", r"$\hat x_0$"] * len(x_0)
    figure, below = style.strip_and_axes(images, titles, names)

    denoiser = Denoiser(denoiser.model, diffusion, label=material.label(IMAGES))
    rows = errors(denoiser, material.x_0(IMAGES), material.noise(material.x_0(IMAGES)))
    t = [row["t"] for row in rows]
    below.plot(t, [row["x_0_mse"] for row in rows], color=style.ACCENT, label=r"of $\hat x_0$")
    eps_mse = [row["eps_mse"] for row in rows]
    below.plot(t, eps_mse, "--", color=style.SECOND, label=r"of $\hat\epsilon$")
    spread_of_data = material.x_0(len(material.images)).var(0, correction=0).mean().item()
    mean_image: dict[str, Any] = {"color": style.SOFT, "linestyle": ":"}
    kind = "all images with this label" if material.labelled else "all images"
    below.axhline(spread_of_data, label="of the mean image", **mean_image)
    below.set(ylabel="mean squared error", yscale="log", ylim=(1e-4, 3))
    style.below_strip(below, ts)
    below.legend(loc="lower left", handlelength=1.4)
    return Drawing(
        name="denoising",
        title="One call of the network, from every noise level",
        equation=r"\hat x_0(x_t,t)\;\approx\;\mathrm{E}\,[\,x_0\,|\,x_t\,]",
        source="Ho et al. 2020, Eq. 15",
        code="ddpm/denoising.py:predict",
        text="Rows x_t: two images (held out of training, where the data has such), noised to "
        "step t. Rows x_0_hat: the image that one call of the network sees in x_t. The best answer "
        "is the mean of all images that x_t may have come from: at small t the image itself, at "
        f"large t the mean of {kind}. One call answers with a mean, so it is blurred: that is why "
        "sampling needs many steps. Below: the error, and that of the mean image (dotted).",
        figure=figure,
        rows=rows,
    )


def errors(denoiser: Denoiser, x_0: Tensor, eps: Tensor) -> list[dict[str, float]]:
    """Mean squared errors of x_0_hat and eps_hat over t, of images x_0 with this noise."""
    rows, diffusion = [], denoiser.diffusion
    for t in spread(diffusion.T, LEVELS):
        with torch.no_grad():
            prediction = denoiser(noisy(diffusion, x_0, t, eps), t)
        rows.append(
            {
                "t": t,
                "log_snr": log_snr(diffusion, t),
                "x_0_mse": (prediction.x_0 - x_0).square().mean().item(),
                "eps_mse": (prediction.eps - eps).square().mean().item(),
            }
        )
    return rows
