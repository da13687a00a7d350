"""The noise schedules, this run's marked."""

from typing import Any

from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.figures import style
from ddpm.figures.base import Drawing, Material

PANELS = {
    "betas": (r"$\beta_t$", "log"),
    "alphas_cumprod": (r"$\bar\alpha_t$", "linear"),
    "log_snr": (r"$\log\,\mathrm{SNR}_t$", "linear"),
    "loss_weights": ("weight in the loss", "linear"),
}


def draw(material: Material) -> Drawing:
    """betas, alphas_cumprod, log-SNR and loss weights of all schedules over t."""
    own = material.names.get("schedule", "this run")
    looks = style.looks(material.schedules, own)
    if material.initial is not None:
        look = {"color": style.ACCENT, "linestyle": ":"}
        looks.append((f"{own} before training", material.initial, look))
    after = " after training" if material.initial is not None else ""
    looks.append((f"{own}{after} (this run)", material.diffusion, style.BOLD))

    figure = style.new(10, 6.4)
    for axes, (key, (title, scale)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name, process, look in looks:
            axes.plot(values(process)[key].numpy(), label=name, **look)
        axes.set(title=title, yscale=scale, xlabel="t")
        if key == "log_snr":
            axes.axhline(0, color=style.SOFT, linewidth=0.8)
            axes.set_ylim(-16, 12)
        if key == "loss_weights":
            style.weight_axis(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=6)
    rows = [row for name, process, _ in looks for row in table(name, process)]
    return Drawing(
        name="schedules",
        title="Noise schedules",
        equation=r"\bar\alpha_t=\prod_{s\leq t}(1-\beta_s)"
        r",\qquad \mathrm{SNR}_t=\bar\alpha_t\,/\,(1-\bar\alpha_t)",
        source="Ho et al. 2020, Section 2; Kingma et al. 2021",
        code="ddpm/diffusion.py:GaussianDiffusion",
        text="A schedule says how much noise each step adds. What matters is the log-SNR: where "
        "it is steep, few steps are spent on a range of noise, and where it is flat, many. The "
        f"last panel is the weight of a step in this run's loss (weighting="
        f"{material.names.get('weighting')}, objective={material.names.get('objective')}).",
        figure=figure,
        rows=rows,
    )


def values(process: GaussianDiffusion) -> dict[str, Tensor]:
    """Each panel's values over t: (T,)."""
    snr = process.snr.cpu().double()
    return {
        "betas": process.betas.cpu(),
        "alphas_cumprod": process.alphas_cumprod.cpu(),
        "log_snr": snr.log(),
        "loss_weights": process.loss_weights.cpu(),
    }


def table(name: str, process: GaussianDiffusion) -> list[dict[str, Any]]:
    """A row for each t."""
    columns = {key: column.tolist() for key, column in values(process).items()}
    return [
        {"schedule": name, "t": t} | {key: column[t] for key, column in columns.items()}
        for t in range(process.T)
    ]
