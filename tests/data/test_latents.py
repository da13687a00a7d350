"""Training on the latents of an autoencoder, as docs/data.md explains it."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.base import ROOT
from support.runs import go, metrics_of

import ddpm

SECTION = (ROOT / "docs" / "data.md").read_text().partition("\n## Latents of an autoencoder\n")[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION.partition("\n## ")[0], re.M | re.S)
NETWORKS = {
    "dit": [
        *("model=dit", "model.patch_size=2", "model.depth=1"),
        *("model.width=16", "model.num_heads=2"),
    ],
    "unet": ["model=unet", "model.widths=[8,16]", "model.groups=2", "model.num_heads=1"],
}
LATENTS = ["data=folder", "data.root=latents", "data.channels=4", "data.image_size=32"]
LATENTS += ["data.value_range=[-4,4]", "data.holdout=0.25"]
EDM = ["objective=edm", "objective.sigma_data=data", "weighting=edm", "timesteps=log_normal"]
QUICK = ["job.max_steps=5", "job.batch_size=4", "job.num_samples=4", "sampler.steps=3"]
QUICK += ["hardware=cpu", "tracker=local", "job.log_every=1"]


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS)
def test_latents_are_trained_on_drawn_and_decoded(model, run, tmp_path):
    smooth = torch.randn(24, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = 1.7 * F.interpolate(smooth, 32, mode="bicubic")
    coder = SimpleNamespace(encode=lambda x: x, decode=lambda x: x)
    names = {"autoencoder": coder, "pictures": smooth}
    writing, decoding = BLOCKS
    exec(writing, names)
    assert np.load(tmp_path / "latents" / "0000000.npy").shape == (32, 32, 4)

    out = go(run, *LATENTS, *NETWORKS[model], *EDM, "sampler=heun", *QUICK, "output_dir=run")
    sigma = float(re.search(r"sigma_data=([\d.]+)", out)[1])
    assert sigma == pytest.approx(0.25, abs=0.03)  # a standard deviation of 1 in a range of +-4
    assert len(metrics_of(tmp_path / "run")) == 5
    words = ["checkpoint=run", "hardware=cpu", "tracker=local"]
    go(run, "job=sample", *words, "job.num_samples=4", "output_dir=drawn")
    exec(decoding, names)
    assert names["decoded"].shape == (4, 4, 32, 32)
    assert names["latents"].dtype == torch.float32
    assert names["latents"].abs().max() <= 4
    assert names["latents"].std() > 0.1
    images = ddpm.Pipeline.from_checkpoint(tmp_path / "run").sample(4)
    torch.testing.assert_close(images.as_subclass(torch.Tensor), names["latents"])

    go(run, "job=evaluate", *words, "metric=[loss]", "metric.loss.num_images=4", "output_dir=score")
    assert not (tmp_path / "score" / "samples").exists()  # no metric looks at samples
    for metric in ("kd", "copies", "bound"):
        status, _, err = run("job=evaluate", *words, f"metric=[{metric}]")
        assert (status, "data.value_range=[-4, 4]" in err) == (2, True), err
    status, _, err = run(*LATENTS, *NETWORKS[model], *QUICK, "job.evaluate_every=5")
    assert (status, "data.value_range=[-4, 4]" in err) == (2, True), err
