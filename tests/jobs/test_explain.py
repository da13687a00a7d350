"""job=explain on the command line: files, page, walk over conf/, and bad input."""

import csv
import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image
from support.base import TINY

from ddpm.figures.gallery import FIGURES
from ddpm.runner.config import catalog

COMMON = ["job=explain", "hardware=cpu", "tracker=local", "job.num_images=16", "output_dir=e"]


def rows(file):
    with open(file) as lines:
        return list(csv.DictReader(lines))


def assert_whole(folder, names):
    """Every figure has its files, and the page holds them all and loads nothing."""
    page = (folder / "explain.html").read_text()
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            picture.load()
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        assert len(rows(folder / f"{name}.csv")) > 1
        assert f'<section id="{name}">' in page
    sources = re.findall(r'(?:src|href)="([^"]{1,30})', page)
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv", "gif")}
    assert {s for s in sources if not s.startswith(("data:image/", "#"))} <= files
    assert "<script" not in page
    return page


@pytest.mark.slow
def test_figures_of_a_configuration_show_every_option_of_conf(run, tmp_path):
    status, out, err = run(*COMMON, "job.figures=[schedules,weights,timesteps,reverse]")
    assert (status, err) == (0, "")
    page = assert_whole(tmp_path / "e", ["schedules", "weights", "timesteps"])
    assert "needs checkpoint=" in page
    assert "reverse" in out
    shown = {row["schedule"].split(" ")[0] for row in rows(tmp_path / "e" / "schedules.csv")}
    assert shown == set(catalog.groups()["schedule"]) - {"listed"}  # which has no betas of its own
    shown = {row["sampler"].split(" ")[0] for row in rows(tmp_path / "e" / "timesteps.csv")}
    assert shown == set(catalog.groups()["sampler"])
    assert "cosine (this run)" in {r["schedule"] for r in rows(tmp_path / "e" / "schedules.csv")}


def test_figures_of_a_checkpoint_show_its_network(tiny, run, tmp_path):
    names = ["loss", "reverse"]
    status, _, err = run(*COMMON, "checkpoint=run", "job.figures=[loss,reverse,guidance]")
    assert (status, err) == (0, "")
    assert "guidance</code>: the network takes no labels" in assert_whole(tmp_path / "e", names)


@pytest.mark.slow
def test_all_figures_of_a_checkpoint_are_drawn(tiny, run, tmp_path):
    status, _, err = run(*COMMON, "checkpoint=run")
    assert (status, err) == (0, "")
    names = set(FIGURES) - {"guidance", "attention"}  # no labels, no attention
    page = assert_whole(tmp_path / "e", names)
    assert "guidance</code>: the network takes no labels" in page
    assert "linear (this run)" in {r["schedule"] for r in rows(tmp_path / "e" / "schedules.csv")}
    with Image.open(tmp_path / "e" / "forward.gif") as animation:
        assert animation.n_frames > 20


@pytest.mark.slow
def test_all_figures_of_an_edm_network_are_drawn(finished, run, tmp_path):
    size = ["model.widths=[8,16]", "model.num_res_blocks=1", "model.groups=4"]
    words = [w for w in TINY if not w.startswith(("model", "weighting"))]
    finished(*words, "model=resunet", *size, "objective=edm", "objective.sigma_data=data")
    assert run(*COMMON, "checkpoint=run")[0] == 0
    assert_whole(tmp_path / "e", set(FIGURES) - {"guidance"})


@pytest.mark.slow
def test_a_learned_schedule_is_shown_before_and_after(finished, run, tmp_path):
    learned = ["schedule=learned" if w == "schedule=linear" else w for w in TINY]
    finished(*learned, "optimizer.lr=1e-2", "job.warmup_steps=0")
    status, _, err = run(*COMMON, "checkpoint=run", "job.figures=[schedules]")
    assert (status, err) == (0, "")
    curves = {}
    for row in rows(tmp_path / "e" / "schedules.csv"):
        curves.setdefault(row["schedule"], []).append(float(row["log_snr"]))
    before, after = (
        curves[f"learned {s} training" + e] for s, e in (("before", ""), ("after", " (this run)"))
    )
    assert before[0] == pytest.approx(9.21, abs=1e-3)
    assert before != after


def test_an_unknown_figure_is_refused_before_anything_is_written(run, tmp_path):
    status, _, err = run(*COMMON, "job.figures=[forwards]")
    assert status == 2
    assert "job.figures=forwards" in err
    assert "forward" in err
    assert not (tmp_path / "e").exists()
