"""Bad input: a line or a few that name it, exit status 2, and nothing written.

A row is what is typed after `run.py` and what the answer must contain: the key, the value, and the
nearest right name where there is one. What `test_bad_input.py` has is not here again.
"""

import os
import shutil
import sys

import pytest
import torch
import yaml
from PIL import Image
from support.base import TINY
from support.mistakes import arguments, assert_answered, contents

ROWS = [
    # groups and options
    ("data=mnits", "data=mnits", "'mnist'"),
    ("optimizer=adamm", "optimizer=adamm", "'adam'"),
    ("sampler=dddim", "sampler=dddim", "'ddim'"),
    ("hardware=cup", "hardware=cup", "'cpu'"),
    ("tracker=wandbb", "tracker=wandbb", "'wandb'"),
    ("tracker=[local,wandbb]", "tracker=wandbb", "'wandb'"),
    ("experiment=minst", "experiment=minst", "'mnist'"),
    ("optimizer=0.1", "optimizer=0.1", "adamw"),
    ("model=null", "model=null", "group"),
    ("~model",),
    ("job_data=foo", "job_data=foo"),
    (
        "experiment=laptop experiment=debug",
        *("experiment=laptop experiment=debug", "'experiment=[laptop,debug]'"),
    ),
    ("job=evaluate metric=fd metric=[kd,is]", "metric=fd metric=[kd,is]", "'metric=[fd,kd,is]'"),
    ("size=unet_digit", "model_data=unet_digit"),
    ("--multirn", "--multirn", "'--multirun'"),
    ("--max_steps 5", "--max_steps", "job.max_steps="),
    ("--resume=x", "--resume=x", " resume="),
    ("--", "--:", "no such flag"),
    ("-", "-:", "no such flag"),
    # words without a key, and words of the documentation
    ("train", "train:", "'job=train'"),
    ("job train", "job train:", "'job=train'"),
    ("data mnist", "data mnist:", "'data=mnist'"),
    ("job=sample done", "done:", "'checkpoint=done'"),
    ("done", "done:", "job=sample checkpoint=done", "resume=done"),
    ("checkpoint=<run>", "checkpoint=<run>", "stands for a folder"),
    ("runs=[<folder>]", "<folder> stands for a folder"),
    ("sweep=<name>", "<name> stands for a name"),
    # sweeps
    ("-m job=status,report", "job=status", "-m"),
    ("-m job=train,watch", "job=watch", "-m"),
    ("-m job=compare", "job=compare", "-m"),
    # keys
    ("job.max_step=5", "job.max_step:", "'job.max_steps'"),
    ("+job.max_step=5", "max_step", "job.max_steps"),
    ("+optimizer.lrr=1", "lrr", "optimizer.lr"),
    ("model.widht=3", "model.widht", "'model.width'"),
    ("max_steps=4", "max_steps", "'job.max_steps'"),
    ("lr=1", "lr:", "no such key"),
    ("steps=5", "steps:", "'sampler.steps'"),
    ("+unknown=1", "unknown:", "no such key"),
    ("+data.sise=3", "data", "sise"),
    ("sampler=ddim sampler.variance=fixed_large", "sampler.variance", "sampler=ddpm"),
    ("job.first_seed=3", "job.first_seed", "job=sample"),
    ("checkpoint=x", "checkpoint", "job=sample"),
    ("data.root=empty", "data.root", "data=folder"),
    ("hydra.sweeper.n_trials=3", "hydra.sweeper.n_trials", "hydra/sweeper=optuna"),
    ("hydra.launcher.jobs_per_gpu=2", "hydra.launcher.jobs_per_gpu", "hydra/launcher=slots"),
    ("hydra.launcher.jobs_per_gp=2", "hydra.launcher.jobs_per_gp", "'hydra.launcher.jobs_per_gpu'"),
    # what cannot be read
    ("data_dir=${foo.bar}", "foo.bar", "data_dir"),
    ("data_dir=${oc.env:NOPE}", "NOPE", "data_dir"),
    ("data_dir=${nope:1}", "nope", "data_dir"),
    # what may be built
    ("model._target_=torch.hub.load", "model._target_=torch.hub.load"),
    ("+hardware._args_=[1]", "hardware._args_"),
    # numbers
    ("optimizer.lr=0", "optimizer.lr=0"),
    *((f"job.max_steps={v}", f"job.max_steps={v}") for v in ("0", "nan")),
    *((f"job.batch_size={v}", "job.batch_size=", "whole number") for v in ("0", "-3", "null")),
    *((f"seed={v}", "seed=", "whole number") for v in ("-1", "5000000000")),
    ("job.max_steps=null", "job.max_steps=null", "job.max_epochs"),
    ("job.sample_every=0", "job.sample_every=0"),
    ("job.clip_grad_norm=0", "job.clip_grad_norm=0"),
    ("job.warmup_steps=-1", "job.warmup_steps=-1"),
    ("job.num_samples=0", "job.num_samples=0"),
    ("job.compile=1", "job.compile=1"),
    ("job.model=5", "job.model"),
    ("optimizer=adamw optimizer.weight_decay=-1", "optimizer.weight_decay=-1"),
    ("optimizer.betas=[2,0.9]", "optimizer", "beta"),
    ("optimizer.betas=[0.9]", "optimizer.betas"),
    ("optimizer.eps=-1", "optimizer", "eps"),
    ("schedule.T=20", "schedule.T=20", "< 1"),
    ("schedule=cosine schedule.max_beta=1", "schedule.max_beta=1"),
    ("model=unet model.widths=[32,a]", "model.widths=[32", "whole numbers"),
    ("hardware.num_nodes=2", "hardware.num_nodes=2", "torchrun"),
    ("model.num_classes=10", "model.num_classes=10"),
    ("schedule=cosine schedule.s=-1", "schedule.s=-1"),
    ("sampler=ddpm sampler.variance=big", "sampler.variance=big", "fixed_large"),
    # objectives, weightings, schedules, samplers
    ("objective=epsilon", "objective=epsilon", "'eps'"),
    ("weighting=min_snrr", "weighting=min_snrr", "'min_snr'"),
    ("guidance=classifierfree", "guidance=classifierfree", "'classifier_free'"),
    ("sampler=dpmsolver", "sampler=dpmsolver", "'dpm_solver'"),
    ("objective.loss_type=l2", "objective.loss_type=l2", "mse, l1, huber"),
    ("weighting=min_snr weighting.gamma=0", "weighting.gamma=0", "above 0"),
    ("weighting.gamma=5", "weighting.gamma", "weighting=min_snr"),
    ("objective.vlb_weight=0", "objective.vlb_weight=0", "above 0"),
    ("objective.learned_variance=1", "objective.learned_variance=1", "true or false"),
    ("schedule.rescale=maybe", "schedule.rescale=maybe", "true or false"),
    ("schedule=cosine schedule.rescale=false", "schedule.rescale", "schedule=linear"),
    ("schedule=learned schedule.T=1 sampler=ddpm", "schedule.T=1", "at least 2"),
    ("schedule=learned schedule.zero_terminal_snr=true", "schedule.zero_terminal_snr"),
    *(
        (
            f"objective=eps schedule={s} schedule.zero_terminal_snr=true",
            "zero_terminal_snr=true",
            "objective=eps",
        )
        for s in ("linear", "cosine", "quadratic", "sigmoid")
    ),
    ("schedule=rectified objective=eps", "schedule.end=1", "objective=velocity"),
    ("schedule=rectified objective=v schedule.end=1.5", "schedule.end=1.5", "at most 1"),
    ("schedule=rectified objective=v schedule.end=0", "schedule.end=0", "above 0"),
    ("objective=edm objective.sigma_data=dta", "objective.sigma_data=dta", "'data'"),
    ("objective=edm objective.sigma_data=0", "objective.sigma_data=0", "above 0"),
    ("weighting=velocty", "weighting=velocty", "'velocity'"),
    ("weighting=v weighting.max_weight=0", "weighting.max_weight=0", "null"),
    ("weighting=v weighting.quantity=w", "weighting.quantity=w", "eps, x_0, v, velocity"),
    ("weighting=p2 weighting.k=0", "weighting.k=0", "above 0"),
    ("timesteps=lognormal", "timesteps=lognormal", "'log_normal'"),
    ("timesteps=log_normal timesteps.std=0", "timesteps.std=0", "above 0"),
    ("timesteps=importance timesteps.history=0", "timesteps.history=0", "from 1"),
    ("timesteps=importance timesteps.uniform_share=2", "timesteps.uniform_share=2", "at most 1"),
    ("timesteps.stratified=1", "timesteps.stratified=1", "true or false"),
    ("timesteps.mean=0", "timesteps.mean", "timesteps=log"),
    ("sampler.rho=0", "sampler.rho=0", "above 0"),
    ("sampler=heun sampler.churn=-1", "sampler.churn=-1", "from 0"),
    ("sampler=unipc sampler.order=4", "sampler.order=4", "1, 2 or 3"),
    ("sampler.spacing=cubic", "sampler.spacing=cubic", "uniform, quadratic, trailing, log_snr"),
    ("sampler=dpm_solver sampler.order=4", "sampler.order=4", "1, 2 or 3"),
    ("sampler=ddim sampler.eta=-0.1", "sampler.eta=-0.1", "0 to 1"),
    ("sampler=heun sampler.steps=41 schedule.T=40", "sampler.steps=41", "schedule.T=40"),
    ("sampler=ddpm sampler.variance=learned", "sampler.variance=learned", "learned_variance"),
    # labels
    ("guidance=classifier_free", "guidance=classifier_free", "data.conditional"),
    ("guidance=classifier", "guidance.classifier", "must be set"),
    ("guidance=autoguidance", "guidance.weak", "must be set"),
    ("guidance=autoguidance guidance.weak=nowhere", "guidance.weak=nowhere"),
    ("guidance=autoguidance guidance.weak=empty", "guidance.weak=empty", "step-*.pt"),
    (
        "data.conditional=true guidance=classifier_free guidance.interval=[3,1]",
        "guidance.interval=[3",
        "two rising numbers",
    ),
    ("data=celeba guidance=classifier_free", "guidance=classifier_free", "data.conditional"),
    ("job=train_classifier schedule=learned", "schedule=learned", "a fixed one"),
    ("guidance=classifier guidance.classifier=nowhere", "guidance.classifier=nowhere"),
    ("guidance=classifier guidance.classifier=empty", "guidance.classifier=empty", "step-*.pt"),
    ("guidance=classifier guidance.classifier=weights.pt", "guidance.classifier=weights.pt"),
    (
        "data.conditional=true guidance=classifier_free guidance.scale=-1",
        *("guidance.scale=-1", "from 0"),
    ),
    (
        "data.conditional=true guidance=classifier_free guidance.rescale=2",
        *("guidance.rescale=2", "0 to 1"),
    ),
    ("guidance.scale=2", "guidance.scale", "guidance=classifier"),
    ("data.conditional=maybe", "data.conditional=maybe", "true or false"),
    (
        "data=folder data.root=pictures data.conditional=true",
        *("data.conditional=true", "data=folder has no classes", "data.num_classes"),
    ),
    ("job.label_dropout=1.5", "job.label_dropout=1.5", "0 to below 1"),
    ("job.labels=[3]", "job.labels", "job=sample"),
    ("data.conditional=true model.num_classes=5", "model.num_classes=5", "data.num_classes"),
    ("model.out_channels=7", "model.out_channels=7", "objective.learned_variance"),
    ("model=classifier", "model=classifier", "job=train_classifier"),
    ("job=train_classifier model=unet", "model=unet", "model=classifier"),
    ("job=train_classifier data=celeba", "job=train_classifier", "data=celeba has no classes"),
    ("job=train_classifier model.num_classes=5", "model.num_classes=5", "data.num_classes"),
    ("job=train_classifier job.label_dropout=0.1", "job.label_dropout", "job=train"),
    # parts that do not fit
    ("model=resunet data.image_size=15", "data.image_size=15", "multiple of"),
    ("model=unet model.widths=[]", "model.widths=[]"),
    ("model=unet model.widths=5", "model.widths=5"),
    ("model=unet model.groups=7", "model.groups=7"),
    ("model=unet model.num_heads=3", "model.num_heads=3"),
    ("model=resunet model.dropout=2", "model.dropout=2"),
    ("model.width=0", "model.width=0"),
    ("model.width=abc", "model.width=abc"),
    ("diffusion.betas=5", "diffusion.betas"),
    ("data.split=valid", "data.split=valid", "train"),
    ("data.resize_mode=stretch", "data.resize_mode=stretch", "crop, pad, resize"),
    # devices
    ("hardware=gpu", "GPU", "hardware=cpu"),
    ("hardware.precision=bogus", "hardware", "bogus", "bf16-mixed"),
    # files and folders
    ("data=folder data.root=note.txt", "data.root", "note.txt"),
    ("data=folder data.root=a.zip", "data.root", "a.zip", "data=zip data.path"),
    ("output_dir=note.txt/run", "output_dir=note.txt/run"),
    ("resume=note.txt", "resume=note.txt"),
    ("resume=torn", "resume=torn", "config.yaml"),
    ("resume=stranger", "resume=stranger", "stranger/config.yaml"),
    ("job=sample", "checkpoint"),
    ("job=sample checkpoint=nowhere.pt", "checkpoint=nowhere.pt"),
    ("job=sample checkpoint=empty", "checkpoint=empty", "step-*.pt"),
    ("job=sample checkpoint=note.txt", "checkpoint=note.txt", "not a"),
    ("job=sample checkpoint=weights.pt", "checkpoint=weights.pt", "not a checkpoint"),
    ("job=sample checkpoint=cut.pt", "checkpoint=cut.pt", "not a"),
]


