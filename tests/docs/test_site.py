"""The site of the documentation: pages that are made from conf/, and links that lead to pages."""

import importlib.util
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from support.base import ROOT

from ddpm.runner.config import catalog

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
pytest.importorskip("latex2mathml")
spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "site" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def test_the_reference_of_conf_has_every_option_and_key():
    page = hooks.conf_reference(catalog.CONF)
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    for group, options in catalog.groups().items():
        for option in options:
            section = sections[f"{group}={option}"]
            file = catalog.CONF / group / f"{option}.yaml"
            for key, value in catalog.flatten(catalog.read(file)):
                assert isinstance(value, dict) or f"| `{key}` |" in section, file
    row = next(r for r in sections["job=train"].splitlines() if "`job.ema_ramp`" in r)
    assert "| `10` |" in row
    assert "decay of step n" in row


@pytest.mark.parametrize(
    ("page", "link", "made"),
    [
        ("concepts.md", "[a](../README.md#sweep)", "[a](index.md#sweep)"),
        ("concepts.md", "![b](../benchmarks/pictures/c.png)", "![b](benchmarks/pictures/c.png)"),
        ("index.md", "[a](docs/data.md)", "[a](data.md)"),
        ("index.md", "[a](examples/from_scratch.py)", "a (`examples/from_scratch.py`)"),
        ("walkthrough/index.md", "[a](../concepts.md)", "[a](../concepts.md)"),
        (
            "walkthrough/01_forward.md",
            "![p](pictures/q.png)",
            "![p](../walkthrough/pictures/q.png)",
        ),
        ("data.md", "[a](https://arxiv.org)", "[a](https://arxiv.org)"),
        ("index.md", "    x = [a](b)\n\n[a](docs/data.md)", "    x = [a](b)\n\n[a](data.md)"),
    ],
)
def test_links_lead_to_pages_of_the_site(page, link, made):
    place = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(link, page=place) == made


def test_every_page_of_docs_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    made = hooks.on_config(SimpleNamespace(nav=nav)).nav
    listed = re.findall(r"[^'\s]+\.md", str(made))
    assert {p.name for p in (ROOT / "docs").glob("*.md")} <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "MathML" in (tmp_path / "site/walkthrough/01_forward/index.html").read_text()


def test_formulas_become_mathml():
    html = hooks.on_page_content('<span class="arithmatex">\\(x_t &lt; 1\\)</span>')
    assert html.startswith("<math")
    assert "arithmatex" not in html
