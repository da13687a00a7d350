"""scores.html, and scores against their cost in the report."""

import re

import pytest
import torch
from support.report_folders import run_folder
from support.scored import RULER, SUBJECT, changed, scored

from ddpm.images import save_png
from ddpm.runner.report import comparison, pareto, run_record, score_page, write
from ddpm.runner.report.plots import Point
from ddpm.runner.runs import scores


def test_page_shows_scores_images_curves_and_passports(tmp_path):
    for name, side in (("grid", 8), ("nearest", 4)):
        save_png(torch.zeros(1, side, side, dtype=torch.uint8), tmp_path / f"{name}.png")
    (tmp_path / "loss_by_t.csv").write_text("t_first,t_last,n,loss,loss_train\n0,4,2,0.5,0.4\n")
    (tmp_path / "bound.csv").write_text("t_first,t_last,bits,error\n0,0,2.5,0.1\n1,9,0.9,0.1\n")
    found = [scored(1.0), scored(0.5, name="<b>fd", low=None, high=None, floor=None)]
    score_page.write(tmp_path, found)
    page = (tmp_path / "scores.html").read_text()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    row = cells[cells.index("kd_mnist") :]
    assert row[:5] == ["kd_mnist", "train", "1.000", "0.9000 to 1.100", "0.5000"]
    assert found[0].ruler_id in cells
    assert "&lt;b&gt;fd" in cells
    assert "<b>fd" not in page
    assert page.count('src="data:image/png;base64,') == 2
    for text in ("loss", "held out", "training pictures", "bound, bits per dimension"):
        assert text in page
    assert cells[cells.index("checkpoint") + 1] == SUBJECT["checkpoint"]
    assert cells[cells.index("features.digest") + 1] == RULER["features"]["digest"]
    assert page.count("<summary>How:") == 1, "of one ruler"
    assert "kd_mnist, &lt;b&gt;fd against train" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_page_without_images_and_tables_shows_the_scores(tmp_path):
    score_page.write(tmp_path, [scored(1.0)])
    page = (tmp_path / "scores.html").read_text()
    assert "kd_mnist" in page
    assert "Samples" not in page
    assert "<svg" not in page


@pytest.fixture
def study(tmp_path):
    """Samplers of 5, 10, 10 and 20 network evaluations; the last one is no better than 10."""
    folders = []
    for i, (steps, value) in enumerate(((5, 3.0), (10, 1.0), (10, 2.0), (20, 0.95))):
        folder = run_folder(tmp_path / f"{i}", seed=0, optimizer={"lr": float(i)})
        subject = changed(changed(SUBJECT, "evaluations", steps), "checkpoint", f"{i:012}")
        scores.write(folder, [scored(value, subject=subject)])
        folders.append(folder)
    return comparison.make([run_record.read(folder) for folder in folders], "t")


def test_report_plots_scores_of_samplers_against_their_cost(study, tmp_path):
    (found,) = pareto.tradeoffs(study)
    assert "best with" in found.advice
    assert "(0.9500); the interval of" in found.advice
    assert "(1.000) reaches it with fewer evaluations" in found.advice
    write([run.folder for run in study.runs], tmp_path / "out", "t")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Scores and their cost" in page
    assert "over network evaluations" in re.sub(r"<[^>]*>", "", page)
    assert found.advice in page


def test_pareto_front_keeps_only_undominated_points():
    points = [Point(x, y) for x, y in ((5, 3.0), (10, 2.0), (10, 1.0), (20, 1.5), (40, 0.5))]
    assert [(p.x, p.y) for p in pareto.front(points, -1)] == [(5, 3.0), (10, 1.0), (40, 0.5)]
    assert [(p.x, p.y) for p in pareto.front(points, 1)] == [(5, 3.0)]
