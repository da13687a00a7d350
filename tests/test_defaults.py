"""Parts are built in one line."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.base import ROOT

from ddpm.data.digits import Digits
from ddpm.data.mnist import MNIST
from ddpm.denoising import training_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.models.convnet import ConvNet
from ddpm.models.resunet import ResUNet
from ddpm.models.unet import UNet
from ddpm.pipeline import Pipeline
from ddpm.runner.config import build
from ddpm.samplers.ddim import DDIM
from ddpm.schedules.linear import linear

GROUPS = (
    *("data", "features", "guidance", "metric", "model", "objective", "sampler", "schedule"),
    "weighting",
)
FILES = [path for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
# Arguments without a default: they depend on the data, or name a file.
NEEDED = {
    "conf/data/folder.yaml": {"root"},
    **{f"conf/data/{name}.yaml": {"path"} for name in ("hf", "parquet", "zip")},
    "conf/data/webdataset.yaml": {"shards"},
    "conf/features/data.yaml": {"data"},
    "conf/guidance/classifier.yaml": {"classifier"},
    "conf/guidance/autoguidance.yaml": {"weak"},
    **{f"conf/weighting/{name}.yaml": {"quantity"} for name in ("eps", "v", "velocity", "x_0")},
    "conf/model/classifier.yaml": {"image_size", "num_classes"},
    "conf/model/resunet.yaml": {"image_size"},
    "conf/model/unet.yaml": {"image_size"},
    "conf/model/dit.yaml": {"image_size"},
    "conf/model/jit.yaml": {"image_size"},
    "conf/schedule/listed.yaml": {"T", "betas"},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_parameters_independent_of_the_data_have_defaults(path):
    """test_conf.py holds these defaults against the files."""
    name = path.relative_to(ROOT).as_posix()
    known = build._parameters(build._find(OmegaConf.load(path)._target_, name))
    assert {n for n, p in known.items() if p.default is p.empty} == NEEDED.get(name, set())


def test_parts_can_be_built_with_their_defaults(data_dir, monkeypatch):
    monkeypatch.setenv("DDPM_DATA", str(data_dir))
    diffusion = GaussianDiffusion(linear())
    assert torch.equal(diffusion.betas, GaussianDiffusion(betas=linear()).betas)
    assert (diffusion.T, MNIST().image_size, MNIST().data_dir) == (1000, 32, Path(data_dir))
    monkeypatch.delenv("DDPM_DATA")
    assert MNIST().data_dir == Path("data")
    with torch.device("meta"):
        x_t, t = torch.zeros(2, 3, 32, 32), torch.zeros(2)
        for network in (UNet(image_size=32), ResUNet(image_size=32), ConvNet()):
            assert network(x_t, t).shape == x_t.shape
    data = Digits(data_dir=data_dir)
    assert len(data) == 1797
    model = ConvNet(channels=1)
    x_0 = diffusion.codec.encode(data.__getitems__(range(4))[0])
    assert training_loss(diffusion, model, x_0).isfinite()
    pipeline = Pipeline(model, diffusion, DDIM(steps=2), (1, 16, 16), guidance=ClassifierFree())
    assert pipeline.sample(2).shape == (2, 1, 16, 16)
