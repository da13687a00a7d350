"""The figures as one self-contained HTML page: no other files, no script, no network."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from ddpm.figures import style
from ddpm.figures.base import Drawing

_HERE = Path(__file__).parent
TYPES = {"svg": "svg+xml", "gif": "gif"}


def kinds(drawing: Drawing) -> list[str]:
    """The files of a figure, by their endings."""
    return ["png", "svg", *(["gif"] if drawing.frames else []), "csv"]


def page(
    title: str,
    facts: Sequence[str],
    drawings: Sequence[Drawing],
    missing: Mapping[str, str],
    folder: Path,
) -> str:
    """The page.

    Args:
        facts: lines below the title.
        missing: figures that are left out, with the reason.
        folder: holds the files of the figures.
    """

    def embedded(name: str, kind: str) -> str:
        return _uri(kind, (folder / f"{name}.{kind}").read_bytes())

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        facts=facts,
        drawings=drawings,
        missing=missing,
        kinds=kinds,
        equation=lambda drawing: _uri("svg", style.equation(drawing.equation)),
        picture=lambda drawing: embedded(drawing.name, "svg"),
        animation=lambda drawing: embedded(drawing.name, "gif"),
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{TYPES[kind]};base64,{base64.b64encode(data).decode()}"
