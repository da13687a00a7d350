"""A report as W&B shows it: the page itself, and its table to sort and filter."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def row(files: Sequence[Path]) -> dict[str, Any]:
    """What to log of a report's files, by name: `report` and `runs`."""
    import wandb

    found = {file.suffix: file for file in files}
    shown: dict[str, Any] = {}
    if page := found.get(".html"):
        shown["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    if table := found.get(".csv"):
        head, *lines = csv.reader(table.read_text(encoding="utf-8").splitlines())
        shown["runs"] = wandb.Table(columns=head, data=[list(map(_cell, line)) for line in lines])
    return shown


def _cell(text: str) -> str | float:
    """Numbers as numbers, so that W&B sorts them as such."""
    try:
        return float(text)
    except ValueError:
        return text
