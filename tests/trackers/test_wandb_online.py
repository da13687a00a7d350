"""W&B online: what the server receives, also from resumed runs, with each step once."""

import pytest
from support.trackers import GRID, HPARAMS, info, own_warnings
from support.wandb_reader import read_run, run_files
from support.wandb_runs import (
    killed,
    log_all,
    not_logged_in,
    run_dir,
    server,
    wandb_run,
    write_metrics,
)

from ddpm.trackers.multi import Trackers

__all__ = ["not_logged_in", "run_dir", "server"]


def pictures(run):
    return [row["step"] for row in run.rows if "samples" in row]


def test_server_receives_settings_metrics_and_images(run_dir, server):
    hparams = {**HPARAMS, "code": {"commit": "ab" * 20, "dirty": True}}
    tracker = wandb_run(
        run_dir, entity="our-lab", project="pets", tags=["mine"], notes="a note", hparams=hparams
    )
    assert tracker.where == f"{server.url}/our-lab/pets/runs/a1b2c3"
    log_all(tracker, (50, 100))
    tracker.log_image(100, "samples", GRID)
    tracker.close("done")
    run = server.runs["a1b2c3"]
    assert {key: run.settings[key] for key in ("entity", "project", "groupName", "jobType")} == {
        "entity": "our-lab",
        "project": "pets",
        "groupName": "sweep",
        "jobType": "train",
    }
    assert run.settings["displayName"] == "unet-digits"
    assert (run.settings["tags"], run.settings["notes"]) == (["unet", "mine"], "a note")
    assert (run.settings["commit"], run.settings["repo"]) == ("ab" * 20, None)
    assert hparams.items() <= run.config.items()
    assert run.steps == [50, 100]
    assert pictures(run) == [100]
    assert (run.exit_code, run.preempting) == (0, False)


@pytest.mark.parametrize(("state", "preempting"), [("failed", False), ("preempted", True)])
def test_server_receives_the_end_state(state, preempting, run_dir, server):
    wandb_run(run_dir).close(state)
    run = server.runs["a1b2c3"]
    assert (run.exit_code, run.preempting) == (1, preempting)


def resume_at_50(run_dir):
    """Resume a run that got further from its checkpoint at step 50."""
    write_metrics(run_dir, range(10, 60, 10))  # rewound to the checkpoint
    tracker = wandb_run(run_dir, start_step=50)
    tracker.log_image(50, "samples", GRID)
    log_all(tracker, range(60, 110, 10))
    tracker.log_image(100, "samples", GRID)
    tracker.close("done")


def assert_whole(server):
    (run,) = server.runs.values()
    assert run.steps == list(range(10, 110, 10))
    assert pictures(run) == [50, 100]
    assert [row["_step"] for row in run.rows] == list(range(len(run.rows)))
    assert (run.starts, run.exit_code) == (2, 0)


def begin(run_dir):
    tracker = wandb_run(run_dir)
    log_all(tracker, range(10, 60, 10))
    tracker.log_image(50, "samples", GRID)
    log_all(tracker, range(60, 90, 10))
    return tracker


def test_repeated_steps_are_sent_once(run_dir, server):
    begin(run_dir).close("failed")
    resume_at_50(run_dir)
    assert_whole(server)


@pytest.mark.slow  # W&B sends every 15 seconds
@pytest.mark.parametrize("sent", [False, True], ids=["nothing sent", "all sent"])
def test_killed_run_resumes_in_the_same_wandb_run_with_each_step_once(sent, run_dir, server):
    def arrived():
        rows = server.runs["a1b2c3"].rows if "a1b2c3" in server.runs else []
        written = [row for path in run_files(run_dir) for row in read_run(path).rows]
        return len(rows if sent else written) == 9

    killed(lambda: begin(run_dir), arrived)
    (run,) = server.runs.values()
    assert len(run.rows) == (9 if sent else 0)
    resume_at_50(run_dir)
    assert run.steps == list(range(10, 110, 10))
    assert pictures(run) == [50, 100]
    assert (run.starts, run.exit_code) == (2, 0)


def test_rows_that_were_not_sent_are_sent_on_resume(run_dir, server):
    tracker = wandb_run(run_dir)
    log_all(tracker, (10, 20))
    tracker.close("failed")
    write_metrics(run_dir, (10, 20, 30, 40, 50))
    (run_dir / "samples").mkdir()
    from ddpm.images import save_png

    for step in (25, 50, 60):
        save_png(GRID, run_dir / "samples" / f"step-{step:06d}.png")
    tracker = wandb_run(run_dir, start_step=50)
    log_all(tracker, (60, 70))
    tracker.close("done")
    run = server.runs["a1b2c3"]
    assert run.steps == [10, 20, 30, 40, 50, 60, 70]
    assert pictures(run) == [25, 50]


