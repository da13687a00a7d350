"""Both pages in a real browser without a window: opened, clicked through, by keyboard and touch."""

import base64
import json
import os
import shutil

import pytest
from support.report_folders import picture, run_folder
from support.web import TOKEN, served

from ddpm.pipeline import Pipeline
from ddpm.runner.runs import run_dir
from ddpm.samplers.ddim import DDIM
from ddpm.web import play, watch
from ddpm.web.runs import Runs
from ddpm.web.studio import Studio

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as started:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=CHROMIUM, args=root)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Open an address; fails at the end if the page complained or asked for anything elsewhere."""
    wrong, contexts = [], []

    def complained(message):  # of a refused request, the page shows the reason itself
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def get(address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", complained)
        page.on("request", lambda r: None if r.url.startswith(
            (address.split("?")[0], "data:")) else wrong.append(r.url))  # fmt: skip
        page.goto(address)
        return page

    yield get
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def runs(tmp_path):
    """A run that trains, and a finished one."""
    running = {"state": "running", "total": 1000, "step": 30}
    folder = run_folder(
        tmp_path / "trains", [2.0, 1.0, 0.6], status=running, kind="trains", steps=[10, 20]
    )
    done = run_folder(tmp_path / "done", [2.0, 1.5], seed=1, steps=[10])
    with run_dir.lock(folder):
        yield [folder, done]


@pytest.mark.slow
def test_watch_page_shows_runs_and_writes_requests(runs, open_page):
    folder = runs[0]
    with served(watch.application(Runs(lambda: runs, "my runs", 9), TOKEN)) as address:
        page = open_page(address)
        row = page.locator("#runs tbody tr", has_text="trains")
        row.wait_for()
        assert "token" not in page.url
        assert page.get_by_role("heading", level=1).text_content() == "my runs"
        assert page.locator("#summary").text_content().startswith("1 done, 1 running")
        assert page.locator("#large svg[role=img]").count() == 1
        assert (
            page.locator("#runs tbody tr", has_text="done").locator("button:visible").count() == 0
        )

        # A new line and a new preview come by themselves.
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 40, "train/loss": 0.125}) + "\n")
        picture(folder / "samples" / "step-000040.png", seed=2)
        row.get_by_text("0.1250").wait_for()
        figure = page.locator("#gallery figure", has_text="trains")
        figure.get_by_text("step 40").wait_for()
        assert figure.locator("img").evaluate(
            "image => image.decode().then(() => image.naturalWidth)"
        )
        figure.get_by_role("slider").press("ArrowLeft")
        figure.get_by_text("step 20").wait_for()

        # The buttons write files; stopping asks first.
        row.get_by_role("button", name="draw a preview now").click()
        row.get_by_text("preview …").wait_for()
        assert (folder / "sample").exists()
        page.once("dialog", lambda dialog: dialog.dismiss())
        row.get_by_role("button", name="stop").click()
        assert not (folder / "stop").exists()
        page.once("dialog", lambda dialog: dialog.accept())
        row.get_by_role("button", name="stop").focus()
        page.keyboard.press("Enter")
        row.get_by_text("stop …").wait_for()
        assert (folder / "stop").exists()
        page.locator("#scale").click()
        assert (
            page.locator("#large svg").get_attribute("aria-label") == "training loss, linear scale"
        )

        shutil.rmtree(runs[1])
        page.locator("#notes").get_by_text("is not the folder of a run").wait_for()
        assert page.locator("#runs tbody tr").count() == 1


@pytest.fixture
def studio(tiny):
    pipeline = Pipeline.from_checkpoint(tiny, device="cpu")
    samplers = {"ddim": (lambda steps: DDIM(steps=steps, eta=0.0), 4)}
    facts = {"model": "convnet", "data": "digits", "parameters": "1", "step": "6"}
    facts |= {"weights": "ema", "device": "cpu"}
    return Studio(pipeline, samplers, labelled=False, make_guidance=None, facts=facts)


def drawn(page, selector):
    """The PNG file that a picture shows."""
    address = page.locator(selector).get_attribute("src")
    return base64.b64decode(address.removeprefix("data:image/png;base64,"))


def of_seed(studio, seed, steps=4):
    asked = {"seed": seed, "sampler": "ddim", "steps": steps}
    *_, last = studio.draw(asked)
    return base64.b64decode(last["images"][0])


@pytest.mark.slow
def test_play_page_draws_and_edits(studio, open_page):
    with served(play.application(studio, TOKEN)) as address:
        page = open_page(address, has_touch=True)
        told, value = page.locator("#told"), page.locator("#t-value")
        told.get_by_text("4 steps in").wait_for()
        assert drawn(page, "#x_t") == of_seed(studio, 0)

        # By keyboard: back over t, and another seed.
        page.locator("#t").focus()
        page.keyboard.press("Home")
        assert value.text_content() == "t = 999"
        page.keyboard.press("ArrowRight")
        assert value.text_content() == "t = 666"
        assert drawn(page, "#x_0") != drawn(page, "#x_t")
        page.get_by_label("seed", exact=True).fill("7")
        page.keyboard.press("Enter")
        page.locator("#save[download='000007.png']:visible").wait_for()
        assert drawn(page, "#x_t") == of_seed(studio, 7)
        page.get_by_role("button", name="play").tap()
        page.get_by_role("button", name="play").wait_for()  # it was "pause" until the end
        page.get_by_label("steps").fill("3")
        page.get_by_label("steps").press("Tab")
        told.get_by_text("3 steps in").wait_for()
        assert drawn(page, "#x_t") == of_seed(studio, 7, steps=3)

        # The canvas: what is not marked stays.
        canvas = page.locator("#canvas")
        canvas.tap(position={"x": 200, "y": 200})
        canvas.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.get_by_role("button", name="inpaint").click()
        page.locator("#take:enabled").wait_for()
        assert page.locator("#painted-told").text_content().endswith(" s")
        assert drawn(page, "#painted") != of_seed(studio, 7, steps=3)
        page.get_by_role("button", name="none").click()
        page.get_by_role("button", name="inpaint").click()
        page.get_by_role("alert").get_by_text("mark a part of the picture first").wait_for()

        page.get_by_label("from the seed above to seed").fill("9")
        page.get_by_label("images", exact=True).fill("3")
        page.get_by_role("button", name="draw the row").click()
        page.locator("#row-told").get_by_text("steps in").wait_for()
        images = page.locator("#row img")
        assert images.count() == 3
        assert drawn(page, "#row div:nth-child(1) img") == of_seed(studio, 7, steps=3)
        assert drawn(page, "#row div:nth-child(3) img") == of_seed(studio, 9, steps=3)


@pytest.mark.slow
def test_every_control_has_a_name(runs, studio, open_page):
    unnamed = """() => [...document.querySelectorAll("button, input, select, canvas, img[src]")]
        .filter((one) => !one.hidden && !one.labels?.length && !one.getAttribute("aria-label")
            && !one.textContent.trim() && !one.alt && !one.title).map((one) => one.outerHTML)"""
    with served(watch.application(Runs(lambda: runs, "my runs", 9), TOKEN)) as address:
        page = open_page(address, color_scheme="dark", viewport={"width": 360, "height": 740})
        page.locator("#gallery figure").first.wait_for()
        assert page.evaluate(unnamed) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    with served(play.application(studio, TOKEN)) as address:
        page = open_page(address, color_scheme="dark", viewport={"width": 360, "height": 740})
        page.locator("#told").get_by_text("steps in").wait_for()
        assert page.evaluate(unnamed) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(23, 23, 22)"  # dark where the system is
