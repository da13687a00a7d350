"""Several trackers: a failing one is switched off, and every choice of them composes."""

import inspect
import logging
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf
from support.base import TINY
from support.recorder import Recorder
from support.trackers import CONF, GRID, HPARAMS, NODES, info, knobs, own_warnings

from ddpm.errors import InputError
from ddpm.runner.runs.metrics_log import read_metrics
from ddpm.trackers.multi import Trackers, open_trackers
from ddpm.trackers.tensorboard import TensorBoard


def test_a_tracker_that_raises_is_switched_off_once(caplog):
    good, bad = Recorder(), Recorder(fails=True)
    with Trackers([bad, good]) as trackers:
        assert trackers.places == ["somewhere"] * 2
        for step in (1, 2, 3):
            trackers.log(step, {"train/loss": 0.1})
        trackers.log_image(3, "samples", GRID)
    assert good.calls == [1, 2, 3, "samples", "done"]
    assert bad.calls == [1, "done"]
    assert own_warnings(caplog) == [
        "The tracker Recorder is switched off, the run goes on: gone for good"
    ]


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError, "failed"), (KeyboardInterrupt, "preempted"), (SystemExit, "preempted")],
)
def test_exceptions_close_trackers_with_the_matching_state(error, state):
    tracker = Recorder()
    with pytest.raises(error), Trackers([tracker]):
        raise error
    assert tracker.calls == [state]


def test_only_the_first_close_is_forwarded():
    tracker = Recorder()
    with Trackers([tracker]) as trackers:
        trackers.close("preempted")
    assert tracker.calls == ["preempted"]


def test_broken_trackers_are_left_out_and_invalid_settings_are_refused(tmp_path, caplog):
    def broken(**_):
        raise RuntimeError("no luck")

    given = {}

    def works(**arguments):
        given.update(arguments)
        return Recorder()

    options = {"run_dir": tmp_path, "run": info(), "hparams": HPARAMS, "start_step": 3}
    with open_trackers({"broken": broken, "works": works}, **options) as trackers:
        trackers.log(4, {"train/loss": 1.0})
        assert trackers.places == ["somewhere"]
    assert given == options
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert caplog.text.count("no luck") == 1

    opened = Recorder()

    def mistaken(**_):
        raise InputError("tracker.x.y=3: must be 4")

    with pytest.raises(InputError, match="must be 4"):
        open_trackers({"opened": lambda **_: opened, "mistaken": mistaken}, **options)
    assert opened.calls == ["failed"]


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_missing_package_is_reported_before_a_folder_is_made(run, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    words = [word for word in TINY if not word.startswith("tracker")]
    status, _, err = run(*words, f"tracker={name}", "output_dir=new")
    assert (status, err) == (
        2,
        f"tracker={name}: needs {name}: pip install -e '.[{name}]'.\n",
    )
    assert not (tmp_path / "new").exists()


def test_tensorboard_reads_back_and_a_resume_replaces_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start_step, loss in ((0, 1.0), (10, 2.0)):
        tracker = TensorBoard(
            **knobs("tensorboard"),
            run_dir=tmp_path,
            run=info(),
            hparams=HPARAMS,
            start_step=start_step,
        )
        for step in (start_step + 10, start_step + 20):
            tracker.log(step, {"train/loss": loss})
        tracker.log_image(start_step + 20, "samples", GRID)
        tracker.close("done")

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(10, 1.0), (20, 2.0), (30, 2.0)]
    picture = events.Images("samples")[-1]
    assert (picture.step, picture.width, picture.height) == (30, 12, 8)
    assert tracker.where == f"tensorboard --logdir {tmp_path}/tensorboard"


@pytest.mark.parametrize("default", ["wandb", "[wandb]", "local"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["tracker=local"], set()),
        (["tracker=wandb"], {"wandb"}),
        (["tracker=tensorboard"], {"tensorboard"}),
        (["tracker=[wandb,tensorboard]", "tracker.wandb.mode=offline"], {"wandb", "tensorboard"}),
        (["tracker=[local,wandb]"], {"wandb"}),
        (["tracker=[]"], set()),
    ],
)
def test_any_choice_of_trackers_composes(tmp_path, default, overrides, expected):
    (tmp_path / "tracker").symlink_to(CONF)
    (tmp_path / "config.yaml").write_text(
        f"defaults: [_self_, {{tracker: {default}}}]\ntracker: {{}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert set(config["tracker"]) == expected


@pytest.mark.parametrize("name", list(NODES))
def test_yaml_file_lists_every_setting_of_its_tracker(name):
    given = {"run_dir", "run", "hparams", "start_step"}
    parameters = inspect.signature(get_class(NODES[name]["_target_"])).parameters
    assert set(knobs(name)) == set(parameters) - given
    assert all(parameter.default is parameter.empty for parameter in parameters.values())
    assert NODES[name]["_partial_"] is True


def test_warnings_are_printed_without_logging_configuration(tmp_path, capsys):
    handlers, logging.root.handlers = logging.root.handlers, []
    try:
        Trackers([Recorder(fails=True)]).log(1, {})
    finally:
        logging.root.handlers = handlers
    assert "switched off" in capsys.readouterr().err
