"""The report as one HTML page: no other file, no network, no script but its own."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ddpm.runner.report import changes, commands, curves, grids, tables
from ddpm.runner.report.study import Study

_HERE = Path(__file__).parent


def environment() -> jinja2.Environment:
    """Where templates are; every value is text, and escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(
    study: Study, output: Path, large: Sequence[curves.Panel], quartiles: Sequence[curves.Panel]
) -> str:
    """The page, whose links are relative to `output`."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    groups, damaged = grids.embedded(grids.groups(study))
    return (
        environment()
        .get_template("page.html")
        .render(
            study=study,
            facts=tables.facts(study),
            notes=[*study.notes, *damaged],
            summary=tables.of_settings(study),
            singles=tables.of_runs(study, output),
            groups=groups,
            large=large,
            quartiles=quartiles,
            drawn={line.setting for panel in large for line in panel.scales[0].lines},
            runs=_runs(study, output),
            style=curves.style,
            css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # ours, not of a run
            script=Markup(script),
            script_hash=_hash(script),
        )
    )


def _runs(study: Study, output: Path) -> list[dict[str, Any]]:
    """What the last section tells of each run."""
    found = []
    for number, run in enumerate(study.runs):
        setting = study.setting_of(run)
        found.append(
            {
                "number": number,
                "setting": -1 if setting is None else setting.number,
                "name": study.names[run.folder],
                "label": "" if setting is None else f"{setting.label}, seed {run.seed}",
                "link": grids.link(run.folder, output),
                "state": run.state,
                "error": run.error,
                "commit": run.code[0],
                "dirty": run.code[1],
                "again": commands.again(run),
                "changes": changes.told(run),
                "sample": commands.sample(run),
            }
        )
    return found


def _hash(script: str) -> str:
    """What the page's own policy knows the script by: no other runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
