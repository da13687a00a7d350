"""Parts in a folder of the user's own: every job uses them, if --config-dir names the folder."""

import pickle
import sys

import pytest
import yaml
from support.base import ROOT, TINY
from support.mistakes import assert_answered, contents
from support.ranks import ranks
from support.runs import SAMPLE, assert_equal_state, go, metrics_of, pngs, process, state_of

import ddpm
from ddpm.errors import InputError
from ddpm.runner import own_folder
from ddpm.runner.config import catalog

CODE = """
from torch import nn

from own_helper import SCALE


class Own(nn.Module):
    def __init__(self, *, channels, out_channels, image_size, num_classes, width):
        super().__init__()
        self.inner = nn.Conv2d(channels, width, 3, padding=1)
        self.outer = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x_t, t, label=None):
        return self.outer(self.inner(x_t).relu()) * SCALE


class Unnamed(Own):
    pass
"""
OPTION = """
_target_: own_network.Own
channels: ${data.channels}
out_channels: ${data.channels}
image_size: ${data.image_size}
num_classes: null
width: 4
"""
HERE = ["--config-dir", "mine"]
TRAIN = [word for word in TINY if not word.startswith("model=")] + ["model=own"]
DRAW = [*SAMPLE, "job.num_samples=2", "sampler=ddim", "sampler.steps=2"]


@pytest.fixture
def mine(tmp_path):
    """The folder; its modules are forgotten afterwards."""
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "own_network.py").write_text(CODE)
    (folder / "own_helper.py").write_text("SCALE = 0.5\n")
    (folder / "model" / "own.yaml").write_text(OPTION)
    yield folder
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_a_run_is_trained_resumed_drawn_from_and_exported(mine, run, tmp_path):
    out = go(run, *HERE, *TRAIN, "output_dir=whole")
    assert out.splitlines()[-1].endswith(" run.py --config-dir mine job=sample checkpoint=whole")
    go(run, *HERE, *TRAIN, "output_dir=cut", "job.max_steps=4")
    go(run, *HERE, "resume=cut", "job.max_steps=6")
    assert_equal_state(state_of(tmp_path / "whole", 6), state_of(tmp_path / "cut", 6))
    assert "mine" not in (tmp_path / "cut" / "config.yaml").read_text()
    go(run, *HERE, *DRAW, "checkpoint=cut", "output_dir=a")
    out = go(run, *HERE, "job=export", "checkpoint=cut", "output_dir=export")
    assert "--config-dir mine job=sample" in out
    go(run, *HERE, *DRAW, "checkpoint=export", "output_dir=b")
    assert pngs(tmp_path / "a").equal(pngs(tmp_path / "b"))
    scores = ["job=evaluate", "metric=kd", "features=pixels", "job.num_reference=80"]
    small = [word for word in DRAW if not word.startswith(("job=", "job.num_samples"))]
    go(run, *HERE, *scores, *small, "checkpoint=cut", "job.num_samples=70")
    go(run, *HERE, "job=report", "runs=[cut]", "tracker=local")


