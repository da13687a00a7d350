"""The report as Markdown, with relative links to curves and images."""

import re
from pathlib import Path

from ddpm.runner.report import changes, commands, grids, tables
from ddpm.runner.report.comparison import Comparison
from ddpm.runner.report.tables import Table

_MARKS = re.compile(r"([\\`*_\[\]<>|#~&$!])")
_MEASURED = (
    "Mean over the finished runs ± half of its 95 % interval (Student's t). Italic: no run has "
    "finished yet. The final loss of a run is the mean of the last tenth of the "
    "losses that it logged."
)
WIDTH = 240  # of an image, in pixels


def markdown(comparison: Comparison, output: Path, curves: Path | None) -> str:
    """The report; its links are relative to `output`.

    Args:
        curves: the SVG file of the curves, if there is one.
    """
    lines = [f"# {plain(comparison.title)}", "", plain(" · ".join(tables.facts(comparison))), ""]
    if comparison.notes:
        lines += [*(f"- {plain(note)}" for note in comparison.notes), ""]
    if comparison.settings:
        lines += ["## Settings", "", *_table(tables.of_settings(comparison)), ""]
        lines += [f"{_MEASURED} {tables.bold_line(comparison)}".rstrip(), ""]
    if (differences := tables.of_differences(comparison)).rows:
        lines += ["### Differences from the best", "", *_table(differences), ""]
        lines += [tables.DIFFERENCES, ""]
    if curves is not None:
        lines += ["## Curves", "", f"![curves of all runs]({grids.link(curves, output)})", ""]
    if groups := grids.groups(comparison):
        lines += ["## Samples", ""]
        for group in groups:
            lines += [f"### {plain(group.title)}", "", *_grids(group, output), ""]
    lines += ["## Runs", "", *_table(tables.of_runs(comparison, output)), ""]
    for run in comparison.runs:
        lines += [f"**{plain(comparison.names[run.folder])}** ({run.state})", ""]
        if run.error:
            lines += [f"> {plain(run.error)}", ""]
        words = [c for c in (commands.again(run), commands.sample(run)) if c]
        if run.code[0]:
            changed = ", with uncommitted changes" if run.code[1] else ""
            lines += [f"Code of commit {plain(run.code[0])}{changed}.", ""]
        if changed_lines := changes.as_text(run):
            lines += [*(f"- {plain(change)}." for change in changed_lines), ""]
        if words:
            lines += [*_fenced("\n".join(words)), ""]
    return "\n".join(lines)


def plain(text: str) -> str:
    """A text on one line, escaped for Markdown."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> list[str]:
    """A code block with a fence that does not occur in the text."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", text, fence]


def _table(content: Table) -> list[str]:
    lines = ["| " + " | ".join(plain(c.title) for c in content.columns) + " |"]
    lines.append("|" + "|".join("---:" if c.numeric else "---" for c in content.columns) + "|")
    for row in content.rows:
        cells = []
        for cell in row.cells:
            text = plain(cell.text)
            text = f"**{text}**" if cell.bold else f"*{text}*" if cell.soft else text
            text = f"[{text}]({cell.link})" if cell.link else text
            cells.append(f"{text} {cell.interval}" if cell.interval else text)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _grids(group: grids.Group, output: Path) -> list[str]:
    """Tables without headings, four images in a row."""
    lines = []
    for start in range(0, len(group.grids), 4):
        four = group.grids[start : start + 4]
        images = [f'<img src="{grids.link(grid.file, output)}" width="{WIDTH}">' for grid in four]
        lines += ["| " + " | ".join(plain(grid.caption) for grid in four) + " |"]
        lines += ["|" + "---|" * len(four), "| " + " | ".join(images) + " |", ""]
    return lines
