"""A run that goes on with other settings, other data, or in other surroundings.

What only moves the work may change, and is shown; what the result depends on is refused with both
values, and may change for who says so. Covered are a changed configuration, another number of
readers, other data, another number of threads or processes, and a run of an older or a newer
program. The images and noise of each step being the same on any number of processes is held in
test_run.py and test_randomness.py. What cannot happen here: a half-changed run, for all is checked
before the first file is touched, and the tests compare every byte.
"""

import shutil

import pytest
import torch
import yaml
from PIL import Image
from support.crash import TINY, go, output_of
from support.runs import (
    assert_equal_state,
    files_of,
    losses_of,
    metrics_of,
    process,
    state_of,
    status_of,
)

from ddpm import Pipeline
from ddpm.runner.checkpoints import checkpoint

RUN = [*TINY, "data.conditional=true", "output_dir=run"]
MORE = ["resume=run", "job.max_steps=8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 steps, not to be changed by tests."""
    home = tmp_path_factory.mktemp("finished")
    assert go(home, *RUN) == 0, output_of(home)
    return home


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory):
    """The same after 8 steps, nothing changed."""
    home = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(finished / "run", home / "run")
    assert go(home, *MORE) == 0, output_of(home)
    return home / "run"


@pytest.fixture
def home(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def changes_of(home):
    """What the last run in `home` has shown as changed."""
    lines = output_of(home).split("train    ")[-1].splitlines()
    return [line.removeprefix("changed  ") for line in lines if line.startswith("changed  ")]


def refused(home, *words):
    """The lines of a refusal that has touched nothing."""
    before = bytes_of(home / "run")
    (home / "out.txt").write_text("")
    assert go(home, "resume=run", *words) == 2, output_of(home)
    assert bytes_of(home / "run") == before
    return output_of(home).splitlines()


# what is free


@pytest.mark.slow
def test_keys_without_effect_on_the_weights_may_change_and_are_shown(home, uninterrupted):
    new = {
        "job.num_workers": (0, 1),
        "job.log_every": (1, 2),
        "job.save_every": (2, 1),
        "job.keep_checkpoints": (3, 2),
        "job.max_nonfinite_steps": (5, 7),
        "hardware": ("cpu", "auto"),
        "tracker": ("local", "tensorboard"),
        "sampler": ("ddim", "heun"),
        "sampler.steps": (2, 3),
        "guidance": ("none", "classifier_free"),
    }
    words = [*MORE, *(f"{key}={value}" for key, (_, value) in new.items())]
    assert go(home, *words) == 0, output_of(home)
    shown = changes_of(home)
    assert "job.max_steps: 6 -> 8" in shown
    for key, (old, value) in new.items():
        assert f"{key}: {old} -> {value}" in shown
    assert len(shown) == len(new) + 1
    assert_equal_state(state_of(home / "run", 8), state_of(uninterrupted, 8))
    assert [row["step"] for row in metrics_of(home / "run")] == [1, 2, 3, 4, 5, 6, 8]
    kept = [file.name for file in checkpoint.list_checkpoints(home / "run" / "checkpoints")]
    assert kept == ["step-0000007.pt", "step-0000008.pt"]
    assert list((home / "run" / "tensorboard").iterdir())


@pytest.mark.slow
def test_data_dir_may_change(home, uninterrupted):
    assert go(home, *MORE, "data_dir=elsewhere") == 0, output_of(home)
    assert changes_of(home) == ["job.max_steps: 6 -> 8"], "where data are changes nothing"
    assert list((home / "elsewhere" / "cache").iterdir())
    assert_equal_state(state_of(home / "run", 8), state_of(uninterrupted, 8))


@pytest.mark.parametrize("word", ["resume=auto", "resume=run", "resume=link"])
def test_the_folder_of_the_run_may_be_named_as_well(word, home):
    (home / "link").symlink_to("run")
    words = [word, f"output_dir={home / 'run'}", "job.max_steps=7"]
    assert go(home, *words) == 0, output_of(home)
    assert status_of(home / "run")["step"] == 7


@pytest.mark.slow
def test_the_number_of_processes_may_change(home, uninterrupted):
    pair = ["hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu"]
    child = process(home, *MORE, *pair)
    try:
        out, err = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 0, out + err
    assert "changed  hardware.devices: 1 -> 2" in out
    assert "note     processes is 2, was 1: results agree" in out
    for (step, loss), (at, other) in zip(
        losses_of(home / "run"), losses_of(uninterrupted), strict=True
    ):
        assert step == at
        assert loss == pytest.approx(other, rel=1e-4)


def test_repeated_equal_values_are_accepted_and_not_shown(home, uninterrupted):
    agreeing = ["model=convnet", "optimizer.lr=2e-4", "optimizer=adam", "seed=0", "schedule=linear"]
    agreeing += ["job.batch_size=8", "data.conditional=true", "weighting=uniform", "schedule.T=1e3"]
    assert go(home, *MORE, *agreeing) == 0, output_of(home)
    assert changes_of(home) == ["job.max_steps: 6 -> 8"]
    assert_equal_state(state_of(home / "run", 8), state_of(uninterrupted, 8))
    assert losses_of(home / "run") == losses_of(uninterrupted)


@pytest.mark.parametrize("word", ["job.max_steps=4", "job.max_epochs=0.01"])
def test_a_length_below_the_steps_that_are_done_is_named(word, home):
    key = word.split("=")[0]
    assert go(home, "resume=run", word) == 0, output_of(home)
    steps = output_of(home).split("steps    ")[-1]
    assert steps.startswith(f"6 are done, more than {word}; a larger {key}")


# what the result depends on


@pytest.mark.parametrize(
    "wrong",
    [
        {
            "optimizer.lr=0.001": 0.0002,
            "optimizer.betas=[0.5, 0.9]": [0.9, 0.999],
            "schedule=cosine": "linear",
            "schedule.T=500": 1000,
            "seed=5": 0,
        },
        {"data=mnist": "digits", "model.width=32": 64, "optimizer=adamw": "adam"},
        {
            "data.flip=True": False,
            "data.image_size=32": 16,
            "data.conditional=False": True,
            "objective.loss_type=l1": "mse",
            "objective.learned_variance=True": False,
        },
        {
            "model=unet": "convnet",
            "objective=v": "x_0",
            "weighting=min_snr": "uniform",
            "job.label_dropout=0.5": 0.1,
        },
        {
            "job.batch_size=16": 8,
            "job.warmup_steps=1": 50,
            "job.lr_decay=cosine": "inverse",
            "job.lr_decay_start=4": None,
            "job.clip_grad_norm=None": 1.0,
        },
        {"job.ema_decay=0.5": 0.999, "job.ema_ramp=1.5": 10.0},
    ],
    ids=lambda wrong: " ".join(word.split("=")[0] for word in wrong),
)
def test_changed_result_keys_are_refused_with_both_values(wrong, finished):
    """All of them, in the order of the command line, and free ones between them are not meant."""
    typed = [word.replace("=None", "=null") for word in wrong]
    assert refused(finished, "job.log_every=3", *typed) == [
        f"{word}: resume=run was trained with {old}; leave it out, or {_instead(word)}."
        for word, old in wrong.items()
    ]


def _instead(word):
    key = word.split("=")[0]
    misfits = "leave out resume: its network does not fit"
    if key == "data":
        return f"{misfits}; a new run can begin with its weights: init_from=run {word}"
    if key in ("data.image_size", "data.conditional", "objective.learned_variance"):
        return misfits
    if key == "model":
        return "leave out resume: another network is another run"
    return f"allow the change: 'allow_changes=[{key}]'"


def test_another_folder_is_refused(finished):
    lines = refused(finished, "output_dir=other")
    assert lines[0].startswith("output_dir=other: ")
    assert "init_from=run" in lines[0]
    assert not (finished / "other").exists()


def test_a_change_that_the_network_does_not_fit_is_not_said_to_be_allowable(finished):
    for words in (["data=cifar10"], ["data.channels=3"], ["augment=edm"]):
        assert "allow_changes" not in refused(finished, *words)[0]
    fitting = ["data=mnist", "data.image_size=16", "data.conditional=true"]
    (line,) = refused(finished, *fitting)
    assert "'allow_changes=[data]'" in line


def test_at_most_five_changed_keys_are_listed(finished):
    wrong = ["seed=1", "optimizer.lr=1", "weighting=min_snr", "job.batch_size=2", "objective=v"]
    lines = refused(finished, *wrong, "job.ema_decay=0.5", "model.width=8")
    assert [line.split(":")[0] for line in lines] == wrong


def test_allowing_one_key_allows_no_other(finished):
    (line,) = refused(finished, "seed=1", "optimizer.lr=1", "allow_changes=[seed]")
    assert line.startswith("optimizer.lr=1")


@pytest.mark.parametrize("given", ["optimizer.lr", "null"])
def test_invalid_allow_change_is_refused(given, finished):
    lines = refused(finished, "optimizer.lr=1", f"allow_changes={given}")
    assert len(lines) <= 2
    assert lines[0].startswith("allow_changes=")
    assert "a list of keys, like [optimizer.lr]" in lines[0]


# what is allowed all the same


def go_on(home, *words):
    """Go on for two steps with what is allowed, and see that it was shown and the old kept."""
    before = (home / "run" / "config.yaml").read_bytes()
    assert go(home, *MORE, *words) == 0, output_of(home)
    assert (home / "run" / "config.until-step-0000006.yaml").read_bytes() == before
    assert status_of(home / "run") == {"state": "done", "step": 8, "saved": 8}
    return changes_of(home)


def test_allowed_learning_rate_is_used(home):
    words = ["optimizer.lr=1e-3", "job.warmup_steps=0"]
    shown = go_on(home, *words, "allow_changes=[optimizer.lr,job.warmup_steps]")
    assert "optimizer.lr: 0.0002 -> 0.001" in shown
    assert [row["train/lr"] for row in metrics_of(home / "run")][6:] == [1e-3, 1e-3]
    config = yaml.safe_load((home / "run" / "config.yaml").read_text())
    assert config["optimizer"]["lr"] == 1e-3
    assert "allow_changes" not in config, "it is for this start alone"
    assert go(home, "resume=run", "job.max_steps=9") == 0, output_of(home)
    assert metrics_of(home / "run")[-1]["train/lr"] == 1e-3


def test_allowed_optimizer_group_is_used(home):
    shown = go_on(
        home, "optimizer=adamw", "optimizer.weight_decay=0.5", "allow_changes=[optimizer]"
    )
    assert "optimizer: adam -> adamw" in shown
    state = state_of(home / "run", 8)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert state["hparams"]["choices"]["optimizer"] == "adamw"


def test_allowed_schedule_is_used(home):
    shown = go_on(home, "schedule=cosine", "schedule.T=500", "allow_changes=[schedule]")
    assert {"schedule: linear -> cosine", "schedule.T: 1000 -> 500"} <= set(shown)
    diffusion = Pipeline.from_checkpoint(home / "run").diffusion
    assert diffusion.T == 500


def test_allowed_ema_decay_is_used(home):
    go_on(home, "job.ema_decay=0", "allow_changes=[job.ema_decay]")
    state = state_of(home / "run", 8)
    for name, weight in state["model"].items():
        assert torch.equal(weight, state["ema"][name])


def test_allowed_batch_size_is_used(home):
    go_on(home, "job.batch_size=16", "allow_changes=[job]")
    assert metrics_of(home / "run")[-1]["train/epoch"] == pytest.approx(8 * 16 / 1617)


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("weighting=min_snr weighting.gamma=0.1", "weighting"),
        pytest.param("objective.loss_type=l1", "objective", marks=pytest.mark.slow),
        pytest.param("objective=v", "objective", marks=pytest.mark.slow),
        ("seed=5", "seed"),
        pytest.param("data.flip=true", "data.flip", marks=pytest.mark.slow),
        pytest.param("job.label_dropout=0.9", "job.label_dropout", marks=pytest.mark.slow),
    ],
)
def test_allowed_changes_take_effect_in_the_loss(words, allowed, home, uninterrupted):
    shown = go_on(home, *words.split(), f"allow_changes=[{allowed}]")
    assert {word.split("=")[0] for word in words.split()} <= {line.split(":")[0] for line in shown}
    assert losses_of(home / "run")[:6] == losses_of(uninterrupted)[:6]
    assert losses_of(home / "run")[6:] != losses_of(uninterrupted)[6:]


