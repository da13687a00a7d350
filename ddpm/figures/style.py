"""One look for all figures: colours, fonts, strips of images, and how they are written."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

# Okabe and Ito 2008: distinct for all common kinds of colour blindness. ACCENT marks this run.
ACCENT, SECOND, SOFT = "#D55E00", "#0072B2", "#8A8A8A"
BOLD: dict[str, Any] = {"color": ACCENT, "linewidth": 3}  # of this run's curve
COLOURS = (SECOND, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
PAD = 0.1  # inches around everything that is drawn

LOOK: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[ACCENT, *COLOURS]),
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "svg.fonttype": "path",  # looks the same without the font
    "svg.hashsalt": "ddpm",  # equal figures are equal files
    "mathtext.fontset": "dejavusans",
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def look() -> AbstractContextManager[None]:
    """A context in which figures are drawn and written."""
    return matplotlib.rc_context(LOOK)


def new(width: float = 10, height: float = 4) -> Figure:
    """An empty figure, in inches, without pyplot's global state."""
    layout = ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD)
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def lines() -> Iterable[dict[str, Any]]:
    """Colours and dashes for one curve after another, other than the accent: thirty that differ."""
    pairs = zip(cycle(COLOURS), cycle(DASHES), strict=False)
    return ({"color": colour, "linestyle": dash} for colour, dash in pairs)


def looks(curves: Mapping[str, Any], own: str) -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, process and look of each curve but `own`, which is that of this run."""
    others = [(name, process) for name, process in curves.items() if name != own]
    return [(*other, look) for other, look in zip(others, lines(), strict=False)]


def tiles(
    axes: Axes,
    images: Sequence[Sequence[Tensor]],
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> None:
    """A table of images with titles.

    Args:
        images: rows of images, each uint8 (C, H, W), all of one shape.
        columns: titles above the columns.
        rows: titles to the left of the rows.
    """
    height, width = images[0][0].shape[-2:]
    gap = max(1, width // 16)
    axes.imshow(pixels(table(images, gap)), vmin=0, vmax=255)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([j * (width + gap) + width / 2 - 0.5 for j in range(len(columns))], columns)
    axes.set_yticks([i * (height + gap) + height / 2 - 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)


def table(images: Sequence[Sequence[Tensor]], gap: int) -> Tensor:
    """Rows of images (C, H, W) as one, `gap` white pixels apart: uint8 (C, H', W')."""
    channels, height, width = images[0][0].shape
    down, across = height + gap, width + gap
    size = channels, len(images) * down - gap, len(images[0]) * across - gap
    canvas = torch.full(size, 255, dtype=torch.uint8)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            top, left = i * down, j * across
            canvas[:, top : top + height, left : left + width] = image
    return canvas


def pixels(image: Tensor) -> np.ndarray:
    """uint8 (C, H, W) as matplotlib takes it: (H, W) or (H, W, 3)."""
    array = image.cpu().permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


def strip_height(
    rows: int, columns: int, width: float = 10, shape: Sequence[int] = (1, 1)
) -> float:
    """Inches that a table of images of this shape (..., H, W) takes, with its titles."""
    return rows * (width - 0.8) / columns * shape[-2] / shape[-1] + 0.6


def strip_and_axes(
    images: Sequence[Sequence[Tensor]], columns: Sequence[str], rows: Sequence[str] = ()
) -> tuple[Figure, Axes]:
    """A figure with a table of images, see `tiles`, and the axes of a plot below it."""
    height = strip_height(len(images), len(images[0]), shape=images[0][0].shape)
    figure = new(10, height + 2.4)
    above, below = figure.subplots(2, height_ratios=[height, 2.2])
    tiles(above, images, columns, rows)
    return figure, below


def below_strip(axes: Axes, ts: Sequence[int]) -> None:
    """Put each t below its column of a strip, whose first column is x_0."""
    step = max(1, ts[-1] - ts[0]) / max(1, len(ts) - 1)
    axes.set_xlim(ts[0] - 1.5 * step, ts[-1] + 0.5 * step)
    axes.set_xticks(list(ts))
    axes.set_xlabel("t")


def weight_axis(axes: Axes) -> None:
    """From 0; logarithmic if the largest weights would hide the others."""
    if axes.get_ylim()[1] > 20:
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-3)
    else:
        axes.set_ylim(bottom=0)


def save(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind: "png" or "svg"."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with look():
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def frame(figure: Figure) -> Tensor:
    """The figure as a picture, uint8 (3, H, W)."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba())
    return torch.from_numpy(rgba[..., :3].copy()).permute(2, 0, 1)


def equation(text: str) -> bytes:
    """A line of mathematics as SVG, tightly cropped."""
    with matplotlib.rc_context(LOOK | {"mathtext.fontset": "cm"}):
        figure = Figure(figsize=(0.1, 0.1))
        FigureCanvasAgg(figure)
        figure.text(0, 0, f"${text}$", fontsize=14)
        file = io.BytesIO()
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.03}
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None}, **options)
    return file.getvalue()
