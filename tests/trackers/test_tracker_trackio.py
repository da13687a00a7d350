"""tracker=trackio, against its real store: a database file for each project."""

import pytest
from support.base import TINY
from support.trackers import GRID, HPARAMS, info, knobs

from ddpm.trackers.trackio import Trackio

RESUME = ["resume=run", "job.max_steps=5"]
WORDS = [*(word for word in TINY if word != "tracker=local"), "tracker=trackio"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in a folder of this module: Trackio reads its place when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("trackio").SQLiteStorage


def logged(store, run_id, project="ddpm"):
    """Its steps with losses and with pictures."""
    rows = store.get_logs(project, run_id=run_id)
    return (
        [row["step"] for row in rows if "train/loss" in row],
        [row["step"] for row in rows if "samples" in row],
    )


def versions(store, run_id, project="ddpm"):
    outputs = store.get_run_artifacts(project, None, run_id)["output"]
    return sorted(f"{a['name']}:{a['version']}" for a in outputs)


def test_resumed_run_continues_its_trackio_run(run, store, tmp_path):
    for words in ([*WORDS, "job.max_steps=3", "job.sample_every=2", "output_dir=run"], RESUME):
        status, out, err = run(*words)
        assert status == 0, err
        assert "switched off" not in err
        assert "tracker  trackio show --project ddpm" in out
        assert "Uploading" not in out
    (record,) = store.get_run_records("ddpm")
    assert record["name"] == "convnet-digits"
    config = store.get_run_config("ddpm", record["name"], record["id"])
    assert (config["job.batch_size"], config["job_type"]) == (8, "train")
    assert logged(store, record["id"]) == ([1, 2, 3, 4, 5], [2, 3, 4, 5])
    kept = versions(store, record["id"])
    assert [name.split("-")[0] for name in kept] == ["model", "model", "samples", "samples"]


def opened(tmp_path, start_step, **changes):
    (tmp_path / "run").mkdir(exist_ok=True)
    settings = knobs("trackio", project="other", **changes)
    return Trackio(
        **settings, run_dir=tmp_path / "run", run=info(), hparams=HPARAMS, start_step=start_step
    )


def test_repeated_steps_and_pictures_are_recorded_once(store, tmp_path):
    tracker = opened(tmp_path, 0, artifacts="none")
    for step in (1, 2, 3):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.log_image(3, "samples", GRID)
    tracker.close("preempted")
    rows = "".join(f'{{"step": {n}, "train/loss": 0.5, "train/lr": null}}\n' for n in (3, 4, 5, 6))
    (tmp_path / "run" / "metrics.jsonl").write_text(rows)
    tracker = opened(tmp_path, 5, artifacts="all")  # 4 and 5 were logged while it was away
    for step in (3, 6):
        tracker.log_image(step, "samples", GRID[:1])
    tracker.log(6, {"train/loss": float("nan")})
    tracker.log_files("model", 6, [tmp_path / "run" / "metrics.jsonl"], final=False)
    tracker.close("failed")
    assert logged(store, "a1b2c3", "other") == ([1, 2, 3, 4, 5, 6], [3, 6])
    assert versions(store, "a1b2c3", "other") == ["model-a1b2c3:0"]
