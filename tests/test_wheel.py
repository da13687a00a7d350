"""The wheel holds every file that the program reads beside its own Python files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = {"ddpm": "ddpm", "hydra_plugins": "hydra_plugins", "conf": "ddpm/conf"}


def sources():
    """Where each file of the program stands in the wheel."""
    for folder, place in PLACES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{place}/{path.relative_to(ROOT / folder).as_posix()}"


@pytest.mark.slow
def test_the_wheel_holds_templates_pages_weights_and_configurations(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        empty = [info.filename for info in archive.infolist() if not info.file_size]
    assert set(sources()) <= held, sorted(set(sources()) - held)
    kinds = {Path(name).suffix for name in sources()}
    assert {".yaml", ".html", ".css", ".js", ".svg", ".safetensors"} <= kinds
    assert all(name.endswith("__init__.py") or name.endswith("py.typed") for name in empty), empty
    assert not [name for name in held if name.startswith(("tests/", "docs/", "benchmarks/"))]
