"""Training on archives, on deep pictures that are not square, and with augmentation, as users call
it: the same weights, exact resume, and samples with the values of the data."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.base import TINY
from support.image_sets import random_pixels, save
from support.runs import assert_equal_state, go, state_of
from test_formats import FORMATS, sources  # noqa: F401

from ddpm.augment.edm import EDM

SMALL = [*TINY, "model.width=8"]


@pytest.mark.slow
def test_five_formats_give_the_same_weights_and_resume_exactly(sources, run, tmp_path):  # noqa: F811
    words = ["data.image_size=8", "data.num_classes=3", "data.conditional=true", *SMALL]
    for kind in FORMATS:
        where = [f"data.{key}='{value}'" for key, value in sources[kind].items()]
        steps = ["job.max_steps=23" if kind == "webdataset" else "job.max_steps=50"]
        go(run, f"data={kind}", *where, *words, *steps, "job.save_every=50", f"output_dir={kind}")
    go(run, "resume=webdataset", "job.max_steps=50")  # stopped in the middle of a shard
    for kind in FORMATS[1:]:
        assert_equal_state(state_of(tmp_path / "folder", 50), state_of(tmp_path / kind, 50))


def test_samples_have_the_depth_and_the_size_of_the_data(run, tmp_path):
    for n, pixels in enumerate(random_pixels(8, 8, 12)):
        save(tmp_path / "pics" / f"{n}.png", pixels.astype(np.uint16) * 257)
    shape = ["data.channels=1", "data.image_size=[8,12]", "data.value_range=[0,65535]"]
    go(run, "data=folder", "data.root=pics", *shape, *SMALL, "output_dir=deep")
    go(run, "job=export", "checkpoint=deep", "output_dir=shared")
    words = ["checkpoint=shared/model.safetensors", "hardware=cpu", "tracker=local"]
    go(run, "job=sample", *words, "job.num_samples=2", "output_dir=drawn")
    image = Image.open(tmp_path / "drawn" / "samples" / "000000.png")
    assert (image.mode, image.size) == ("I;16", (12, 8))
    assert (np.asarray(image) % 257 != 0).any()  # no 8 bits scaled up
    words = ["checkpoint=deep", "job.image=pics/0.png", "job.mask=left", "hardware=cpu"]
    go(run, "job=inpaint", *words, "job.num_samples=1", "tracker=local", "output_dir=filled")
    filled = np.asarray(Image.open(tmp_path / "filled" / "samples" / "000000.png"))
    known = np.asarray(Image.open(tmp_path / "pics" / "0.png"))
    assert (filled[:, 6:] == known[:, 6:]).all()
    status, _, err = run("job=evaluate", "checkpoint=deep", "tracker=local", "hardware=cpu")
    assert (status, "data.value_range=[0, 65535]" in err) == (2, True)


@pytest.mark.slow
def test_augmentation_resumes_exactly_and_changes_nothing_at_probability_0(run, tmp_path):
    words = ["data=digits", "augment=edm", *SMALL]
    go(run, "data=digits", *SMALL, "output_dir=none")
    go(run, *words, "augment.probability=0", "output_dir=zero")
    none, zero = (state_of(tmp_path / name, 6)["model"] for name in ("none", "zero"))
    embedding = zero.pop("augment_embedding.weight")
    assert embedding.shape[1] == EDM().dim
    assert not embedding.any()
    assert all(torch.equal(none[name], weight) for name, weight in zero.items())
    go(run, *words, "output_dir=whole")
    go(run, *words, "job.max_steps=3", "output_dir=half")
    go(run, "resume=half", "job.max_steps=6")
    assert_equal_state(state_of(tmp_path / "whole", 6), state_of(tmp_path / "half", 6))
    weights = state_of(tmp_path / "whole", 6)["model"]
    assert not torch.equal(weights["conv_1.weight"], none["conv_1.weight"])


def test_augmentation_is_refused_where_it_cannot_be_used(run):
    words = ["augment=edm", "tracker=local", "job.max_steps=2"]
    for others, match in {
        ("job=train_classifier", "model=classifier"): "job=train_classifier cannot use it",
        ("schedule=learned", "model=convnet"): "schedule=learned cannot use it",
    }.items():
        status, _, err = run(*others, *words)
        assert (status, match in err) == (2, True), err
