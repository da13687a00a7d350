"""Which t the samplers visit."""

from typing import Any

from ddpm.errors import InputError
from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, log_snr
from ddpm.samplers.base import Sampler


def draw(material: Material) -> Drawing:
    """The steps of every sampler over t and over log-SNR, this run's marked."""
    own = material.names.get("sampler", "this run")
    samplers = {n: s for n, s in material.samplers.items() if n != own}
    visits = {name: visited(material, sampler) for name, sampler in samplers.items()}
    visits = {name: ts for name, ts in visits.items() if ts}
    own_ts = visits[f"{own} (this run)"] = visited(material, material.sampler)
    figure = style.new(10, 1.4 + 0.42 * len(visits))
    left, right = figure.subplots(1, 2, sharey=True)
    rows: list[dict[str, Any]] = []
    for place, (name, ts) in enumerate(visits.items()):
        levels = [log_snr(material.diffusion, t) for t in ts]
        colour = style.ACCENT if place == len(visits) - 1 else style.SECOND
        marks: dict[str, Any] = {"color": colour, "marker": "|", "linestyle": "", "markersize": 11}
        left.plot(ts, [place] * len(ts), **marks)
        right.plot(levels, [place] * len(ts), **marks)
        rows += [
            {"sampler": name, "step": i, "t": t, "log_snr": level}
            for i, (t, level) in enumerate(zip(ts, levels, strict=True))
        ]
    titles = [f"{name}, {len(ts)}" for name, ts in visits.items()]
    left.set_yticks(range(len(visits)), titles)
    left.set(xlabel="t", title="over t")
    right.set(xlabel="log SNR", title="over the noise level")
    left.invert_xaxis()  # sampling begins at T - 1
    spacing = getattr(material.sampler, "spacing", None)
    spaced = f" (spacing={spacing})" if spacing else ""
    return Drawing(
        name="timesteps",
        title="Steps that the samplers visit",
        equation=r"T-1=\tau_S>\tau_{S-1}>\ldots>\tau_1\geq 0,\qquad x_{\tau_i}"
        r"\rightarrow x_{\tau_{i-1}}",
        source="Song et al. 2021, Section 4.2",
        code="ddpm/samplers/base.py:timesteps",
        text="A sampler calls the network at some of the T steps, from the left (noise) to the "
        f"right (image); the numbers are how many. This run's takes {len(own_ts)}"
        f"{spaced}. Steps that are even in t leave wide gaps in log-SNR at both ends; the "
        "solvers of second order take even steps in log-SNR, on which their error depends.",
        figure=figure,
        rows=rows,
    )


def visited(material: Material, sampler: Sampler) -> list[int]:
    """The t of each step; none if the sampler does not fit the process."""
    try:
        return [t for t, _ in sampler.timesteps(material.diffusion)]
    except (InputError, AttributeError):
        return []