def test_offline_parts_are_sent_when_the_run_resumes_online(run_dir, server):
    tracker = wandb_run(run_dir, mode="offline")
    log_all(tracker, (10, 20))
    tracker.close("failed")
    write_metrics(run_dir, (10, 20))
    tracker = wandb_run(run_dir, start_step=20)
    log_all(tracker, (30, 40))
    tracker.close("done")
    assert server.runs["a1b2c3"].steps == [10, 20, 30, 40]
    (part,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert part.with_name(f"{part.name}.synced").exists(), "wandb sync would send it a second time"


def test_sweep_agent_sets_sweep_project_and_entity(run_dir, server, monkeypatch):
    for name, value in {"SWEEP_ID": "sw1", "PROJECT": "pets", "ENTITY": "our-lab"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb_run(run_dir, entity="others", run=info(run_id="fromagent")).close("done")
    (settings,) = [run.settings for run in server.runs.values()]
    assert [settings[key] for key in ("sweep", "project", "entity")] == ["sw1", "pets", "our-lab"]


def test_alias_best_follows_the_best_checkpoint_of_the_run(run_dir, server):
    """Which is not the one of the lowest training loss."""
    tracker = wandb_run(run_dir, artifacts="all")
    (run_dir / "checkpoints").mkdir()
    best = run_dir / "checkpoints" / "best.pt"
    for step, loss, kept in ((10, 0.5, True), (20, 0.4, True), (30, 0.1, False)):
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "train/loss": {loss}}}\n')
        (checkpoint,) = files(run_dir, f"step-{step}.pt")
        if kept:
            best.unlink(missing_ok=True)
            best.hardlink_to(checkpoint)
        tracker.log_files("model", step, [checkpoint], final=step == 30)
    tracker.close("done")
    models = [sorted(a.aliases) for a in server.artifacts if a.kind == "model"]
    assert models == [["step-10"], ["best", "step-20"], ["latest", "step-30"]]


def files(run_dir, *names):
    made = [run_dir / name for name in names]
    for file in made:
        file.write_bytes(file.name.encode())
    return made


@pytest.mark.slow
def test_alias_best_marks_the_lowest_training_loss(run_dir, server):
    losses = {10: 0.5, 20: 0.2, 30: 0.3}
    tracker = wandb_run(run_dir, artifacts="all")
    for step, loss in losses.items():
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "train/loss": {loss}}}\n')
        (checkpoint,) = files(run_dir, f"step-{step}.pt")
        tracker.log_files("model", step, [checkpoint], final=False)
        checkpoint.unlink()  # as old ones are
    tracker.log_files("model", 30, files(run_dir, "step-30.pt"), final=True)
    tracker.log_files("samples", 30, files(run_dir, "a.png", "b.png"), final=True)
    tracker.close("done")
    models = [a for a in server.artifacts if a.kind == "model"]
    assert [(a.name, a.run, sorted(a.aliases)) for a in models] == [
        ("model-a1b2c3", "a1b2c3", ["step-10"]),
        ("model-a1b2c3", "a1b2c3", ["best", "step-20"]),
        ("model-a1b2c3", "a1b2c3", ["latest", "step-30"]),
    ]
    assert [list(a.files) for a in models] == [["step-10.pt"], ["step-20.pt"], ["step-30.pt"]]
    assert b"step-20.pt" in server.blobs.values()
    (samples,) = [a for a in server.artifacts if a.kind == "samples"]
    assert (samples.name, list(samples.files)) == ("samples-a1b2c3", ["a.png", "b.png"])
    assert list((run_dir / "wandb" / "artifacts").rglob("*.pt")) == [], "nothing is left behind"


def test_artifacts_setting_limits_what_is_uploaded(run_dir, server):
    for keeps in ("last", "none"):
        tracker = wandb_run(run_dir, run=info(run_id=keeps), artifacts=keeps)
        tracker.log_files("model", 10, files(run_dir, "step-10.pt"), final=False)
        tracker.log_files("model", 20, files(run_dir, "step-20.pt"), final=True)
        tracker.close("done")
    assert [(a.name, list(a.files)) for a in server.artifacts] == [("model-last", ["step-20.pt"])]


def test_failed_uploads_warn_once_and_do_not_end_the_run(run_dir, server, caplog):
    server.refuses = ("CreateArtifact",)
    with Trackers([wandb_run(run_dir, artifacts="all")]) as trackers:
        for step in (10, 20):
            trackers.log_files("model", step, files(run_dir, f"step-{step}.pt"), final=False)
        trackers.log(30, {"train/loss": 0.5})
    (warning,) = own_warnings(caplog)
    assert "An upload to W&B failed, the run goes on: " in warning
    assert (server.runs["a1b2c3"].steps, server.runs["a1b2c3"].exit_code) == ([30], 0)