@pytest.fixture
def scene(tmp_path):
    """A working folder with all the wrong things a row can point at."""
    for folder in ("empty", "texts", "done", "torn", "stranger", "pictures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "note.txt").write_text("<html>not found</html>")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("no picture")
    (tmp_path / "done" / "config.yaml").write_text(yaml.safe_dump({"model": {}, "choices": {}}))
    (tmp_path / "done" / "status.json").write_text('{"state": "done", "step": 6}')
    (tmp_path / "torn" / "config.yaml").write_text("model: [1\n\tx: }")
    (tmp_path / "stranger" / "config.yaml").write_text("services: {web: 1}")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:-40])
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "b.jpg").write_bytes(b"\xff\xd8 not a picture")
    return tmp_path


@pytest.mark.quick(17)
@pytest.mark.parametrize("row", ROWS, ids=[row[0].replace(" ", ",") for row in ROWS])
def test_mistake_is_refused_and_nothing_is_written(row, run, scene):
    before = contents(scene)
    status, _, err = run(*arguments(row[0]))
    assert_answered(status, err, *row[1:])
    assert contents(scene) == before


@pytest.mark.parametrize("words", [[], ["checkpoint=outputs"], ["checkpoint=outputs/train"]])
def test_newest_training_run_is_named_where_no_run_is(words, run, tiny):
    folder = tiny.parent / "outputs" / "train" / "convnet-digits"
    for name, time in (("a", 20), ("b", 30), ("c", 10)):
        shutil.copytree(tiny, folder / name)
        os.utime(folder / name / "status.json", (time, time))
    shutil.copytree(folder / "b", tiny.parent / "outputs" / "without")
    shutil.rmtree(tiny.parent / "outputs" / "without" / "checkpoints")
    status, _, err = run("job=sample", "hardware=cpu", "tracker=local", *words)
    assert_answered(status, err, "outputs/train/convnet-digits/b")
    if not words:
        assert "checkpoint=<run folder>" in err


