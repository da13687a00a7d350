"""Bad input: a line or a few that name it, status 2, nothing written.

A row is what is typed after `run.py`, and what the answer must contain: the key, the value, what is
allowed, and the nearest right name where there is one. Cases that need a run, a file or another
process stand below the table. Elsewhere, or met in another way:

- Numbers that YAML reads otherwise than people do are refused; `off` in a file is `false`, and that
  is what config.yaml shows.
- Pictures of any size and colour are framed and converted: no mistake is left to make.
- With the ramp of the average no number of steps leaves more than a tenth of the start; without it
  there is a warning.
- A checkpoint is always written at the end, so save_every may be larger than the steps.
- Processes are started by a function, not by the command line again: a sweep over runs of two
  processes is no mistake.
- Jobs of a sweep that share a folder: `test_run.py`.
- A metric that no trial logs: `test_search.py`.
- Whether W&B knows the key is known when it is opened; the run's folder is there by then.
- More workers than cores are slow, not wrong: a note.
"""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import wandb
import yaml
from PIL import Image
from support.base import ROOT, TINY
from support.mistakes import arguments, assert_answered, contents

OWN = "--config-dir=mine"
ROWS = [
    # keys and options
    ("optimizer.lr=abc", "optimizer.lr=abc", "a finite number above 0"),
    (f"{OWN} experiment=typo", "job.max_step:", "'job.max_steps'"),
    ("+optimizer.lrr=1e-4", "optimizer.lrr", "'optimizer.lr'"),
    (f"{OWN} experiment=unknown", "jobb:", "'job'"),
    (f"{OWN} experiment=tracker", "tracker.wandb.entty:", "'tracker.wandb.entity'"),
    ("optimizer.lrr=1", "optimizer.lrr", "'optimizer.lr'"),
    ("model=unett", "model=unett", "'unet'", "convnet, dit, jit, resunet, unet"),
    (f"{OWN} experiment=typpo", "experiment=typpo", "'typo'", "ho2020_cifar10"),
    ("modle=unet", "modle", "'model'"),
    ("job=trian", "job=trian", "'train'"),
    # numbers
    *((f"job.max_steps={v}", f"job.max_steps={v}", "whole number") for v in ("1.5", "10k")),
    *((f"optimizer.lr={v}", f"optimizer.lr={v}", "finite") for v in ("-1", "nan", "inf")),
    ("job.lr_decay=cosin", "job.lr_decay=cosin", "inverse, cosine, linear", "'cosine'"),
    ("lr_decay=cosine", "lr_decay", "'job.lr_decay'"),
    *((f"seed={v}", "seed=", "whole number from 0 to 2^32") for v in ("null", "True", "")),
    ("model=5", "model=5", "unet"),
    # what is not there
    ("data_dir=??? seed=???", "data_dir: must be set", "seed: must be set"),
    ("job=inpaint", "checkpoint: must", "job.image: must", "job.mask: must"),
    (
        "data_dir=${oc.env:NOPE} output_dir=${foo.bar} seed=${nope:1}",
        *("data_dir=${oc.env:NOPE}: the environment variable NOPE is not set",),
        *("output_dir=${foo.bar}: refers to foo.bar", "seed=${nope:1}: no such resolver"),
    ),
    (f"{OWN} experiment=unset", "seed=${oc.env:NOPE}", "data_dir=${seeed}"),
    ("optimizer._target_=torch.optim.AdamWW", "torch.optim.AdamWW", "'torch.optim.AdamW'"),
    ("model._target_=os.system", "model._target_=os.system", "conf/"),
    ("+model.widht=5", "model.widht", "'model.width'"),
    ("~model.width", "model.width", "only set"),
    (f"{OWN} model=own", "model.channels: must be set"),
    # what cannot be read
    ("job.max_steps", "job.max_steps", "key=value"),
    ("job.max_steps = 5", "job.max_steps", "without spaces"),
    ("seed=[1", "seed=[1", "key=value"),
    ("seed=1,2", "-m"),
    ("--config-name=zzz", "--config-name=zzz", "no such configuration", "config"),
    ("--config-nmae=zzz", "--config-nmae=zzz", "'--config-name'"),
    *(
        (f"{OWN} experiment={name}", f"{name}.yaml:{line}:")
        for name, line in {"tab": 3, "unclosed": 3, "twice": 4, "tag": 2}.items()
    ),
    (f"{OWN} experiment=bytes", "bytes.yaml: not UTF-8 text"),
    ("job.max_steps=010", "job.max_steps=010", "whole number"),
    ("job.compile=yes", "job.compile=yes", "true, false or auto"),
    (f"{OWN} experiment=octal", "octal.yaml:3:14: 010 means 8"),
    (f"{OWN} experiment=minutes", "minutes.yaml:3:14: 1:30 means 90"),
    (f"{OWN} experiment=off tracker=wandb", "tracker.wandb.notes=False", "in quotes"),
    ("-m hydra/launcher=joblibb seed=1,2", "launcher=joblibb", "'joblib'", "basic"),
    ("-m hydra/launcher=joblib seed=1,2", "pip install hydra-joblib-launcher"),
    ("-m hydra/launcher=submitit_local seed=1,2", "pip install hydra-submitit-launcher"),
    ("-m hydra/sweeper=ax seed=1,2", "pip install hydra-ax-sweeper"),
    # folders
    ("hydra.run.dir=/proc/x", "/proc/x"),
    ("output_dir=/proc/x", "output_dir=/proc/x"),
    ("output_dir=note.txt", "output_dir=note.txt", "is a file"),
    ("-m hydra.sweep.dir=note.txt seed=1,2", "note.txt"),
    ("output_dir=done", "output_dir=done", "done", "resume=done"),
    ("resume=nowhere", "resume=nowhere"),
    ("resume=empty", "resume=empty", "config.yaml"),
    ("resume=weights.pt", "resume=weights.pt"),
    ("job=sample checkpoint=done/config.yaml", "checkpoint=done/config.yaml", "not a"),
    # data
    ("data=folder", "data.root"),
    ("data=folder data.root=nowhere", "data.root", "nowhere"),
    ("data=folder data.root=empty", "data.root", "empty", "no files"),
    ("data=folder data.root=texts", "data.root", "texts", "2 '.txt'", ".png, .jpg"),
    ("model=unet data.image_size=18", "data.image_size=18", "multiple of 4", "16, 20"),
    ("data.channels=2", "data.channels=2", "1, 3"),
    ("model.channels=5", "model.channels=5", "data.channels=1"),
    ("data=celeba data.conditional=true", "data.conditional=true", "has no classes"),
    ("data.num_classes=3", "data.num_classes=3", "10"),
    # devices
    (
        "job.batch_size=9 job.accumulate_grad_batches=2",
        "job.batch_size=9",
        "job.accumulate_grad_batches=2",
    ),
    (
        "hardware=ddp hardware.accelerator=cpu hardware.devices=3 job.batch_size=100",
        *("job.batch_size=100", "3 devices", "99, 102"),
    ),
    *((f"hardware.devices={v}", f"hardware.devices={v}") for v in ("0", "-1", "abc")),
    ("hardware.accelerator=cuda", "hardware.accelerator=cuda", "GPU"),
    ("hardware.accelerator=bogus", "hardware.accelerator=bogus"),
    ("hardware.accelerator=mps", "hardware.accelerator=mps", "hardware=cpu"),
    ("hardware.accelerator=mps schedule=learned", "hardware.accelerator=mps", "schedule=learned"),
    ("hardware.strategy=bogus", "hardware.strategy=bogus"),
    *(
        (f"hardware.precision={v}", f"hardware.precision={v}", "bf16-mixed")
        for v in ("16-mixed", "16")
    ),
    ("hardware.precision=bf16-mixd", "hardware.precision=bf16-mixd", "'bf16-mixed'"),
    # the process
    ("schedule.beta_start=0.5", "schedule.beta_start=0.5", "schedule.beta_end=0.02"),
    ("schedule.beta_end=2", "schedule.beta_end=2"),
    ("schedule.T=0", "schedule.T=0", "from 1"),
    ("schedule=linaer", "schedule=linaer", "'linear'"),
    ("sampler.steps=2000", "sampler.steps=2000", "1000"),
    ("sampler=ddim sampler.eta=-1", "sampler.eta=-1", "0 to 1"),
    ("sampler=ddpm sampler.eta=1", "sampler.eta", "sampler=ddim"),
    # training
    *((f"job.ema_decay={v}", f"job.ema_decay={v}", "below 1") for v in ("1.0", "1.5")),
    *((f"job.keep_checkpoints={v}", "from 2, or -1 for all") for v in ("1", "0")),
    ("job.save_every=0", "job.save_every=0", "from 1"),
    ("tracker=wandb tracker.wandb.mode=ofline", "tracker.wandb.mode=ofline", "'offline'"),
    ("+wandb_api_key=0123456789", "wandb_api_key", "WANDB_API_KEY in the environment"),
    (f"{OWN} experiment=secret", "tracker.wandb.api_key", "wandb login"),
    ("job.num_workers=-1", "job.num_workers=-1", "from 0"),
]
FILES = {
    "typo": "job: {max_step: 5}",
    "unknown": "jobb: {max_steps: 5}",
    "tracker": "tracker: {wandb: {entty: lab}}",
    "unset": "seed: ${oc.env:NOPE}\ndata_dir: ${seeed}",
    "tab": "job:\n\tmax_steps: 5",
    "unclosed": "job: {max_steps: 5",
    "twice": "job:\n  max_steps: 5\n  max_steps: 6",
    "tag": "job: !!python/object:os.system {}",
    "octal": "job:\n  max_steps: 010",
    "minutes": "job:\n  max_steps: 1:30",
    "off": "tracker: {wandb: {notes: off}}",
    "secret": "tracker: {wandb: {api_key: 0123456789}}",
    "lab": "tracker: {wandb: {entity: our-lab}}\njob: {compile: off, max_steps: 1_0}",
}


