"""A report for W&B: the HTML page, and its table to sort and filter."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def row(files: Sequence[Path]) -> dict[str, Any]:
    """The row that logs a report's files: `report` and `runs`."""
    import wandb

    by_suffix = {file.suffix: file for file in files}
    shown: dict[str, Any] = {}
    if page := by_suffix.get(".html"):
        shown["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    if table := by_suffix.get(".csv"):
        head, *lines = csv.reader(table.read_text(encoding="utf-8").splitlines())
        columns: list[str | int] = [*head]
        rows = [list(map(_cell, line)) for line in lines]
        shown["runs"] = wandb.Table(columns=columns, data=rows)
    return shown


def _cell(text: str) -> str | float:
    """A number if possible, so that W&B sorts numerically."""
    try:
        return float(text)
    except ValueError:
        return text
