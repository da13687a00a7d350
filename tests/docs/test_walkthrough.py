"""The walk-through: every equation of Ho et al. has a function and a page, and all pages run."""

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from support.base import ROOT

FOLDER = ROOT / "docs" / "walkthrough"
spec = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
render = importlib.util.module_from_spec(spec)
sys.modules["render"] = render
spec.loader.exec_module(render)
WANTED = [*(f"Eq. {n}" for n in range(2, 16)), "Algorithm 1", "Algorithm 2"]


def equations():
    """The code and the page of each equation of Ho et al. 2020, from the table in concepts.md."""
    table = (ROOT / "docs" / "concepts.md").read_text().partition("| what | formula |")[2]
    found = {}
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        _, _, source, code, page = (cell.strip() for cell in line.strip("|").split(" | "))
        if re.search(r"\d{4}", source):
            continue  # of another paper
        names = re.findall(r"Algorithm \d", source)
        if source.startswith("Eq."):
            names = [f"Eq. {n}" for n in re.findall(r"\d+", source)]
        functions = re.findall(r"`(ddpm/[\w/]+\.py):(\w+)`", code)
        for name in names:
            found.setdefault(name, []).append((functions, re.findall(r"\((.*)\.md\)", page)))
    return found


@pytest.mark.parametrize("name", WANTED)
def test_every_equation_has_a_function_and_a_page(name):
    for functions, pages in equations()[name]:
        assert functions
        for file, function in functions:
            nodes = ast.walk(ast.parse((ROOT / file).read_text()))
            kinds = (ast.FunctionDef, ast.ClassDef)
            assert function in {node.name for node in nodes if isinstance(node, kinds)}, file
        (page,) = pages
        text = (ROOT / "docs" / f"{page}.py").read_text()
        assert re.search(rf"{re.escape(name)}\b", text), page
        assert any(f"{file}:{function}" in text for file, function in functions), page


@pytest.mark.parametrize("page", render.PAGES, ids=lambda page: page.stem)
def test_the_markdown_holds_the_page_and_its_pictures(page):
    text = page.with_suffix(".md").read_text()
    for cell in render.cells(page):
        assert cell.text in text, f"run python docs/walkthrough/render.py: {cell.text[:60]}"
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", text):
        assert (FOLDER / picture).stat().st_size > 1000
    assert "Change and see" in text


def test_code_is_imported_not_copied():
    assert len(render.PAGES) == 7
    for page in render.PAGES:
        nodes = list(
            ast.walk(ast.parse("\n".join(c.text for c in render.cells(page) if c.kind == "code")))
        )
        assert [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("ddpm.")]
        classes = {n.name for n in nodes if isinstance(n, ast.ClassDef)}
        assert classes <= {"Best"}  # the network of page 7, which knows its data


def test_the_pictures_are_small():
    pictures = [*(FOLDER / "pictures").iterdir(), *(ROOT / "docs" / "pictures").iterdir()]
    assert sum(file.stat().st_size for file in pictures) < 1_500_000
    shown = "".join(
        page.read_text() for page in [*FOLDER.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    )
    assert {file.name for file in pictures if file.name not in shown} == set()


@pytest.mark.slow
def test_all_pages_run(tmp_path):
    env = os.environ | {
        "WALKTHROUGH_STEPS": "50",
        "DDPM_DATA": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, str(FOLDER / "render.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pictures = {file.name for file in (FOLDER / "pictures").iterdir()}
    assert {file.name for file in (tmp_path / "out" / "pictures").iterdir()} == pictures
