"""Common settings and fixtures: one thread, no accounts, no network, and tiny runs."""

import gc
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # two slow each other down tenfold beside another program
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("HYDRA_FULL_ERROR", None)

import pytest
from support.base import ROOT, TINY, without_replaced


def pytest_sessionstart(session):
    """Prepare a process that runs tests; the one that only hands them out needs no torch."""
    if session.config.pluginmanager.hasplugin("dsession"):  # of pytest-xdist
        return
    gc.disable()  # what is imported from here to the end of the collection stays
    from support.sharing import share_compositions

    share_compositions()
    session.config.pluginmanager.import_plugin("support.image_sets")  # its fixtures


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    """Leave modules and collected tests out of every later search for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" is applied
def pytest_collection_modifyitems(items):
    """Leave `quick(n)` cases of a test in the quick suite, spread over all; the others are slow.

    The tests of trackers run last: W&B and its libraries start threads that never end, and other
    tests copy their process by a fork, which can hang beside threads.
    """
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("quick"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        count = group[0].get_closest_marker("quick").args[0]
        kept = {round(i * len(group) / count) for i in range(count)}
        for number, item in enumerate(group):
            if number not in kept:
                item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "trackers" in item.path.relative_to(ROOT / "tests").parts)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the digits are cached, once for all runs of this process."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def run(tmp_path, data_dir, monkeypatch, capfd):
    """Call run.py's entry in this process, in an empty folder: (exit status, stdout, stderr)."""
    from hydra.core.global_hydra import GlobalHydra
    from support.sharing import curve_of_a_loss

    from ddpm import cli
    from ddpm.runner import own_folder
    from ddpm.runner.sweeps import callback
    from ddpm.trackers import local

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_DATA", str(data_dir))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])  # --config-dir adds to it
    monkeypatch.setattr(own_folder, "_folder", None)
    curve = curve_of_a_loss()
    monkeypatch.setattr(local, "loss_curve", lambda *_: curve)

    def call(*arguments: str) -> tuple[int, str, str]:
        words = without_replaced(arguments)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.delenv("COLUMNS", raising=False)  # of pytest-xdist: tables would be cut
        monkeypatch.setattr(cli, "_single", {})
        callback.forget()
        GlobalHydra.instance().clear()
        capfd.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="session")
def finished_runs():
    """Folders of finished runs by their words: copied from, and never written to."""
    return {}


@pytest.fixture
def finished(run, finished_runs, tmp_path, tmp_path_factory):
    """Ask for a finished run of these words, in the folder `run`.

    It is trained once in this process; each test has a copy of its own.
    """

    def get(*words: str) -> Path:
        if words not in finished_runs:
            status, out, err = run(*words, "output_dir=run")
            assert status == 0, out + err
            finished_runs[words] = tmp_path_factory.mktemp("finished") / "run"
            shutil.move(tmp_path / "run", finished_runs[words])
        return Path(shutil.copytree(finished_runs[words], tmp_path / "run"))

    return get


@pytest.fixture
def tiny(finished):
    """A finished tiny run: its folder."""
    return finished(*TINY)