def test_newest_training_run_inside_is_named_to_resume(run, tiny):
    shutil.copytree(tiny, tiny.parent / "outputs" / "a")
    status, _, err = run("resume=outputs")
    assert_answered(status, err, "resume=outputs", "outputs/a")


def test_a_sampling_run_cannot_be_resumed_as_a_training(run, tiny):
    folder = tiny.parent / "drawn"
    words = ("hardware=cpu", "tracker=local", "job.num_samples=1", f"output_dir={folder}")
    assert run("job=sample", f"checkpoint={tiny}", *words)[0] == 0
    status, _, err = run(f"resume={folder}")
    assert_answered(status, err, f"resume={folder}", "not a training run", "sample")


def test_flag_of_one_letter_is_not_taken_for_another(run):
    status, _, err = run("-x")
    assert_answered(status, err, "-x: no such flag")
    assert "Did you mean" not in err


def test_placeholder_of_the_documentation_is_answered_with_the_newest_run(run, tiny):
    shutil.copytree(tiny, tiny.parent / "outputs" / "a")
    status, _, err = run("job=sample", "checkpoint=<run folder>")
    assert_answered(status, err, "checkpoint=<run folder>", "such as outputs/a")


def test_blanks_around_the_equals_sign_are_named(run, scene):
    status, _, err = run("job.max_steps = 5")
    assert_answered(status, err, "job.max_steps = 5", "key=value without spaces")


