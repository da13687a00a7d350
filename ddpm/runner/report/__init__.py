"""Reports that compare runs: from run folders to HTML, Markdown, CSV and SVG. Needs no torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import InputError
from ddpm.runner.safe_io import atomic


def write(folders: Sequence[Path], output: Path, title: str) -> list[Path]:
    """Write `report.html`, `report.md`, `report.csv`, and `curves.svg` where anything was logged,
    each whole or not at all, and return their paths. Duplicate folders count once.

    Raises:
        InputError: a folder is not that of a run, `folders` is empty, or `output` is not writable.
    """
    from ddpm.runner.report import comparison, csv_file, curves, markdown, page, run_record, svg

    once = {Path(os.path.realpath(folder)): Path(folder) for folder in folders}
    if not once:
        raise InputError("a report of no runs: give a sweep or folders of runs.")
    made = comparison.make([run_record.read(folder) for folder in once.values()], title)
    output = Path(output)
    large, quartiles = curves.panels(made)
    drawn = output / "curves.svg" if large or quartiles else None
    texts = {
        "report.html": page.page(made, output, large, quartiles),
        "report.md": markdown.markdown(made, output, drawn),
        "report.csv": csv_file.table(made),
    }
    if drawn is not None:
        texts[drawn.name] = svg.drawing(made, [*large, *quartiles])
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            atomic.write(output / name, text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"{output}: cannot write the report ({error.strerror}).") from None
    return [output / name for name in texts]