def test_changed_network_shape_cannot_be_allowed(finished):
    (line,) = refused(finished, "model.width=32", "job.max_steps=8", "allow_changes=[model]")[-1:]
    assert "the weights are of another network" in line


@pytest.mark.slow
def test_experiment_cannot_be_allowed_as_a_whole(home):
    """It sets many keys, each of which must be allowed by name."""
    (home / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\noptimizer:\n  lr: 0.003\n"
    (home / "conf" / "experiment" / "mine.yaml").write_text(text)
    words = ["--config-dir", "conf", "experiment=mine", "allow_changes=[experiment]"]
    (line,) = refused(home, "job.max_steps=8", *words[:-1])
    assert line.startswith("experiment=mine: resume=run was trained with None; leave it out")
    (line,) = refused(home, "job.max_steps=8", *words)
    assert line.startswith("experiment=mine: resume=run was trained with None; leave it out")


# other data


@pytest.fixture
def pictures(tmp_path):
    """A run on a folder of pictures."""
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.new("L", (16, 16), 20 * i).save(tmp_path / "pictures" / f"{i:02d}.png")
    words = ["data=folder", "data.root=pictures", "data.channels=1", "data.image_size=16"]
    words.append("data.holdout=0")
    assert go(tmp_path, *TINY, *words, "output_dir=run") == 0, output_of(tmp_path)
    return tmp_path


def test_changed_data_are_refused_unless_allowed(pictures):
    folder = pictures / "pictures"
    one, other = folder / "05.png", folder / "99.png"
    before = one.read_bytes()
    for change, undo in (
        (lambda: other.write_bytes(before), other.unlink),
        (one.unlink, lambda: one.write_bytes(before)),
        (lambda: one.rename(other), lambda: other.rename(one)),
        (lambda: Image.effect_noise((16, 16), 50).save(one), lambda: one.write_bytes(before)),
    ):
        change()
        line = refused(pictures, "job.max_steps=8")[-1]
        undo()
        assert "resume=run: the data set differs" in line
        assert "'allow_changes=[data]'" in line
    other.write_bytes(before)
    assert go(pictures, *MORE, "allow_changes=[data]") == 0, output_of(pictures)
    assert "13 images of 1x16x16" in output_of(pictures)
    assert go(pictures, "resume=run", "job.max_steps=9") == 0, "now they are the run's own"


@pytest.mark.slow
def test_same_data_in_another_folder_are_accepted(pictures):
    shutil.copytree(pictures / "run", pictures / "copy")
    assert go(pictures, "resume=copy", "job.max_steps=8") == 0, output_of(pictures)
    shutil.copytree(pictures / "pictures", pictures / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(pictures / "pictures")
    assert "data.root: no such folder" in refused(pictures, "job.max_steps=8")[-1]
    assert go(pictures, *MORE, "data.root=moved") == 0, output_of(pictures)
    assert_equal_state(state_of(pictures / "run", 8), state_of(pictures / "copy", 8))
    assert losses_of(pictures / "run") == losses_of(pictures / "copy")


# other surroundings, other versions


def rewrite(run, change):
    """Write the newest checkpoint and the configuration anew, as another program would have."""
    path = checkpoint.list_checkpoints(run / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(state, config)
    path.unlink()
    checkpoint.save(path.parent, state, keep=-1)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_changed_environment_is_noted_in_one_line_each(home, uninterrupted):
    def change(state, config):
        state["made_with"] |= {"threads": 7, "torch": "1.0.0+cu1", "precision": "16-mixed"}

    rewrite(home / "run", change)
    assert go(home, *MORE) == 0, output_of(home)
    notes = [line for line in output_of(home).splitlines() if line.startswith("note ")]
    assert len(notes) == 3
    for line, (name, here, there) in zip(
        sorted(notes),
        [
            ("precision", state_of(uninterrupted, 8)["made_with"]["precision"], "16-mixed"),
            ("threads", 1, 7),
            ("torch", torch.__version__, "1.0.0+cu1"),
        ],
        strict=True,
    ):
        assert line.startswith(f"note     {name} is {here}, was {there}: results agree")
        assert line.endswith("not bit for bit")
    assert_equal_state(state_of(home / "run", 8), state_of(uninterrupted, 8))


def test_unchanged_environment_is_not_noted(uninterrupted):
    assert "note " not in output_of(uninterrupted.parent)


def test_checkpoint_without_environment_resumes(home, uninterrupted):
    rewrite(home / "run", lambda state, config: [state.pop(k) for k in ("made_with", "data")])
    assert go(home, *MORE) == 0, output_of(home)
    assert "note " not in output_of(home)
    assert_equal_state(state_of(home / "run", 8), state_of(uninterrupted, 8))


def test_run_of_a_newer_version_is_refused(home):
    def change(state, config):
        config["version"] = state["hparams"]["version"] = 99

    rewrite(home / "run", change)
    lines = refused(home, "job.max_steps=8")
    assert lines[-1] == (
        "resume=run: written by a newer version of this program (99, here 1): update it."
    )


@pytest.mark.slow
def test_run_older_than_objectives_resumes(tmp_path):
    assert go(tmp_path, *TINY, "objective=eps", "output_dir=run") == 0, output_of(tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "new")

    def change(state, config):
        for node in (state["hparams"], config):
            for group in ("objective", "weighting", "guidance"):
                del node[group]
                del node["choices"][group]
                node["diffusion"].pop(group, None)
            for knob in ("max_nonfinite_steps", "label_dropout", "ema_ramp"):
                node["job"].pop(knob)
            node.pop("version")
            node["data"].pop("conditional")
        del state["meter"], state["scaler"], state["made_with"], state["data"]

    rewrite(tmp_path / "run", change)
    assert go(tmp_path, "resume=run", "job.max_steps=8") == 0, output_of(tmp_path)
    assert go(tmp_path, "resume=new", "job.max_steps=8") == 0, output_of(tmp_path)
    assert_equal_state(state_of(tmp_path / "run", 8), state_of(tmp_path / "new", 8))
    assert go(tmp_path, "resume=run", "objective=v") == 2
    assert "objective=v: resume=run was trained with eps" in output_of(tmp_path)


def test_older_checkpoint_resumes_with_new_settings(home):
    newer = home / "run" / "checkpoints" / "step-0000006.pt"
    newer.unlink()
    old = "resume=run/checkpoints/step-0000004.pt"
    assert go(home, old, "optimizer.lr=1e-3", "allow_changes=[optimizer.lr]") == 0, output_of(home)
    lr = [row["train/lr"] for row in metrics_of(home / "run")]
    assert lr == pytest.approx([4e-6 * n for n in (1, 2, 3, 4)] + [1e-4, 1.2e-4])
    assert (home / "run" / "config.until-step-0000004.yaml").exists()
