"""Curves of a report, and its page in a browser if one is installed."""

import shutil
import xml.etree.ElementTree

import pytest
from support.report_folders import run_folder

from ddpm.runner import report
from ddpm.runner.report import comparison, curves
from ddpm.runner.report.run_record import read

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def panels(*folders):
    return curves.panels(comparison.make([read(folder) for folder in folders], "t"))


def points(path):
    return [tuple(map(float, pair.split())) for pair in path[1:].replace("h0", "").split("L")]


def test_points_have_the_right_coordinates_on_linear_and_log_axes(tmp_path):
    folder = run_folder(tmp_path / "a", [5.0, 4.0, 3.0, 2.0, 1.0])
    (panel,), _ = panels(folder)
    assert [scale.kind for scale in panel.scales] == ["log", "linear"]
    scale = panel.scales[1]
    found = points(scale.lines[0].raw)
    assert [x for x, _ in found] == [200, 400, 600, 800, 1000]
    for (_, y), loss in zip(found, (5, 4, 3, 2, 1), strict=True):
        assert y == pytest.approx(1000 * (scale.high - loss) / (scale.high - scale.low), abs=0.05)
    log = panel.scales[0]
    for (_, y), loss in zip(points(log.lines[0].raw), (5, 4, 3, 2, 1), strict=True):
        assert log.low * (log.high / log.low) ** (1 - y / 1000) == pytest.approx(loss, rel=1e-3)


def test_losses_are_smoothed_and_evaluations_are_not(tmp_path):
    values = [1.0, 3.0, 1.0, 3.0]
    rows = [{"step": i, "train/loss": v, "eval/fid": v} for i, v in enumerate(values)]
    (loss, fid), _ = panels(run_folder(tmp_path / "a", rows=rows))
    for panel, same in (loss, False), (fid, True):
        line = panel.scales[0].lines[0]
        assert (line.path == line.raw) is same


def test_ticks_are_placed_at_their_values(tmp_path):
    (panel,), _ = panels(run_folder(tmp_path / "a", [1.0, 0.01]))
    log, linear = panel.scales
    assert {label for _, label in log.ticks} >= {"0.01", "0.1", "1"}
    for at, label in log.ticks:
        value = log.low * (log.high / log.low) ** (at / 100)
        assert value == pytest.approx(float(label), rel=1e-6)
    for at, label in linear.ticks:
        value = linear.low + (linear.high - linear.low) * at / 100
        assert value == pytest.approx(float(label), abs=1e-9)
    assert panel.ticks[0] == (0, "0")


@pytest.mark.parametrize(
    "losses", [[0.5], [0.5, 0.5], [0.0, 0.0], [-1.0, 0.0, 1.0], [1e-30, 1e30], [1e6, 1e6 + 1]]
)
def test_extreme_values_can_be_drawn(tmp_path, losses):
    (panel,), _ = panels(run_folder(tmp_path / "a", losses))
    assert len(panel.scales) == (1 if min(losses) <= 0 else 2)
    for scale in panel.scales:
        assert len(scale.ticks) >= 2
        assert all(-0.01 <= at <= 100.01 for at, _ in scale.ticks)
        for line in scale.lines:
            assert all(0 <= y <= 1000 for _, y in points(line.path))
            assert line.dot is (len(losses) == 1)


def test_quarters_of_t_share_an_axis_and_evaluations_have_their_own(tmp_path):
    rows = [
        {"step": s, "train/loss": 1, "eval/fid": 9, "train/loss_q1": 4, "train/loss_q4": 0.1}
        for s in (1, 2)
    ]
    large, quarters = panels(run_folder(tmp_path / "a", rows=rows))
    assert [panel.title for panel in large] == ["training loss", "eval/fid"]
    assert [panel.title for panel in quarters] == ["t in [0, T/4)", "t in [3T/4, T)"]
    assert len({(p.scales[0].low, p.scales[0].high) for p in quarters}) == 1


def test_24_settings_have_distinct_line_styles():
    assert len({curves.style(i) for i in range(24)}) == 24


def test_svg_file_is_valid_xml(tmp_path):
    folders = [
        run_folder(
            tmp_path / str(i),
            [1.0, 0.5],
            overrides=[f"model.name=<&{i}>"],
            model={"name": f"<&{i}>"},
        )
        for i in range(2)
    ]
    report.write(folders, tmp_path / "out", "t")
    tree = xml.etree.ElementTree.parse(tmp_path / "out" / "curves.svg")
    texts = [text for element in tree.iter() if (text := element.text)]
    assert "model.name=<&0>" in texts


@pytest.fixture
def page(tmp_path):
    """A report of four runs in a browser, whose console must stay empty."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    for i, (model, loss) in enumerate((("unet", 0.9), ("convnet", 0.1), ("unet", 0.5))):
        run_folder(
            tmp_path / f"run-{i}",
            [1.0, loss],
            seed=i,
            steps=(10,),
            choices={"model": model},
            overrides=[f"model={model}"],
        )
    run_folder(tmp_path / "run-3", status=False, seed=3)
    report.write([tmp_path / f"run-{i}" for i in range(4)], tmp_path / "out", "t")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        opened = browser.new_page()
        messages, asked = [], []
        opened.on("console", lambda message: messages.append(message.text))
        opened.on("pageerror", lambda error: messages.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto((tmp_path / "out" / "report.html").as_uri())
        yield opened
        browser.close()
    assert messages == []
    assert [url for url in asked if not url.startswith("data:")] == asked[:1]


@pytest.mark.slow
def test_report_page_sorts_toggles_zooms_and_copies_in_a_browser(page):
    def column(table, i):
        rows = page.locator(f"#{table} tbody tr")
        return [row.locator("td").nth(i).inner_text() for row in rows.all()]

    heading = page.locator("#runs th", has_text="final loss")
    up = ["0.1000", "0.5000", "0.9000"]
    for key, order in ("Enter", up), ("Space", up[::-1]):
        heading.locator("button").focus()
        page.keyboard.press(key)
        assert column("runs", 5) == [*order, "\u2013"]  # what is missing stays below
    assert heading.get_attribute("aria-sort") == "descending"

    assert page.locator(".scale.log svg").first.is_visible()
    page.locator("#scale").click()
    assert page.locator(".scale.linear svg").first.is_visible()
    assert not page.locator(".scale.log svg").first.is_visible()

    page.locator(".legend button").first.click()
    assert page.locator(".scale.linear .line.on:not(.raw)").count() == 2

    page.locator(".zoom").first.click()
    first = page.locator("dialog p").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog p").inner_text() != first
    page.keyboard.press("Escape")

    page.locator("details.run summary").first.focus()
    page.keyboard.press("Enter")
    button = page.locator(".copy").first
    button.click()
    page.wait_for_function("document.querySelector('.copy').textContent !== 'copy'")
    assert button.inner_text() == "copied"