@pytest.fixture
def scene(tmp_path):
    """A working folder with the wrong things that a row can point at."""
    for folder in ("empty", "texts", "done", "mine/experiment", "mine/model"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in FILES.items():
        path = tmp_path / "mine" / "experiment" / f"{name}.yaml"
        path.write_text(f"# @package _global_\n{text}\n")
    (tmp_path / "mine" / "experiment" / "bytes.yaml").write_bytes(b"name: caf\xe9")
    (tmp_path / "mine" / "model" / "own.yaml").write_text(
        "_target_: ddpm.models.convnet.ConvNet\nimage_size: ${data.image_size}\nwidth: 4\n"
    )
    (tmp_path / "note.txt").write_text("<html>not found</html>")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("no picture")
    (tmp_path / "done" / "config.yaml").write_text(yaml.safe_dump({"model": {}, "choices": {}}))
    (tmp_path / "done" / "status.json").write_text('{"state": "done", "step": 6}')
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    return tmp_path


@pytest.mark.quick(19)
@pytest.mark.parametrize("row", ROWS, ids=[row[0].replace(" ", ",") for row in ROWS])
def test_bad_input_is_refused_and_nothing_is_written(row, run, scene):
    before = contents(scene)
    status, out, err = run(*arguments(row[0]))
    assert_answered(status, err, *row[1:])
    assert "Traceback" not in out
    assert contents(scene) == before


def test_whole_floats_are_integers_and_the_config_shows_accepted_values(run, scene):
    status, _, err = run(*TINY, OWN, "experiment=lab", "job.warmup_steps=1e3", "output_dir=run")
    assert status == 0, err
    config = yaml.safe_load((scene / "run" / "config.yaml").read_text())
    assert config["job"]["warmup_steps"] == 1000
    assert config["job"]["compile"] is False
    assert "wandb" not in config["tracker"], "of a tracker that is not chosen"
    assert yaml.safe_load("1_0") == 10


def test_contradictions_to_a_run_show_both_values(run, tiny):
    before = contents(tiny)
    there = f"checkpoint={tiny}"
    status, _, err = run("job=sample", there, "model.width=32", "hardware=cpu", "tracker=local")
    assert_answered(status, err, "model.width=32", str(tiny), "64")
    status, _, err = run(f"resume={tiny}", "optimizer.lr=1e-3", "job.max_steps=8")
    assert_answered(status, err, "optimizer.lr=0.001", "0.0002")
    assert contents(tiny) == before


def test_images_of_any_size_and_mode_are_converted(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, (mode, size) in enumerate([("L", (9, 20)), ("RGB", (30, 8)), ("RGBA", (8, 8))]):
        Image.new(mode, size).save(tmp_path / "pictures" / f"{i}.png")
    words = ["data=folder", "data.root=pictures", "data.image_size=8", "job.max_steps=1"]
    status, _, err = run(*TINY, *words)
    assert status == 0, err


def test_slow_ema_and_too_many_workers_give_warnings(run, tmp_path):
    many = (os.cpu_count() or 1) + 1
    status, out, err = run(
        *TINY, "job.max_steps=1", "job.ema_ramp=1", f"job.num_workers={many}", "job.save_every=100"
    )
    assert status == 0, err
    assert ": after 1 steps the average" in out + err
    assert f"job.num_workers={many}: slower, as this machine has {many - 1} cores" in out + err
    assert "UserWarning" not in out + err
    assert list(tmp_path.rglob("step-0000001.pt")), "the end is always saved"


def test_missing_and_short_wandb_keys_are_refused(run, tmp_path, monkeypatch):
    online = ["tracker=wandb", "tracker.wandb.mode=online"]
    status, _, err = run(*TINY, *online)
    assert_answered(status, err, "not logged in", "wandb login", "tracker.wandb.mode=offline")
    monkeypatch.setenv("WANDB_API_KEY", "tooshort1")
    wandb.teardown()  # it looks at the environment once
    status, out, err = run(*TINY, *online)
    assert_answered(status, err, "wandb login", "tracker.wandb.mode=offline")
    assert "tooshort1" not in out + err


def plain():
    """The environment without what other tests may have left of Hydra's."""
    return {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "hides"), [("grp.py", True), ("grp", True), ("grp.txt", False)])
def test_file_that_shadows_a_standard_module_is_named(name, hides, tmp_path):
    """Beside run.py only: the working directory is not where Python looks."""
    shutil.copy(ROOT / "run.py", tmp_path)
    for folder in ("ddpm", "conf"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = tmp_path / name
    if path.suffix:
        path.write_text("groups = [1]\n")
    else:
        path.mkdir()
        (path / "__init__.py").touch()
    command = [sys.executable, str(tmp_path / "run.py"), "optimizer.lr=-1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=plain())
    assert ended.returncode != 0
    assert len(ended.stderr.splitlines()) == 1
    assert (str(path) in ended.stderr and "'grp'" in ended.stderr) is hides
    assert "optimizer.lr=-1" in ended.stderr or hides


def test_files_in_the_working_directory_shadow_nothing(tmp_path):
    (tmp_path / "grp.py").write_text("raise SystemExit('hidden')\n")
    command = [sys.executable, str(ROOT / "run.py"), "optimizer.lr=-1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=plain())
    assert_answered(ended.returncode, ended.stderr, "optimizer.lr=-1: must be")


def test_run_of_a_newer_version_is_refused(run, tiny):
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    (tiny / "config.yaml").write_text(yaml.safe_dump(config | {"version": 2}))
    before = contents(tiny)
    status, _, err = run(f"resume={tiny}", "job.max_steps=8")
    assert_answered(status, err, f"resume={tiny}", "newer version of this program (2, here 1)")
    assert contents(tiny) == before


def test_folder_with_samples_of_another_run_is_refused(run, tiny, tmp_path):
    (tmp_path / "drawn" / "samples").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "drawn" / "samples" / "000000.png")
    before = contents(tmp_path)
    words = ["job=sample", f"checkpoint={tiny}", "hardware=cpu", "tracker=local"]
    status, _, err = run(*words, "output_dir=drawn", "job.num_samples=2")
    assert_answered(status, err, "output_dir=drawn")
    assert contents(tmp_path) == before