def test_all_mistakes_are_reported_at_once(run, scene):
    status, _, err = run(*arguments("optimizer.lr=-1 job.batch_size=0 seed=x"))
    assert_answered(status, err, "optimizer.lr=-1", "job.batch_size=0", "seed=x")


def test_typo_in_a_sweep_is_reported_before_the_first_job(run, scene):
    before = contents(scene)
    status, _, err = run("-m", *arguments("model=convnet,unett"))
    assert_answered(status, err, "model=unett", "'unet'")
    made = contents(scene).keys() - before.keys()
    assert made <= {"outputs", "outputs/sweep"}


def test_a_range_names_the_sweeper_that_searches_it(run, scene):
    status, _, err = run("-m", *arguments("job.batch_size=interval(2,4)"))
    assert_answered(status, err, "job.batch_size=interval(2,4)", "hydra/sweeper=optuna")


def test_run_without_checkpoints_cannot_be_resumed(run, tiny):
    for path in (tiny / "checkpoints").iterdir():
        path.unlink()
    before = contents(tiny)
    status, _, err = run(f"resume={tiny}", "job.max_steps=8")
    assert_answered(status, err, str(tiny), "no whole checkpoint")
    assert contents(tiny) == before


def test_corrupt_image_is_named_and_leaves_no_cache_or_run(run, scene):
    status, _, err = run(*TINY, "data=folder", "data.root=pictures", "data.image_size=16")
    assert_answered(status, err, "pictures/b.jpg")
    made = {path.name for path in (scene / "data").rglob("*") if path.is_file()}
    assert made <= {"folder.lock"}
    assert not (scene / "outputs").exists()


