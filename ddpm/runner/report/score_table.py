"""Scores as text: a table of one evaluation, and of two that compare."""

from collections.abc import Sequence

from ddpm.runner.report.stats import NONE, number
from ddpm.runner.runs.scores import Scored


def table(found: Sequence[Scored]) -> str:
    """One line for each score: value, interval, floor, and what the floor says."""
    head = ("score", "value", "95 % interval", "floor", "n", "better", "against", "ruler")
    rows = [
        (
            score.name,
            with_unit(score),
            interval(score),
            number(score.floor),
            f"{score.n:,}",
            score.better,
            score.reference or NONE,
            score.ruler_id or "unknown",
        )
        for score in found
    ]
    return aligned([head, *rows])


def with_unit(score: Scored) -> str:
    return f"{number(score.value)} {score.unit}".rstrip()


def interval(score: Scored) -> str:
    """`0.12 to 0.15`, with a note where the samples are as good as real pictures."""
    if score.low is None or score.high is None:
        return NONE
    note = " (as good as real)" if score.as_good_as_real else ""
    return f"{number(score.low)} to {number(score.high)}{note}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
