"""The report as one self-contained HTML page: no other files, no network, only its own script."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ddpm.runner.report import changes, commands, curves, grids, pareto, tables
from ddpm.runner.report.comparison import Comparison

_HERE = Path(__file__).parent


def environment() -> jinja2.Environment:
    """The templates; every value is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(
    comparison: Comparison,
    output: Path,
    large: Sequence[curves.Panel],
    quartiles: Sequence[curves.Panel],
) -> str:
    """The page, whose links are relative to `output`."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    groups, damaged = grids.embedded(grids.groups(comparison))
    return (
        environment()
        .get_template("page.html")
        .render(
            comparison=comparison,
            facts=tables.facts(comparison),
            notes=[*comparison.notes, *damaged],
            summary=tables.of_settings(comparison),
            bold_line=tables.bold_line(comparison),
            differences=tables.of_differences(comparison),
            about_differences=tables.DIFFERENCES,
            singles=tables.of_runs(comparison, output),
            groups=groups,
            tradeoffs=pareto.tradeoffs(comparison),
            large=large,
            quartiles=quartiles,
            drawn={line.setting for panel in large for line in panel.scales[0].lines},
            runs=_runs(comparison, output),
            style=curves.style,
            css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # our file, not of a run
            script=Markup(script),
            script_hash=_hash(script),
        )
    )


def _runs(comparison: Comparison, output: Path) -> list[dict[str, Any]]:
    """Data of each run for the last section."""
    found = []
    for number, run in enumerate(comparison.runs):
        setting = comparison.setting_of(run)
        found.append(
            {
                "number": number,
                "setting": comparison.number_of(run),
                "name": comparison.names[run.folder],
                "label": "" if setting is None else f"{setting.label}, seed {run.seed}",
                "link": grids.link(run.folder, output),
                "state": run.state,
                "error": run.error,
                "commit": run.code[0],
                "dirty": run.code[1],
                "again": commands.again(run),
                "changes": changes.as_text(run),
                "sample": commands.sample(run),
            }
        )
    return found


def _hash(script: str) -> str:
    """The hash of the script for the page's content security policy, which blocks others."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