def test_hostile_config_in_a_run_folder_builds_nothing(run, tiny):
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    config["optimizer"] = {"_target_": "os.mkdir", "path": "gotcha"}
    (tiny / "config.yaml").write_text(yaml.safe_dump(config))
    status, _, err = run(f"resume={tiny}", "job.max_steps=8")
    assert_answered(status, err, "_target_=os.mkdir")
    assert not (tiny.parent / "gotcha").exists()


def test_hostile_config_in_a_checkpoint_builds_nothing(run, tiny):
    path = tiny / "checkpoints" / "step-0000006.pt"
    state = torch.load(path, weights_only=True)
    state["hparams"]["model"] = {"_target_": "os.mkdir", "path": "gotcha"}
    torch.save(state, path)
    status, _, err = run("job=sample", f"checkpoint={path}", "hardware=cpu", "tracker=local")
    assert_answered(status, err, "_target_=os.mkdir")
    assert not (tiny.parent / "gotcha").exists()


def test_hostile_checkpoint_runs_no_code(run, scene):
    class Hostile:
        def __reduce__(self):
            import os

            return os.mkdir, (str(scene / "gotcha"),)

    torch.save({"format": "hydra-ddpm", "x": Hostile()}, scene / "hostile.pt")
    before = contents(scene)
    status, _, err = run("job=sample", "checkpoint=hostile.pt", "hardware=cpu", "tracker=local")
    assert_answered(status, err, "checkpoint=hostile.pt: not a", "code")
    assert contents(scene) == before


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False)])
def test_hydra_full_error_shows_the_traceback(value, shown, run, scene, monkeypatch, capfd):
    from ddpm import cli

    run("--cfg", "job")  # the folder, the home and the rest of what `run` sets
    monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    monkeypatch.setattr(sys, "argv", [*sys.argv[:1], *TINY, "optimizer.lr=-1"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capfd.readouterr().err
    assert end.value.code == 2
    assert ("Traceback" in err) is shown
    assert "optimizer.lr=-1: must be" in err.splitlines()[-1]


def test_run_killed_before_its_first_checkpoint_restarts(run, tiny):
    for path in (tiny / "checkpoints").iterdir():
        path.unlink()
    (tiny / "status.json").write_text('{"state": "running", "step": 1}')
    status, out, _ = run(f"resume={tiny}")
    assert status == 0
    assert "no checkpoint yet: from the start" in out
