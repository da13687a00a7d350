"""The forward process on images of the data: what is left of them at step t."""

import torch

from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, log_snr, noisy, short, spread, times

ROWS, COLUMNS, FRAMES = 3, 9, 32


def draw(material: Material) -> Drawing:
    """x_t of a few images from t = 0 to T - 1, and how signal and noise change over t."""
    diffusion = material.diffusion
    ts = spread(diffusion.T, COLUMNS)
    x_0 = material.x_0(ROWS)
    eps = material.noise(x_0)
    columns = [material.shown(x) for x in (x_0, *(noisy(diffusion, x_0, t, eps) for t in ts))]
    images = [[column[row] for column in columns] for row in range(len(x_0))]

    figure, below = style.strip_and_axes(images, ["$x_0$\n", *times(diffusion, ts)])
    alpha = diffusion.sqrt_alphas_cumprod.cpu().numpy()
    sigma = diffusion.sqrt_one_minus_alphas_cumprod.cpu().numpy()
    below.plot(alpha, color=style.ACCENT, label=r"signal $\sqrt{\bar\alpha_t}$")
    below.plot(sigma, "--", color=style.SECOND, label=r"noise $\sqrt{1-\bar\alpha_t}$")
    below.plot(ts, alpha[ts], "o", color=style.ACCENT, markersize=5)
    below.set(ylabel="factor", ylim=(-0.03, 1.05))
    style.below_strip(below, ts)
    below.legend(loc="center left", handlelength=1.4)
    noisier = (diffusion.snr.cpu() < 1).nonzero()
    crossing = (
        f"From t = {int(noisier[0])} on there is more noise than signal (SNR below 1);"
        if len(noisier)
        else "There is more signal than noise at every step (SNR above 1);"
    )
    return Drawing(
        name="forward",
        title="Forward process: from image to noise",
        equation=r"q(x_t\,|\,x_0)=\mathcal{N}(\sqrt{\bar\alpha_t}\,x_0,\,(1-\bar\alpha_t)\,I)"
        r",\quad x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\epsilon",
        source="Ho et al. 2020, Eq. 4",
        code="ddpm/diffusion.py:q_sample",
        text=f"Each row is one image of the data and one picture of noise, mixed: a little more "
        f"noise and less image at each of the {diffusion.T} steps. {crossing} at the last step "
        f"{short(diffusion.alphas_cumprod_at(diffusion.T - 1))} of the signal's power is left. "
        "Training needs no walk through the steps: x_t is computed from x_0 at once.",
        figure=figure,
        rows=numbers(material, ts),
        frames=animation(material),
    )


def numbers(material: Material, ts: list[int]) -> list[dict[str, float]]:
    """Mean and variance over all pixels of all images at each t, beside those of Eq. 4."""
    diffusion = material.diffusion
    x_0 = material.x_0(len(material.images)).double()
    eps = material.noise(x_0)
    rows = []
    for t in ts:
        alpha, sigma = diffusion.alpha_sigma(t)
        x_t = noisy(diffusion, x_0, t, eps)
        rows.append(
            {
                "t": t,
                "alpha": alpha,
                "sigma": sigma,
                "log_snr": log_snr(diffusion, t),
                "mean": x_t.mean().item(),
                "expected_mean": alpha * x_0.mean().item(),
                "variance": x_t.var(correction=0).item(),
                "expected_variance": alpha**2 * x_0.var(correction=0).item() + sigma**2,
            }
        )
    return rows


def animation(material: Material) -> list[torch.Tensor]:
    """The images at FRAMES steps, with t and SNR above them."""
    diffusion, x_0 = material.diffusion, material.x_0(6)
    eps = material.noise(x_0)
    figure = style.new(7, style.strip_height(1, len(x_0), 7, x_0.shape))
    axes = figure.subplots()
    style.tiles(axes, [list(material.shown(x_0))])
    figure.suptitle("$x_0$", fontsize=12)
    picture, frames = axes.images[0], [style.frame(figure)]
    gap = max(1, x_0.shape[-1] // 16)
    figure.set_layout_engine("none")  # all frames have the layout of the first
    for t in spread(diffusion.T, FRAMES):
        images = list(material.shown(noisy(diffusion, x_0, t, eps)))
        picture.set_data(style.pixels(style.table([images], gap)))
        figure.suptitle(times(diffusion, [t])[0].replace("\n", "   "), fontsize=12)
        frames.append(style.frame(figure))
    return frames
