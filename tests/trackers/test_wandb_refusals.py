"""Settings that W&B refuses are dropped with a warning; the run is tracked without them."""

import math

import pytest
from support.trackers import info, own_warnings
from support.wandb_runs import (
    finished,
    forget,
    log_all,
    not_logged_in,
    run_dir,
    server,
    wandb_run,
)

from ddpm.trackers.multi import Trackers
from ddpm.trackers.wandb_client import session

__all__ = ["not_logged_in", "run_dir", "server"]


@pytest.fixture(autouse=True)
def no_earlier_warnings(monkeypatch):
    monkeypatch.setattr(session, "_warned", set())


def refuse_in_the_client(monkeypatch, field):
    """Make the client refuse a setting, as that of a newer version may."""
    import wandb

    def refuse(self, name, value, before=wandb.Settings.__setattr__):
        if name == field and value:
            raise wandb.errors.UsageError(f"{name} is refused")
        before(self, name, value)

    monkeypatch.setattr(wandb.Settings, "__setattr__", refuse)


@pytest.mark.parametrize("field", ["run_tags", "run_notes", "run_job_type"])
def test_setting_refused_by_the_client_is_dropped_with_a_warning(
    field, run_dir, monkeypatch, caplog
):
    refuse_in_the_client(monkeypatch, field)
    with Trackers([wandb_run(run_dir, mode="offline", notes="a note")]) as trackers:
        log_all(trackers, (10, 20))
    (run,) = [run for run in finished(run_dir) if run.rows]
    assert [row["step"] for row in run.rows] == [10, 20]
    (warning,) = own_warnings(caplog)
    assert "is tracked without" in warning


@pytest.mark.parametrize("field", ["run_name", "run_group"])
def test_name_refused_by_the_client_is_reduced_to_ascii(field, run_dir, monkeypatch, caplog):
    import wandb

    def refuse(self, name, value, before=wandb.Settings.__setattr__):
        if name == field and not str(value).isascii():
            raise ValueError(f"{value} is refused")
        before(self, name, value)

    monkeypatch.setattr(wandb.Settings, "__setattr__", refuse)
    tracker = wandb_run(run_dir, mode="offline", name="größer", group="schöner")
    log_all(tracker, (10,))
    tracker.close("done")
    (run,) = [run for run in finished(run_dir) if run.rows]
    assert (run.run.display_name, run.run.run_group) == ("gr__er", "sch_ner") or field == "run_name"
    assert run.run.display_name == "gr__er"
    assert len(own_warnings(caplog)) == 1


class RefusedSettings:
    """Makes the server refuse some settings; `seen` holds all that it was sent."""

    def __init__(self, server, monkeypatch, wrong):
        self.seen = []
        answer = server.ask_UpsertBucket

        def ask(name=None, **settings):
            self.seen.append(settings)
            if wrong(settings):
                raise LookupError("invalid parameter")
            return answer(name=name, **settings)

        monkeypatch.setattr(server, "ask_UpsertBucket", ask, raising=False)


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda settings: "2026" in (settings.get("tags") or []),
        lambda settings: "bad" in (settings.get("notes") or ""),
        lambda settings: "ü" in (settings.get("displayName") or ""),
        lambda settings: "ü" in (settings.get("groupName") or ""),
    ],
    ids=["tags", "notes", "name", "group"],
)
def test_run_stays_online_without_settings_the_server_refuses(
    wrong, run_dir, server, monkeypatch, caplog
):
    RefusedSettings(server, monkeypatch, wrong)
    tracker = wandb_run(run_dir, tags=["2026"], notes="bad", name="fünf", group="für")
    log_all(tracker, (10, 20))
    tracker.close("done")
    run = server.runs["a1b2c3"]
    assert (run.steps, run.exit_code) == ([10, 20], 0)
    assert run.settings["displayName"] == "f_nf"
    assert run.settings["groupName"] == "f_r"
    (warning,) = own_warnings(caplog)
    assert "tags" in warning
    assert "is tracked without" in warning


def test_run_refused_by_the_server_is_offline_with_all_settings(
    run_dir, server, monkeypatch, caplog
):
    picky = RefusedSettings(server, monkeypatch, lambda settings: True)
    tracker = wandb_run(run_dir, tags=["mine"], notes="a note", name="fünf")
    assert "invalid parameter" in tracker.where
    log_all(tracker, (10,))
    tracker.close("done")
    (run,) = [run for run in finished(run_dir) if run.rows]
    assert (run.run.display_name, run.run.notes) == ("fünf", "a note")
    assert list(run.run.tags) == ["unet", "mine"]
    assert len(picky.seen) == 2
    assert own_warnings(caplog) == []


