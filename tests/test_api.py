"""ddpm.compose, ddpm.train and ddpm.run: the command line from Python."""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from support.base import ROOT, TINY
from support.runs import SAMPLE, assert_equal_state, go, state_of

import ddpm
from ddpm.errors import InputError
from ddpm.images import Images, load_png
from ddpm.training.meter import Meter


@pytest.fixture
def here(run):
    """An empty folder, and the caches and pictures that tests share."""
    GlobalHydra.instance().clear()
    return run


def test_import_on_windows_names_wsl():
    program = "import os; os.name = 'nt'; import ddpm"
    made = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert made.stderr.splitlines()[-1].endswith("on Windows, run it in the subsystem WSL2.")


def test_training_gives_the_weights_of_the_command_line_and_leaves_the_process_as_it_was(here):
    go(here, *TINY, "output_dir=cli")
    GlobalHydra.instance().clear()

    def process():
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        streams = [sys.stdin, sys.stdout, sys.stderr, sys.argv]
        states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]
        return handlers, streams, str(states), dict(os.environ), torch.get_num_threads()

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # a user of Hydra
        before = process()
        run = ddpm.train(ddpm.compose(*TINY, "output_dir=api"))
        assert process() == before
        assert compose("config", ["seed=3"]).seed == 3
    assert (str(run.folder), run.state) == ("api", "done")
    assert_equal_state(state_of(run.folder, 6), state_of(run.folder.parent / "cli", 6))
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert run.config["job"]["max_steps"] == 6
    with pytest.raises(InputError, match="output_dir=api: the folder holds a run already"):
        ddpm.compose(*TINY, "output_dir=api")


def test_parts_are_run_twice_and_drawn_from(here):
    parts = ddpm.compose(*TINY, "job.max_steps=2")
    assert sum(p.numel() for p in parts.build("model").parameters()) == 54_785
    assert repr(parts).startswith("ddpm.compose('model=convnet', ")
    first, second = ddpm.train(parts), ddpm.run(parts)
    assert first.folder != second.folder
    assert first.config["run_id"] != second.config["run_id"]
    assert_equal_state(state_of(first.folder, 2), state_of(second.folder, 2))
    images = ddpm.Run(second.folder).pipeline.sample(3)
    words = [*SAMPLE, f"checkpoint={first.folder}", "job.num_samples=3"]
    drawn = ddpm.run(ddpm.compose(*words))
    assert drawn.images.shape == images.shape == (3, 1, 16, 16)
    assert (drawn.images.int() - images.int()).abs().max() <= 1  # drawn as one batch, too


def test_an_interrupted_run_is_resumed(here, monkeypatch):
    whole = ddpm.train(ddpm.compose(*TINY, "output_dir=whole"))
    add, before = Meter.add, signal.getsignal(signal.SIGINT)

    def interrupted(self, metrics):
        add(self, metrics)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped and saved in cut"):
            ddpm.train(ddpm.compose(*TINY, "output_dir=cut"))
    assert signal.getsignal(signal.SIGINT) is before
    cut = ddpm.Run("cut")
    assert (cut.state, len(cut.metrics)) == ("preempted", 1)
    resumed = ddpm.train(ddpm.compose("resume=cut"))
    assert resumed == cut
    assert_equal_state(state_of(resumed.folder, 6), state_of(whole.folder, 6))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=unet"], "modle: no such key. Did you mean 'model'?"),
        (["model=unte"], "model=unte: no such option. Did you mean 'unet'?"),
        (["model=3"], "model=3: no such option"),
        (["job.max_steps=0"], "job.max_steps=0: must be a whole number"),
        (["data_dir={a"], "data_dir={a: cannot be parsed"),
        (["seed=1,2"], "seed=1,2: several values are a sweep"),
        (["-m", "seed=1"], "-m: compose\\(\\) takes no flags"),
        (["job=status"], "job=status: only prints"),
        (["job=sample"], "checkpoint"),
        (["job=sample", "checkpoint=none"], "checkpoint=none: there is no such file or folder"),
    ],
)
def test_mistakes_are_raised(here, words, message, tmp_path, capfd):
    with pytest.raises(InputError, match=message):
        ddpm.compose(*words)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_runs(here, tiny, tmp_path):
    sampling = ddpm.compose(*SAMPLE, f"checkpoint={tiny}")
    with pytest.raises(InputError, match="job=sample: does not train"):
        ddpm.train(sampling)
    with pytest.raises(InputError, match="optimiser: not a part; the parts are data, diff"):
        sampling.build("optimiser")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="nothing: there is no such folder"):
        ddpm.Run("nothing")
    with pytest.raises(InputError, match="is not the folder of a run"):
        _ = ddpm.Run(tmp_path).config
    with pytest.raises(InputError, match="no pictures of one size in samples/"):
        _ = ddpm.Run(empty).images
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        _ = ddpm.Pipelin


def test_images_are_tensors_and_pictures(tmp_path):
    pixels = (torch.arange(5 * 3 * 8 * 8).reshape(5, 3, 8, 8) % 256).to(torch.uint8)
    images = pixels.as_subclass(Images)
    assert torch.equal(images, pixels)
    assert type(images.float() / 255) is torch.Tensor
    assert type(torch.cat([images, pixels])) is torch.Tensor
    for shown in (images, images[:3], images[1], images[:, :1]):
        (tmp_path / "shown.png").write_bytes(shown._repr_png_())
        shown.save(tmp_path / "saved.png")
        assert torch.equal(load_png(tmp_path / "shown.png"), load_png(tmp_path / "saved.png"))
    assert images[:, :, 0]._repr_png_() is images[:, :2]._repr_png_() is None
    torch.save(images, tmp_path / "images.pt")
    assert torch.equal(torch.load(tmp_path / "images.pt", weights_only=True), pixels)
