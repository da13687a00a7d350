"""The weight of each step in the loss: all weightings, this run's marked."""

import torch
from torch import Tensor

from ddpm.figures import style
from ddpm.figures.base import Drawing, Material


def draw(material: Material) -> Drawing:
    """Weights over t, and what they mean for the error of eps and of x_0."""
    own = material.names.get("weighting", "this run")
    looks = style.looks(material.weightings, own)
    looks.append((f"{own} (this run)", material.diffusion, style.BOLD))
    titles = legend({name: process.loss_weights for name, process, _ in looks})
    figure = style.new(10, 3.6)
    left, right = figure.subplots(1, 2)
    rows = []
    for name, process, look in looks:
        weight = process.loss_weights.cpu().double()
        log_snr = process.snr.cpu().double().log()
        if name in titles:
            left.plot(weight.numpy(), label=titles[name], **look)
            right.plot(log_snr.numpy(), weight.numpy(), **look)
        rows += [
            {"weighting": name, "t": t, "log_snr": log_snr[t].item(), "weight": weight[t].item()}
            for t in range(process.T)
        ]
    left.set(xlabel="t", title="over t", ylabel="weight")
    right.set(xlabel="log SNR", title="over the noise level")
    style.weight_axis(left)
    style.weight_axis(right)
    right.set_xlim(-12, 12)
    right.invert_xaxis()
    figure.legend(loc="outside lower center", ncols=5)
    objective = material.names.get("objective", "eps")
    return Drawing(
        name="weights",
        title="Weights of the steps in the loss",
        equation=r"L=\mathrm{E}_{t,x_0,\epsilon}\,[\,w_t\,\|\,\mathrm{target}"
        r"-f_\theta(x_t,t)\,\|^2\,]",
        source="Ho et al. 2020, Eq. 14 (w = 1); Hang et al. 2023",
        code="ddpm/denoising.py:training_losses",
        text=f"The network predicts {objective}; w_t is the weight of its squared error. The "
        "squared error of eps is that of x_0 times the SNR, so equal weights mean different "
        "things for different objectives. Weights only say which noise levels matter more: the "
        "best prediction at each level is the same with all of them.",
        figure=figure,
        rows=rows,
    )


def legend(curves: dict[str, Tensor]) -> dict[str, str]:
    """The curves to draw, with their titles: of equal ones the last, with the names of all."""
    titles: dict[str, str] = {}
    for name, curve in reversed(curves.items()):
        same = next((n for n in titles if torch.allclose(curves[n], curve, rtol=1e-4)), None)
        if same is None:
            titles[name] = name
        else:
            titles[same] += f" = {name}"
    return titles
