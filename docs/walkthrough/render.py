"""Run the pages of the walk-through and write them as Markdown with their pictures.

    python docs/walkthrough/render.py              # all pages, into docs/walkthrough/
    python docs/walkthrough/render.py --out there

The pages are Python files in the percent format, which Jupyter opens as notebooks with the
extension jupytext. They run in order: page 3 trains the network of the pages after it.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PAGES = sorted(HERE.glob("0*.py"))


@dataclass
class Cell:
    """A cell of a page: text in Markdown, or code."""

    kind: str
    text: str
    output: str = ""
    pictures: int = 0


def cells(page: Path) -> list[Cell]:
    """The cells of a page in the percent format."""
    found = []
    for part in re.split(r"^# %%", page.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            found.append(Cell("markdown", re.sub(r"^# ?", "", body, flags=re.M).strip()))
        else:
            found.append(Cell("code", body.strip()))
    return found


def run(page: Path, pictures: Path) -> list[Cell]:
    """Execute a page in the current folder and save its pictures as `<page>-<n>.png`."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    ran, number = cells(page), 0
    for cell in ran:
        if cell.kind == "markdown":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(cell.text, str(page), "exec"), namespace)
        cell.output = printed.getvalue().rstrip()
        for figure in map(plt.figure, plt.get_fignums()):
            number, cell.pictures = number + 1, cell.pictures + 1
            figure.savefig(pictures / f"{page.stem}-{number}.png", bbox_inches="tight")
        plt.close("all")
    return ran


def markdown(page: Path, ran: list[Cell]) -> str:
    """The page as Markdown."""
    parts: list[str] = []
    number = 0
    for cell in ran:
        if cell.kind == "markdown":
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        if cell.output:
            parts.append(f"```text\n{cell.output}\n```")
        for _ in range(cell.pictures):
            number += 1
            parts.append(f"![picture {number} of {page.stem}](pictures/{page.stem}-{number}.png)")
    parts.append(f"*Written by `render.py` from `{page.name}`; change that file.*")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the Markdown files")
    out = parser.parse_args().out.absolute()
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(HERE))
    os.environ.setdefault("DDPM_DATA", str(Path("data").absolute()))
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for page in PAGES:
            text = markdown(page, run(page, out / "pictures"))
            (out / f"{page.stem}.md").write_text(text, encoding="utf-8")
            print(page.stem, flush=True)


if __name__ == "__main__":
    main()
