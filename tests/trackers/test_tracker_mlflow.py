"""tracker=mlflow, against its real store: a database file."""

import pytest
from support.base import TINY
from support.trackers import GRID, HPARAMS, info, knobs

from ddpm.trackers.mlflow import MLflow

mlflow = pytest.importorskip("mlflow")
RESUME = ["resume=run", "job.max_steps=5"]
WORDS = [*(word for word in TINY if word != "tracker=local"), "tracker=mlflow"]


@pytest.fixture
def store(run, tmp_path, monkeypatch):
    """Where a run in the current folder is recorded; the test's own client."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda: mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def only_run(client):
    (home,) = client.search_experiments(filter_string="name = 'ddpm'")
    (found,) = client.search_runs([home.experiment_id])
    return found


def steps_of(client, run_id):
    return [metric.step for metric in client.get_metric_history(run_id, "train/loss")]


def files_of(client, run_id, folder):
    return [file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, folder)]


@pytest.mark.slow  # MLflow makes its database by dozens of migrations
def test_resumed_run_continues_its_mlflow_run(run, store, tmp_path):
    for words in ([*WORDS, "job.max_steps=3", "job.sample_every=2", "output_dir=run"], RESUME):
        status, out, err = run(*words)
        assert status == 0, err
        assert "switched off" not in err
        assert f"tracker  mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in out
    client = store()
    found = only_run(client)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "convnet-digits"
    assert found.data.params["job.batch_size"] == "8"
    assert found.data.tags["ddpm.job"] == "train"
    assert steps_of(client, found.info.run_id) == [1, 2, 3, 4, 5]
    pictures = files_of(client, found.info.run_id, "images")
    steps = [name.split("+")[2] for name in pictures if name.endswith(".png")]
    assert sorted(steps) == ["2", "3", "4", "5"]
    assert files_of(client, found.info.run_id, "model") == [*("step-0000003.pt", "step-0000005.pt")]


def opened(tmp_path, start_step, **changes):
    (tmp_path / "run").mkdir(exist_ok=True)
    settings = knobs("mlflow", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", **changes)
    return MLflow(
        **settings, run_dir=tmp_path / "run", run=info(), hparams=HPARAMS, start_step=start_step
    )


@pytest.mark.slow
def test_repeated_steps_and_pictures_are_recorded_once(store, tmp_path):
    tracker = opened(tmp_path, 0, artifacts="none")
    for step in (1, 2, 3):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.log_image(3, "samples", GRID)
    tracker.close("preempted")
    assert only_run(store()).info.status == "KILLED"
    rows = "".join(f'{{"step": {n}, "train/loss": 0.5, "train/lr": null}}\n' for n in (3, 4, 5, 6))
    (tmp_path / "run" / "metrics.jsonl").write_text(rows)
    tracker = opened(tmp_path, 5, artifacts="all")  # 4 and 5 were logged while it was away
    assert only_run(store()).info.status == "RUNNING"
    for step in (3, 6):
        tracker.log_image(step, "samples", GRID[:1])
    tracker.log(6, {"train/loss": float("nan")})
    tracker.log_files("model", 6, [tmp_path / "run" / "metrics.jsonl"], final=False)
    tracker.close("failed")
    client, found = store(), only_run(store())
    assert found.info.status == "FAILED"
    assert steps_of(client, found.info.run_id) == [1, 2, 3, 4, 5, 6]
    assert files_of(client, found.info.run_id, "model") == ["metrics.jsonl"]
    pictures = [p for p in files_of(client, found.info.run_id, "images") if p.endswith(".png")]
    assert sorted(p.split("+timestamp")[0] for p in pictures) == [
        "samples+step+3",
        "samples+step+6",
    ]
    assert found.data.params["model.widths"] == "[8, 16]"


@pytest.mark.slow  # MLflow tries again for 100 seconds
def test_failing_store_does_not_end_the_run(run, store, caplog, tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    status, _, err = run(*WORDS, "job.max_steps=1", "output_dir=run")
    assert status == 0
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert "mlflow" in (err + caplog.text)
