"""The curves as one SVG file, for Markdown and papers."""

from collections.abc import Sequence

from ddpm.runner.report.comparison import Comparison
from ddpm.runner.report.curves import Panel, style
from ddpm.runner.report.page import environment

COLOURS = ("#0b6aa8", "#cf5b00", "#12805c", "#b03a7c", "#7a6a00", "#5b4bb5")
WIDTH, HEIGHT, PER_ROW = 460, 300, 2


def drawing(comparison: Comparison, found: Sequence[Panel]) -> str:
    """The panels, two per row, and a legend."""
    rows = -(-len(found) // PER_ROW)
    return (
        environment()
        .get_template("drawing.svg")
        .render(
            panels=[(p, i % PER_ROW * WIDTH, i // PER_ROW * HEIGHT) for i, p in enumerate(found)],
            settings=comparison.settings,
            colours=COLOURS,
            style=style,
            legend=rows * HEIGHT + 10,
            width=min(len(found), PER_ROW) * WIDTH,
            height=rows * HEIGHT + 20 + 20 * len(comparison.settings),
        )
    )
