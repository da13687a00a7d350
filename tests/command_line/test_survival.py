"""A run that is killed anywhere, any number of times, ends like an uninterrupted one.

`kill -9` where a name is given is by `crashpoint`, at a place; the others come at any moment. The
same with real processes, and fifty kills: `python benchmarks/soak.py`.
"""

import itertools
import math
import os
import random
import shutil
import signal
import time

import pytest
import torch
import yaml
from PIL import Image
from support.crash import SAMPLE, go, output_of, start, wait
from support.runs import assert_equal_state, state_of
from support.survival import RUN, STEPS, assert_same_run, lines_of

NARROW = ["model.width=16"]

PLACES = [
    *("run.filled", "run.created"),
    *(f"train.step:{n}" for n in (1, 3, 5, 12, 13)),
    *(f"run.logged:{n}" for n in (1, 3, 4)),
    *(f"run.grid:{n}" for n in (1, 3)),
    *(f"checkpoint.writing:{n}" for n in (1, 4, 30, 90)),
    *(f"checkpoint.written:{n}" for n in (1, 2, 5)),
    *(f"checkpoint.synced:{n}" for n in (1, 3)),
    *(f"checkpoint.verified:{n}" for n in (1, 4)),
    *(f"checkpoint.renamed:{n}" for n in (1, 2, 5)),
    *(f"checkpoint.kept:{n}" for n in (1, 3, 5)),
    *(f"checkpoint.deleted:{n}" for n in (1, 3)),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Uninterrupted runs, by their changed settings."""
    made = {}

    def get(*changes):
        if changes not in made:
            home = tmp_path_factory.mktemp("uninterrupted")
            assert go(home, *RUN, *(changes or NARROW), "output_dir=run") == 0, output_of(home)
            made[changes] = home / "run"
        return made[changes]

    return get


def finish(home, *changes, kills=()):
    """Go on with the run in `home` as often as it takes, killed at these places on the way."""
    for place in (*kills, None):
        begun = (home / "run" / "config.yaml").exists()
        words = ["resume=run"] if begun else [*RUN, *(changes or NARROW), "output_dir=run"]
        status = go(home, *words, crash=place)
        if place is not None and status != -9:
            assert status == 0, output_of(home)  # it came to its end before that place
    assert status == 0, output_of(home)
    return home / "run"


# The places of which each run of the tests tries all; the others are tried by `-m slow`.
QUICK = {
    *("run.filled", "train.step:13", "run.grid:3", "checkpoint.writing:4"),
    *("checkpoint.verified:1", "checkpoint.renamed:5", "checkpoint.deleted:1"),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "place",
    [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in PLACES],
)
def test_run_killed_at_any_crashpoint_ends_like_an_undisturbed_one(place, uninterrupted, tmp_path):
    assert go(tmp_path, *RUN, *NARROW, "output_dir=run", crash=place) == -9, output_of(tmp_path)
    whole = list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    for path in whole:
        torch.load(path, weights_only=True)
    assert_same_run(finish(tmp_path), uninterrupted())


@pytest.mark.slow
def test_run_killed_repeatedly_finishes(uninterrupted, tmp_path):
    kills = ["train.step:2", "checkpoint.renamed:1", "run.logged:1", "checkpoint.written:2"]
    kills += ["run.grid:1", "checkpoint.deleted:1", "train.step:1", "checkpoint.writing:50"]
    assert_same_run(finish(tmp_path, kills=kills), uninterrupted())
    assert output_of(tmp_path).count("folder   run") > 5


RESUNET = ["model=resunet", "model.widths=[8,8]", "model.groups=2", "model.num_res_blocks=1"]
MODES = list(itertools.product(["32-true", "bf16-mixed"], ["false", "true"], ["0", "2"]))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "compiled", "workers"), MODES)
def test_killed_run_resumes_exactly_in_every_mode(
    precision, compiled, workers, uninterrupted, tmp_path, monkeypatch
):
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: compile_(net, backend="eager"))
    changes = [f"hardware.precision={precision}", f"job.compile={compiled}"]
    changes += [f"job.num_workers={workers}", *RESUNET, "model.dropout=0.2"]
    kills = ["train.step:5", "checkpoint.written:1", "run.grid:1"]
    assert_same_run(finish(tmp_path, *changes, kills=kills), uninterrupted(*changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        [*NARROW, "job.accumulate_grad_batches=auto"],
        [*RESUNET, "model.dropout=0.2", "job.recompute=true", "job.batch_size=20"],
    ],
    ids=["accumulate", "recompute"],
)
def test_killed_run_keeps_its_accumulation_and_recomputation(
    changes, uninterrupted, tmp_path, monkeypatch
):
    """Killed before its first checkpoint and after it, a run keeps the split that it chose."""
    room = iter([2, 5, 1, 1])  # parts that would fit, at each start
    monkeypatch.setattr("ddpm.training.expected_memory.choose_accumulation", lambda trial, needs: 2)
    wanted = uninterrupted(*changes)
    kills = ["train.step:2", "train.step:5", "checkpoint.written:1"]
    for place in (*kills, None):
        parts = next(room)
        monkeypatch.setattr(
            "ddpm.training.expected_memory.choose_accumulation",
            lambda trial, needs, parts=parts: parts,
        )
        begun = (tmp_path / "run" / "config.yaml").exists()
        words = ["resume=run"] if begun else [*RUN, *changes, "output_dir=run"]
        expected = 0 if place is None else -9
        assert go(tmp_path, *words, crash=place) == expected, output_of(tmp_path)
    assert_same_run(tmp_path / "run", wanted)
    assert (
        output_of(tmp_path).count("2 times a step")
        == ("job.accumulate_grad_batches=auto" in changes) * 4
    )


@pytest.mark.slow
def test_killed_run_with_ema_power_resumes_exactly(uninterrupted, tmp_path):
    """Snapshots are written after every second step, checkpoints after every third."""
    changes = [*NARROW, "ema=power", "ema.snapshots=7"]
    kills = ["checkpoint.renamed:3", "checkpoint.written:2"]  # of a snapshot, of a checkpoint
    run, wanted = finish(tmp_path, *changes, kills=kills), uninterrupted(*changes)
    assert_same_run(run, wanted)
    assert len(list((run / "snapshots").iterdir())) == 6
    assert state_of(run, STEPS)["averages"].keys() == {"0.1"}


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_killed_run_whose_rate_falls_to_0_resumes_exactly(decay, uninterrupted, tmp_path):
    changes = [*NARROW, "job.warmup_steps=2", f"job.lr_decay={decay}", "job.lr_decay_start=4"]
    kills = ["train.step:3", "checkpoint.written:2", "train.step:2"]  # before and in the decay
    wanted = uninterrupted(*changes)
    assert_same_run(finish(tmp_path, *changes, kills=kills), wanted)
    rates = [row["train/lr"] / 2e-4 for row in lines_of(wanted)]  # of n = 3, 7, 11, 12
    lines = {n: 1 - (n - 4) / (13 - 4) for n in (7, 11, 12)}
    halves = {n: (1 + math.cos(math.pi * (n - 4) / (13 - 4))) / 2 for n in lines}
    assert rates == pytest.approx([1, *(lines if decay == "linear" else halves).values()])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dit", "jit"])
def test_killed_run_of_a_transformer_resumes_exactly(model, uninterrupted, tmp_path):
    changes = [f"model={model}", "model.depth=1", "model.width=8", "model.num_heads=2"]
    changes += ["ema=several", "ema.decays=[0.9,0.5]"]
    kills = ["train.step:5", "checkpoint.written:2"]
    assert_same_run(finish(tmp_path, *changes, kills=kills), uninterrupted(*changes))


@pytest.mark.slow
def test_killed_run_with_a_learned_schedule_resumes_exactly(uninterrupted, tmp_path):
    changes = [*NARROW, "schedule=learned", "objective=v", "hardware.precision=32-true"]
    kills = ["train.step:5", "checkpoint.renamed:1"]
    assert_same_run(finish(tmp_path, *changes, kills=kills), uninterrupted(*changes))


@pytest.mark.slow
def test_killed_run_with_importance_timesteps_and_edm_resumes_exactly(uninterrupted, tmp_path):
    changes = [*NARROW, "hardware.precision=32-true", "schedule=rectified", "schedule.T=40"]
    changes += ["objective=edm", "objective.sigma_data=data", "weighting=edm"]
    changes += ["timesteps=importance", "timesteps.history=3", "timesteps.stratified=true"]
    kills = ["train.step:5", "checkpoint.renamed:1"]
    wanted = uninterrupted(*changes)
    assert_same_run(finish(tmp_path, *changes, kills=kills), wanted)
    learned, other = (state_of(run, STEPS)["diffusion"] for run in (wanted, tmp_path / "run"))
    assert set(learned) == {"objective.measured", "timesteps.losses", "timesteps.counts"}
    assert all(torch.equal(learned[name], other[name]) for name in learned)
    assert learned["timesteps.counts"].min() >= 3  # importance sampling has begun


@pytest.mark.slow
def test_number_of_workers_may_change_on_resume(uninterrupted, tmp_path):
    assert go(tmp_path, *RUN, *NARROW, "output_dir=run", crash="train.step:8") == -9
    assert go(tmp_path, "resume=run", "job.num_workers=2", crash="train.step:4") == -9
    assert go(tmp_path, "resume=run", "job.num_workers=1") == 0, output_of(tmp_path)
    one, other = uninterrupted(), tmp_path / "run"
    assert_equal_state(state_of(one, STEPS), state_of(other, STEPS))
    assert lines_of(one) == lines_of(other)
    assert "changed  job.num_workers: 0 -> 2" in output_of(tmp_path)


@pytest.mark.slow
def test_run_killed_at_random_times_resumes_exactly(uninterrupted, tmp_path):
    moments, kills = random.Random(0), 0
    while True:
        begun = (tmp_path / "run" / "config.yaml").exists()
        words = ["resume=run"] if begun else [*RUN, *NARROW, "output_dir=run"]
        child = start(tmp_path, *words)
        if kills < 7:
            time.sleep(moments.uniform(0, 1.2))
            os.kill(child, signal.SIGKILL)
            kills += 1
        if wait(child) == 0 and kills == 7:
            break
    assert_same_run(tmp_path / "run", uninterrupted())


@pytest.mark.slow
def test_half_written_files_are_removed(tmp_path):
    assert go(tmp_path, *RUN, *NARROW, "output_dir=run", crash="checkpoint.written:2") == -9
    (left,) = (tmp_path / "run" / "checkpoints").glob(".*.tmp")
    assert left.stat().st_size > 1000
    finish(tmp_path)
    assert not list((tmp_path / "run").rglob("*.tmp"))


# checkpoints that cannot be used


@pytest.fixture
def begun(tmp_path):
    """A run that was killed with two checkpoints, of steps 3 and 6."""
    assert go(tmp_path, *RUN, *NARROW, "output_dir=run", crash="train.step:8") == -9
    return tmp_path / "run"


def files(run):
    return sorted((run / "checkpoints").iterdir())


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "damage",
    ["flipped", "foreign", *(pytest.param(d, marks=pytest.mark.slow) for d in ("cut", "empty"))],
)
def test_newest_undamaged_checkpoint_is_used(damage, begun, uninterrupted, tmp_path):
    _, newest = files(begun)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    other = b"<html>moved</html>"
    newest.write_bytes(
        {"cut": data[:5000], "flipped": data, "empty": b"", "foreign": other}[damage]
    )
    assert_same_run(finish(tmp_path), uninterrupted())
    assert f"Passed over: checkpoint={newest.relative_to(tmp_path)}" in output_of(tmp_path)
    assert "steps    3 to 13" in output_of(tmp_path)


@pytest.mark.slow
def test_damaged_checkpoint_replaces_no_good_one(begun, tmp_path):
    """Of two that are kept, one is damaged and newer: the good one stays until there is a third."""
    _, newest = files(begun)
    newest.rename(newest.with_name("step-0000011.pt"))
    newest.with_name("step-0000011.pt").write_bytes(b"torn")
    assert go(tmp_path, "resume=run", crash="checkpoint.deleted:1") == -9
    for path in files(begun):
        if path.name != "step-0000011.pt":
            torch.load(path, weights_only=True)
    assert len(files(begun)) >= 3


def test_without_a_good_checkpoint_no_run_restarts_silently(begun, tmp_path):
    for path in files(begun):
        path.write_bytes(path.read_bytes()[:-300])
    before = (begun / "metrics.jsonl").read_bytes()
    assert go(tmp_path, "resume=run") == 2
    assert "no whole checkpoint" in output_of(tmp_path)
    shutil.rmtree(begun / "checkpoints")
    assert go(tmp_path, "resume=run") == 2
    assert (begun / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_without_checkpoint_and_status_no_run_restarts_silently(begun, tmp_path):
    shutil.rmtree(begun / "checkpoints")
    (begun / "status.json").unlink()
    before = (begun / "metrics.jsonl").read_bytes()
    assert go(tmp_path, "resume=run") == 2
    assert "no whole checkpoint" in output_of(tmp_path)
    assert (begun / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"diffusion": None}, {"job": [1]}, {"optimizer": None}, {"data": 5}, {"choices": {}}],
    ids=str,
)
def test_invalid_config_file_is_reported_in_one_line(change, begun, tmp_path):
    config = yaml.safe_load((begun / "config.yaml").read_text()) | change
    (begun / "config.yaml").write_text(yaml.safe_dump(config))
    assert go(tmp_path, "resume=run") == 2
    assert "Traceback" not in output_of(tmp_path)
    (newest,) = files(begun)[-1:]
    state = torch.load(newest, weights_only=True)
    state["hparams"] |= change
    torch.save(state, newest)
    assert go(tmp_path, *SAMPLE, f"checkpoint={newest}") in (0, 2)
    assert "Traceback" not in output_of(tmp_path)


@pytest.mark.slow
def test_non_finite_weights_are_not_sampled_from(begun, tmp_path):
    (newest,) = files(begun)[-1:]
    state = torch.load(newest, weights_only=True)
    name = next(iter(state["ema"]))
    for value, message in ((float("nan"), "not finite"), (1, "torch.int64")):
        state["ema"][name] = torch.full(state["ema"][name].shape, value)
        torch.save(state, newest)
        for job in ("sample", "export"):
            assert go(tmp_path, *SAMPLE[1:], f"job={job}", f"checkpoint={newest}") == 2
            assert message in output_of(tmp_path).splitlines()[-1]


# resume=auto


def test_resume_auto_starts_and_continues_by_one_command(uninterrupted, tmp_path):
    words = [*RUN, *NARROW, "output_dir=run", "resume=auto"]
    assert go(tmp_path, *words, crash="run.created") == -9
    assert go(tmp_path, *words, crash="checkpoint.kept:2") == -9
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert "steps    6 to 13" in output_of(tmp_path)
    assert_same_run(tmp_path / "run", uninterrupted())
    assert go(tmp_path, *words) == 0
    assert "all 13 are done" in output_of(tmp_path)


@pytest.mark.slow
def test_resume_auto_continues_in_the_folder_of_a_slurm_job(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert go(tmp_path, *RUN, *NARROW, "resume=auto", crash="train.step:7") == -9
    assert go(tmp_path, *RUN, *NARROW, "resume=auto") == 0, output_of(tmp_path)
    assert_same_run(tmp_path / "outputs" / "train" / "slurm-4711", uninterrupted())


@pytest.mark.slow  # test_sweeps.py does more
def test_resume_auto_in_a_sweep_continues_in_job_folders(uninterrupted, tmp_path):
    words = ["-m", *RUN, *NARROW, "resume=auto", "hydra.sweep.dir=sweep", "seed=1,2"]
    assert go(tmp_path, *words, crash="train.step:20") == -9
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert "0-convnet-digits was done before" in output_of(tmp_path)
    assert "steps    6 to 13" in output_of(tmp_path)
    # The second job of a sweep is what it is alone: the first leaves nothing behind.
    assert_same_run(tmp_path / "sweep" / "1-convnet-digits", uninterrupted(*NARROW, "seed=2"))


@pytest.mark.slow  # test_sweeps.py does more
def test_resume_auto_retries_a_run_that_failed_before_step_1(tmp_path):
    words = ["-m", *RUN, "resume=auto", "hydra.sweep.dir=sweep", "data=folder"]
    words.append(f"data.root={tmp_path / 'pictures'}")
    assert go(tmp_path, *words) == 2
    (tmp_path / "pictures").mkdir()
    for n in range(3):
        Image.new("L", (20, 20), 80 * n).save(tmp_path / "pictures" / f"{n}.png")
    assert go(tmp_path, *words, "data.channels=1", "data.image_size=16") == 0, output_of(tmp_path)


def test_resume_auto_needs_output_dir(tmp_path):
    assert go(tmp_path, *RUN, *NARROW, "resume=auto") == 2
    assert "resume=auto: " in output_of(tmp_path)


def test_resume_auto_with_other_settings_is_refused(tmp_path):
    words = [*RUN, *NARROW, "output_dir=run", "resume=auto"]
    assert go(tmp_path, *words, crash="train.step:4") == -9
    assert go(tmp_path, *words, "optimizer.lr=1e-3") == 2
    assert "optimizer.lr=0.001: resume=run was trained with 0.0002" in output_of(tmp_path)