@pytest.mark.slow
def test_without_the_folder_nothing_is_built(mine, run, tmp_path):
    go(run, *HERE, *TRAIN, "job.max_steps=2", "output_dir=run")
    go(run, *HERE, "job=export", "checkpoint=run", "output_dir=export")
    before = contents(tmp_path)
    for words in (
        ["resume=run", "job.max_steps=3"],
        [*DRAW, "checkpoint=run"],
        [*DRAW, "checkpoint=export"],
        ["job=export", "checkpoint=run/checkpoints/step-0000002.pt"],
        ["init_from=run"],
        ["hydra.searchpath=[file://mine]", *DRAW, "checkpoint=run"],
        ["hydra.searchpath=[file://mine]", *TRAIN],
    ):
        status, _, err = run(*words)
        assert_answered(status, err, "_target_=own_network.Own", "--config-dir <folder>")
        assert len(err.splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_the_folder_gives_only_what_its_options_name(mine, run, tmp_path):
    go(run, *HERE, *TRAIN, "job.max_steps=2", "output_dir=mine/run")
    config = mine / "run" / "config.yaml"
    config.write_text(config.read_text().replace("own_network.Own", "own_network.Unnamed"))
    (mine / "model" / "deeper").mkdir()
    (mine / "model" / "deeper" / "x.yaml").write_text("_target_: own_network.Unnamed\n")
    (mine / "x.yaml").write_text("_target_: own_network.Unnamed\n")
    for folder in ("mine", "mine/run"):
        status, _, err = run("--config-dir", folder, "resume=mine/run", "job.max_steps=3")
        assert_answered(status, err, "_target_=own_network.Unnamed", f"an option in {folder}/")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("_target_: a.B", {"a.B"}),
        ("_target_: 'a.B'  # x", {"a.B"}),
        ("x: [{_target_: a.B}, {y: {_target_: c.D, z: 1}}]", {"a.B", "c.D"}),
        ("# _target_: a.B\nx: '_target_: a.B'", set()),
        ("_target_: [a.B]", set()),
        ("_target_: a.B\n  x: }", set()),
    ],
)
def test_targets_are_read_as_yaml(text, names, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.yaml").write_text(text)
    for module in "ace":
        (tmp_path / f"{module}.py").touch()
    with own_folder.used(tmp_path):
        assert catalog.own_targets().keys() == names
        (tmp_path / "model" / "x.yaml").write_text("_target_: e.F\n")
        assert catalog.own_targets().keys() == {"e.F"}
        assert catalog.options("model")[-1] == "x"
    assert catalog.own_targets() == {}


BROKEN = [
    ("import nothing_of_this_name\n" + CODE, "own_network.Own", "own_network.py:1", "nothing_of"),
    (CODE + "def (:\n", "own_network.Own", "own_network.py:19", "SyntaxError"),
    (CODE + "\n1 / 0\n", "own_network.Own", "own_network.py:20", "ZeroDivisionError"),
    (CODE, "own_network.Onw", "own.yaml: own_network.Onw", "no attribute 'Onw'"),
    (CODE, "own_nothing.Own", "own_nothing.Own: must be a target", "a part in mine/*.py"),
    (CODE, "own_network.SCALE", "own_network.SCALE", "must be a class or function"),
]


@pytest.mark.quick(2)
@pytest.mark.parametrize(("code", "target", *"ab"), BROKEN, ids=[row[-1] for row in BROKEN])
def test_a_file_that_cannot_be_imported_is_named(code, target, a, b, mine, run, tmp_path):
    (mine / "own_network.py").write_text(code)
    (mine / "model" / "own.yaml").write_text(OPTION.replace("own_network.Own", target))
    before = contents(tmp_path)
    status, _, err = run(*HERE, *TRAIN)
    assert_answered(status, err, a, b)
    assert len(err.splitlines()) == 1
    after = {name: text for name, text in contents(tmp_path).items() if ".pyc" not in str(name)}
    assert after == before


def test_a_module_of_the_folder_shadows_none(mine, run, monkeypatch):
    (mine / "colorsys.py").write_text(CODE)
    (mine / "model" / "own.yaml").write_text(OPTION.replace("own_network", "colorsys"))
    status, _, err = run(*HERE, *TRAIN)
    assert_answered(status, err, "mine/colorsys.py", "another module of this name")


def test_help_and_messages_know_the_own_options(mine, run):
    assert ", own, " in go(run, *HERE, "--help")
    status, _, err = run(*HERE, "model=owm")
    assert_answered(status, err, "model=owm", "'own'")


@pytest.mark.slow
def test_a_sweep_in_this_process(mine, run, tmp_path):
    words = ["-m", *HERE, *TRAIN, "job.max_steps=2", "model.width=4,5", "sweep=s"]
    out = go(run, *words)
    assert "2 done" in out
    assert "2 done" in go(run, *words)
    status, out, err = run(*[word for word in words if word not in HERE])
    assert status == 2
    assert "model=own" in err
    launcher = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    third = ["sweep=t", f"hydra.launcher._target_={launcher}"]
    assert "2 done" in go(run, *words, *third)


@pytest.mark.slow
def test_python_takes_the_folder_as_an_argument(mine, run, tmp_path):
    words = [*TRAIN, "job.max_steps=2", "output_dir=api"]
    parts = ddpm.compose(*words, config_dir="mine")
    assert repr(parts).endswith("config_dir='mine')")
    assert type(parts.build("model")).__name__ == "Own"
    trained = ddpm.train(parts)
    assert trained.pipeline.sample(2).shape == (2, 1, 16, 16)
    resumed = ddpm.train(ddpm.compose("resume=api", "job.max_steps=3", config_dir=str(mine)))
    assert len(resumed.metrics) == 3
    pipeline = ddpm.Pipeline.from_checkpoint("api", config_dir="mine")
    assert type(pipeline.model).__name__ == "Own"
    assert own_folder.current() is None
    for refused in (
        lambda: ddpm.Pipeline.from_checkpoint("api"),
        lambda: ddpm.Run("api").pipeline,
        lambda: ddpm.compose("resume=api"),
    ):
        with pytest.raises(InputError, match=r"own_network\.Own: must be a target"):
            refused()
    with pytest.raises(InputError, match="config_dir=nothing: there is no such folder"):
        ddpm.compose(*words, config_dir="nothing")


def test_a_plan_takes_the_folder_to_another_process(mine, run, monkeypatch, tmp_path):
    """As the pickled jobs of `hydra/launcher=slurm` and slots do."""
    parts = ddpm.compose(*TRAIN, "job.max_steps=2", "output_dir=run", config_dir="mine")
    plan = pickle.loads(pickle.dumps(parts.plan()))
    assert plan.own_folder == mine
    assert str(mine) not in str(plan.config) + str(plan.hparams)


@pytest.mark.slow
def test_slots_and_spawned_ranks(mine, tmp_path):
    two = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]
    slots = ["-m", "hydra/launcher=slots", "hydra.launcher.cores_per_job=1", "sweep=s"]
    train = [word for word in TRAIN if word != "hardware=cpu"]
    for words in ([*two, "output_dir=run"], [*slots, "hardware=cpu", "seed=1,2"]):
        child = process(tmp_path, *HERE, *train, *words)
        out, err = child.communicate(timeout=300)
        assert child.returncode == 0, out + err
    assert len(metrics_of(tmp_path / "run")) == 6
    assert "2 done" in out
    status = [yaml.safe_load(f.read_text()) for f in tmp_path.glob("outputs/sweep/s/*/status.json")]
    assert [s["state"] for s in status] == ["done", "done"]