OURS = {
    "WANDB_TAGS": "," + "x" * 100,
    "WANDB_PROJECT": "a/b",
    "WANDB_RUN_ID": "../x",
    "WANDB_NAME": "other",
    "WANDB_RUN_NAME": "other",
    "WANDB_NOTES": "other",
    "WANDB_RUN_GROUP": "other",
    "WANDB_ENTITY": "other",
    "WANDB_JOB_TYPE": "other",
    "WANDB_RESUME": "must",
    "WANDB_RESUME_FROM": "a?_step=3",
    "WANDB_FORK_FROM": "b?_step=3",
    "WANDB_DIR": "/no/such/place",
}


def test_variables_of_settings_that_the_program_passes_do_not_reach_the_client(
    run_dir, monkeypatch, caplog
):
    for name, value in OURS.items():
        monkeypatch.setenv(name, value)
    tracker = wandb_run(run_dir, mode="offline", run=info(group=None))
    log_all(tracker, (10,))
    tracker.close("done")
    (run,) = finished(run_dir)
    record = run.run
    assert (record.project, record.run_id, record.display_name) == ("ddpm", "a1b2c3", "unet-digits")
    assert (record.notes, record.run_group, record.entity, record.job_type) == ("", "", "", "train")
    assert list(record.tags) == ["unet"]
    assert own_warnings(caplog) == []


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_CONSOLE", "sometimes"),
        ("WANDB_INIT_TIMEOUT", "soon"),
        ("WANDB_SWEEP_ID", " x"),
        ("WANDB_START_METHOD", "thread"),
        ("WANDB__SERVICE_WAIT", "-1"),
    ],
)
def test_other_variables_refused_by_the_client_are_dropped_with_one_warning(
    name, value, run_dir, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(name, value)
    for folder in (run_dir, tmp_path / "second"):
        forget()
        tracker = wandb_run(folder, mode="offline")
        log_all(tracker, (10,))
        tracker.close("done")
        (run,) = finished(folder)
        assert ([row["step"] for row in run.rows], run.run.project) == ([10], "ddpm")
    assert [line.split(":")[0] for line in own_warnings(caplog)] in ([f"{name}={value}"], [])


def test_refused_api_key_is_not_printed(run_dir, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", " 4b1d4b1d4b1d ")
    tracker = wandb_run(run_dir)
    tracker.close("done")
    assert tracker.where.startswith("W&B offline (")
    assert "4b1d" not in tracker.where + "".join(own_warnings(caplog))


def test_run_id_under_a_sweep_agent_is_that_of_the_run(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw1")
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    for run_id, folder in (("fromagent", run_dir), ("other", tmp_path / "other")):
        wandb_run(folder, mode="offline", run=info(run_id=run_id)).close("done")
    found = [finished(folder)[0].run for folder in (run_dir, tmp_path / "other")]
    assert [(run.run_id, run.sweep_id) for run in found] == [("fromagent", "sw1"), ("other", "sw1")]


def test_unusual_config_values_do_not_break_tracking(run_dir, caplog):
    odd = {1: "one", None: 2, "a.b": {"c.d": 3}, "": 4, "-x": 5, "a/b": 6, "_y": 7, "é": [math.nan]}
    odd |= {"large": 2**70, "inf": [math.inf, -math.inf], "text": "\udcff", "long": "x" * 100_000}
    hparams = {"model": odd, "many": list(range(26_000)), "overrides": ["a=b"] * 1000}
    with Trackers([wandb_run(run_dir, mode="offline", hparams=hparams)]) as trackers:
        log_all(trackers, (10,))
    (run,) = finished(run_dir)
    assert [row["step"] for row in run.rows] == [10]
    assert run.config["many"] == hparams["many"]
    assert (run.config["model"]["a.b"], run.config["model"]["1"]) == ({"c.d": 3}, "one")
    assert own_warnings(caplog) == []


def test_dead_wandb_service_of_an_earlier_process_is_ignored(
    run_dir, tmp_path, monkeypatch, caplog
):
    forget()
    monkeypatch.setenv("WANDB_SERVICE", f"3-99999-unix-{tmp_path / 'socket'}")
    with Trackers([wandb_run(run_dir, mode="offline")]) as trackers:
        log_all(trackers, (10,))
    (run,) = [run for run in finished(run_dir) if run.rows]
    assert [row["step"] for row in run.rows] == [10]
    assert own_warnings(caplog) == []
