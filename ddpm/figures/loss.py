"""The training loss by t."""

from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, trained
from ddpm.metrics.loss import Batch, Draws, by_t

BINS = 16


def draw(material: Material) -> Drawing:
    """The mean loss in equal parts of 0..T-1, and what it is without its weights."""
    pipeline, diffusion = trained(material), material.diffusion
    draws = Draws(2 * len(material.images), diffusion.T, material.first_seed)
    labels = material.label(len(material.images))

    def read(rows: list[int]) -> Batch:
        return material.images[rows], None if labels is None else labels[rows]

    positions = draws.pictures(len(material.images))
    network, which = pipeline.denoiser().model, draws.t.new_tensor(range(draws.n))
    losses = draws.losses(network, diffusion, read, which, positions).cpu().double()
    weights = diffusion.loss_weights.cpu().double()[draws.t]
    columns = {"loss": losses, "unweighted": losses / weights.clamp(min=1e-12)}
    rows = by_t(draws.t, diffusion.T, BINS, columns)
    figure = style.new(10, 3.4)
    left, right = figure.subplots(1, 2)
    middle = [(row["t_first"] + row["t_last"]) / 2 for row in rows]
    width = [0.9 * (row["t_last"] - row["t_first"] + 1) for row in rows]
    left.bar(middle, [row["loss"] for row in rows], width, color=style.ACCENT)
    left.set(xlabel="t", ylabel="mean loss", title="with its weights, as in training")
    plain = [row["unweighted"] for row in rows]
    right.plot(middle, plain, "o-", color=style.SECOND, markersize=4)
    right.set(xlabel="t", title="without weights")
    if max(plain) > 10 * min(plain) > 0:
        right.set_yscale("log")
    total = sum(row["loss"] * row["n"] for row in rows)
    most = max(rows, key=lambda row: row["loss"] * row["n"])
    share = most["loss"] * most["n"] / total if total > 0 else 0.0
    return Drawing(
        name="loss",
        title="Loss by t",
        equation=r"L_t=\mathrm{E}_{x_0,\epsilon}\,[\,w_t\,\|\,\mathrm{target}"
        r"-f_\theta(x_t,t)\,\|^2\,]",
        source="Ho et al. 2020, Eq. 14",
        code="ddpm/metrics/loss.py:Draws",
        text=f"The loss of objective={material.names.get('objective')} on images that were held "
        f"out, where there are such, in {len(rows)} equal parts of 0 .. T-1. The largest share, "
        f"{share:.0%}, comes from t = {most['t_first']} to {most['t_last']}. A loss curve shows "
        "the mean over all t, in which an improvement of the small parts can hardly be seen.",
        figure=figure,
        rows=rows,
    )