@pytest.mark.slow
def test_ranks_of_torchrun(mine, tmp_path, monkeypatch):
    words = [*HERE, *TRAIN, "job.max_steps=2", "output_dir=run"]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0]
    assert len(metrics_of(tmp_path / "run")) == 2


@pytest.mark.slow
def test_a_job_of_submitit(mine, run, tmp_path, monkeypatch):
    """As `hydra/launcher=slurm` submits it: read from a file, by a process without our words."""
    submitit = pytest.importorskip("submitit")
    from ddpm.runner.sweeps.compose import Job
    from ddpm.runner.sweeps.launchers.slurm_task import Task

    parts = ddpm.compose(*TRAIN, "job.max_steps=2", "output_dir=run", config_dir="mine")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as the launcher's script does
    executor = submitit.LocalExecutor(folder=tmp_path / "submitted")
    job = executor.submit(Task(Job(0, [], plan=parts.plan())))
    job.wait()
    assert len(metrics_of(tmp_path / "run")) == 2, job.stderr()


def test_keys_of_own_options_are_known_and_have_types(mine, run, tmp_path):
    (mine / "tracker").mkdir()
    (mine / "tracker" / "own.yaml").write_text(
        "# @package tracker.own\n_target_: own_tracker.Own\n_partial_: true\nlines: 3\n"
    )
    (mine / "model" / "broken.yaml").write_text("_target_: {")
    (mine / "model" / "listed.yaml").write_text("- a\n")
    (mine / "model" / "bytes.yaml").write_bytes(b"x: \xff\n")
    out = go(run, *HERE, "tracker=[own,local]", "tracker.own.lines=4", "model=own", "--cfg", "job")
    assert "lines: 4" in out
    for word, *texts in (
        ("tracker.own.line=4", "tracker.own.line", "no such key"),
        ("model.width=abc", "model.width=abc", "a whole number"),
        ("model.widht=4", "model.widht", "'model.width'"),
        ("model=broken", "broken.yaml:1:12"),
    ):
        chosen = ("tracker=local", "model=own" if word == "model=broken" else "")
        train = [other for other in TRAIN if other not in chosen]
        status, _, err = run(*HERE, *train, "tracker=[own,local]", word)
        assert_answered(status, err, *texts)
