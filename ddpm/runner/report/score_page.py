"""One page about an evaluation: scores, samples, nearest pairs, loss and bound over t."""

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ddpm.runner.report import page
from ddpm.runner.report.plots import Plot, Point, Series, plot
from ddpm.runner.report.score_table import floor, interval, with_unit
from ddpm.runner.report.stats import NONE, duration
from ddpm.runner.runs.scores import Scored
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.tree import flatten

FILE = "scores.html"
MAX_PICTURE = 4 * 1024**2  # bytes of a PNG that is put into the page
LOSSES = {
    "loss": "held out",
    "loss_raw": "held out, without averaging",
    "loss_train": "training pictures",
}


def write(folder: Path, found: Sequence[Scored]) -> None:
    """Write the page into the folder of an evaluation, whose pictures and tables it shows.

    Args:
        found: its scores, at least one.
    """
    here = Path(__file__).parent
    first = found[0]
    text = (
        page.environment()
        .get_template("score_page.html")
        .render(
            title=f"Evaluation {folder.name}",
            facts=facts(first),
            rows=[_row(score) for score in found],
            grid=picture(folder / "grid.png"),
            nearest=picture(folder / "nearest.png"),
            plots=[*losses(folder / "loss_by_t.csv"), *bound(folder / "bound.csv")],
            subject=list(flatten(first.subject)),
            rulers=rulers(found),
            environment=list(flatten(first.environment)),
            css=Markup((here / "page.css").read_text(encoding="utf-8")),  # our file, not of a run
        )
    )
    atomic.write(folder / FILE, text.encode(errors="replace"))


def facts(score: Scored) -> list[str]:
    """A line about what was measured."""
    subject, environment = score.subject, score.environment
    sampler = subject.get("sampler")
    lines = [f"step {score.step:,}" if score.step else "", f"{score.n:,} pictures"]
    if isinstance(sampler, dict):
        lines.append(f"sampler {sampler.get('name')}")
    if "evaluations" in subject:
        lines.append(f"{subject['evaluations']} network evaluations each")
    lines.append(str(environment.get("device", "")))
    if isinstance(seconds := environment.get("seconds"), int | float):
        lines.append(duration(seconds))
    return [line for line in lines if line]


def _row(score: Scored) -> dict[str, Any]:
    """A line of the table, with the places of value, interval and floor on a line of its own."""
    ends = [v for v in (score.value, score.low, score.high, score.floor) if v is not None]
    low, high = min(ends), max(ends)
    air = 0.08 * (high - low) or 0.1 * abs(high) or 1.0

    def place(value: float | None) -> float | None:
        return None if value is None else 100 * (value - low + air) / (high - low + 2 * air)

    return {
        "name": score.name,
        "against": score.reference or NONE,
        "value": with_unit(score),
        "interval": interval(score),
        "floor": floor(score),
        "better": score.better,
        "n": f"{score.n:,}",
        "ruler": score.ruler_id or "unknown",
        "at": place(score.value),
        "from": place(score.low),
        "to": place(score.high),
        "floor_at": place(score.floor),
    }


def rulers(found: Sequence[Scored]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Each ruler once: the scores that it measured, and its fields."""
    by_ruler: dict[str, list[Scored]] = {}
    for score in found:
        by_ruler.setdefault(json.dumps(score.ruler, sort_keys=True), []).append(score)
    return [
        (
            ", ".join(dict.fromkeys(score.name for score in group))
            + (f" against {group[0].reference}" if group[0].reference else "")
            + f": {group[0].ruler_id or 'unknown'}",
            list(flatten(group[0].ruler)),
        )
        for group in by_ruler.values()
    ]


def picture(file: Path) -> str | None:
    """A PNG as a data URI; None if there is none, or it is too large for a page."""
    try:
        if file.stat().st_size > MAX_PICTURE:
            return None
        return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    except OSError:
        return None


def losses(file: Path) -> list[Plot]:
    """The loss by t: held out, without averaging, and of training pictures."""
    rows = _table(file)
    middle = [(row["t_first"] + row["t_last"]) / 2 for row in rows]
    series = [
        Series(name, [Point(t, row[key]) for t, row in zip(middle, rows, strict=True)])
        for key, name in LOSSES.items()
        if rows and key in rows[0]
    ]
    return [plot("loss", "t", series)] if series else []


def bound(file: Path) -> list[Plot]:
    """The bits of one step at each t, or their mean in each part of 0..T-1."""
    rows = _table(file)
    points = [
        Point(
            (row["t_first"] + row["t_last"] + 2) / 2,
            row["bits"] / (row["t_last"] - row["t_first"] + 1),
        )
        for row in rows
        if row["bits"] > 0
    ]
    title = "bound, bits per dimension of one step"
    return [plot(title, "t + 1", [Series(title, points)], log_x=True)] if points else []


def _table(file: Path) -> list[dict[str, float]]:
    """The rows of a table of numbers; none where it is missing or holds something else."""
    try:
        read = csv.DictReader(io.StringIO(file.read_text()))
        rows = [{key: float(value) for key, value in row.items()} for row in read]
    except (OSError, ValueError, TypeError, csv.Error):
        return []
    return [row for row in rows if all(map(math.isfinite, row.values()))]
