"""job.recompute=true: blocks are recomputed in the backward pass, for less memory."""

import copy

import pytest
import torch
from lightning_fabric import Fabric
from support.runs import assert_equal_state, state_of
from torch import nn

from ddpm.errors import InputError
from ddpm.models.classifier import NoisyClassifier
from ddpm.models.convnet import ConvNet
from ddpm.models.dit import DiT
from ddpm.models.jit import JiT
from ddpm.models.resunet import ResUNet
from ddpm.models.unet import UNet
from ddpm.training.memory import Ledger
from ddpm.training.recompute import blocks, recompute

SIZE = {"channels": 1, "image_size": 16, "num_classes": 3, "widths": [8, 16], "groups": 2}
SIZE |= {"attention_resolutions": [16], "num_heads": 2}
TOKENS = {"channels": 1, "out_channels": 1, "image_size": 16, "num_classes": 3, "size": None}
TOKENS |= {"depth": 2, "width": 16, "num_heads": 2, "patch_size": 4}
NETWORKS = {
    "unet": lambda: UNet(**SIZE, out_channels=1, num_blocks=2),
    "resunet": lambda: ResUNet(**SIZE, out_channels=1, num_res_blocks=1, dropout=0.3),
    "dit": lambda: DiT(**TOKENS),
    "jit": lambda: JiT(**TOKENS, bottleneck=8),
    "classifier": lambda: NoisyClassifier(**SIZE, num_blocks=2),
}


def pair(name):
    """Two equal networks without zero weights; the second one recomputes."""
    torch.manual_seed(0)
    one = NETWORKS[name]()
    with torch.no_grad():
        for weight in one.parameters():
            weight += 0.05 * torch.randn_like(weight)
    other = copy.deepcopy(one)
    recompute(other)
    return one, other


def gradients(net, name, precision="32-true", images=3):
    """Gradients of a loss that depends on every output."""
    torch.manual_seed(1)  # of the images, and of dropout behind them
    x = torch.randn(images, 1, 16, 16)
    t, label = torch.arange(images) * 100, torch.arange(images) % 3
    with Fabric(accelerator="cpu", devices=1, precision=precision).autocast():
        output = net(x, t) if name == "classifier" else net(x, t, label)
    (output.float() * torch.randn(output.shape)).sum().backward()
    return {key: weight.grad for key, weight in net.named_parameters()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_equal_to_the_bit(name, precision):
    one, other = pair(name)
    wanted, found = (gradients(net, name, precision) for net in (one, other))
    assert wanted.keys() == found.keys()
    assert all(grad.abs().max() > 0 for key, grad in wanted.items() if "weight" in key)
    for key, grad in wanted.items():
        assert torch.equal(found[key], grad), key


def test_recomputing_does_not_advance_the_generator():
    """Recomputing dropout restores the generator."""
    one, other = pair("resunet")
    gradients(one, "resunet")
    wanted = torch.rand(3)
    gradients(other, "resunet")
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_tensors_are_saved_for_backward(name):
    peaks = []
    for net in pair(name):
        with Ledger() as ledger:
            gradients(net, name, images=8)
        peaks.append(ledger.peak)
    assert peaks[1] < 0.75 * peaks[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_copies_are_unchanged(name):
    one, other = pair(name)
    assert list(one.state_dict()) == list(other.state_dict())
    wanted, found = gradients(one, name), gradients(copy.deepcopy(other), name)
    assert all(torch.equal(grad, wanted[key]) for key, grad in found.items())
    assert all(weight.grad is None for weight in other.parameters())  # the copy's are its own


def test_blocks_are_the_outermost_of_the_types_that_a_network_names():
    class Net(nn.Module):
        recomputable = (nn.Sequential, nn.Linear)

        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)])

    net = Net()
    assert blocks(net) == list(net.inner)


def test_a_network_without_blocks_is_refused(run, tmp_path):
    options = {"channels": 1, "out_channels": 1, "image_size": 8, "num_classes": None}
    with pytest.raises(InputError, match="ConvNet has no blocks to recompute"):
        blocks(ConvNet(**options, width=4, time_conditioning=True))
    words = ["model=convnet", "hardware=cpu", "tracker=local", "job.recompute=true"]
    status, _, err = run(*words, "output_dir=run")
    assert (status, err.count("\n")) == (2, 1)
    assert "job.recompute=true: ConvNet has no blocks to recompute" in err
    assert not (tmp_path / "run").exists()


RESUNET = ["model=resunet", "model.widths=[8,8]", "model.groups=2", "model.num_res_blocks=1"]
TINY = ["hardware=cpu", "tracker=local", "job.batch_size=8", "job.max_steps=3", "sampler=ddim"]
TINY += ["sampler.steps=2", "job.num_samples=4", "job.log_every=1"]


@pytest.mark.quick(1)
@pytest.mark.parametrize("words", [[*RESUNET, "model.dropout=0.2"], ["job=train_classifier"]])
def test_a_run_gives_the_same_weights_and_previews(words, run, tmp_path):
    words = [*TINY, *words] if "job=train_classifier" not in words else [*TINY[:4], *words]
    words.append("hardware.precision=32-true")
    for name, more in (("one", []), ("two", ["job.recompute=true"])):
        status, out, err = run(*words, *more, f"output_dir={name}")
        assert status == 0, out + err
    assert_equal_state(state_of(tmp_path / "one", 3), state_of(tmp_path / "two", 3))
    for picture in (tmp_path / "one").glob("samples/*.png"):
        assert picture.read_bytes() == (tmp_path / "two/samples" / picture.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_the_gradients_agree(name):
    one, other = pair(name)
    other.compile(backend="aot_eager")
    wanted, found = (gradients(net, name) for net in (one.eval(), other.eval()))
    for key, grad in wanted.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-5, msg=key)
