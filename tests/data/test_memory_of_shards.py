"""Training from shards needs the same memory however many there are."""

import shutil
import subprocess
import sys

import pytest
from support.base import ROOT, TINY
from support.image_sets import random_pixels
from test_formats import png, write_tar, write_zip

SHARDS = 6
KEYS = {"webdataset": "shards", "parquet": "path", "zip": "path"}


def write_shard(kind, path):
    """256 pictures, 50 MB."""
    pixels = random_pixels(256, 256, 256, 3)
    members = [(f"{n:03}.png", png(image)) for n, image in enumerate(pixels)]
    if kind == "webdataset":
        write_tar(path, members)
    elif kind == "zip":
        write_zip(path, members)
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = [{"bytes": content, "path": name} for name, content in members]
        pq.write_table(pa.table({"image": rows}), path)
    assert path.stat().st_size > 50_000_000


# What wait4 tells of a child includes the memory of this process, which started it.
CHILD = """
import re, runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as status, open("peak", "w") as peak:
        peak.write(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
"""


def peak_memory(folder, *words):
    """Of a real run: kB."""
    words = [*TINY, *words, "data.image_size=32", "job.max_steps=2", f"data_dir={folder}"]
    code = f"import sys; sys.argv = {[str(ROOT / 'run.py'), *words]}\n{CHILD}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int((folder / "peak").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEYS)
def test_six_shards_need_the_memory_of_one(kind, tmp_path):
    ending = {"webdataset": "tar"}.get(kind, kind)
    first = tmp_path / "shards" / f"0.{ending}"
    first.parent.mkdir()
    write_shard(kind, first)
    words = [f"data={kind}", f"data.{KEYS[kind]}={first.parent}"]
    one = peak_memory(tmp_path, *words, "output_dir=one")
    for number in range(1, SHARDS):
        shutil.copy(first, first.with_name(f"{number}.{ending}"))
    many = peak_memory(tmp_path, *words, "output_dir=many")
    print(f"{one:,} and {many:,} kB")  # the shards have 250,000 kB more
    assert many < 1.15 * one
