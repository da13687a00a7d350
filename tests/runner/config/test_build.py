import functools

import pytest
import torch

from ddpm.errors import InputError
from ddpm.runner.config.build import build, check_targets
from ddpm.runner.config.catalog import targets

HOSTILE = [
    "os.system", "os._exit", "builtins.eval", "builtins.exec", "subprocess.run", "pickle.loads",
    "torch.load", "torch.hub.load", "shutil.rmtree", "ddpm.runner.config.build.hydra.utils.call",
    "torch.optim.adam.os.system", "logging.os.system", "hydra.utils.get_method", "ddpm.cli.main",
    "DDPM.models.unet.UNet", "ddpm.models.unet.UNet.__init__", "", None, 5, ["os.system"],
]  # fmt: skip


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"a": [{"b": n}]}], ids=["top", "nested"])
def test_targets_outside_of_conf_are_refused(target, wrap):
    with pytest.raises(InputError, match="_target_"):
        build(wrap({"_target_": target}), "model")


@pytest.mark.parametrize("directive", ["_args_", "_recursive_", "_convert_"])
def test_other_directives_are_refused(directive):
    with pytest.raises(InputError, match=directive):
        check_targets({"_target_": "torch.optim.Adam", directive: ["x"]})


def test_nodes_in_lists_are_checked_before_anything_is_built(monkeypatch):
    monkeypatch.setattr("hydra.utils.instantiate", lambda *_, **__: pytest.fail("something is"))
    node = {"_target_": "ddpm.samplers.ddim.DDIM", "steps": 5, "eta": 0.0}
    with pytest.raises(InputError, match=r"sampler\[1\]\[0\].stepz: no such key"):
        build([node, [node | {"stepz": 1}]], "sampler")


def test_control_characters_in_messages_of_constructors_are_escaped():
    node = {"_target_": "ddpm.samplers.ddim.DDIM", "steps": "\x1b[2K\ndone", "eta": 0.0}
    with pytest.raises(InputError) as refusal:
        build(node, "sampler")
    assert str(refusal.value).isprintable()


def test_allowed_targets_are_those_of_conf():
    names = targets()
    assert {"ddpm.models.unet.UNet", "torch.optim.Adam", "ddpm.schedules.linear.linear"} <= names
    assert all(name.startswith(("ddpm.", "torch.optim.")) for name in names)


def test_nearest_target_is_suggested_for_a_typo():
    with pytest.raises(InputError, match=r"Did you mean 'torch.optim.AdamW'"):
        build({"_target_": "torch.optim.AdamWW"}, "optimizer")


def test_unknown_and_missing_arguments_are_named():
    node = {"_target_": "ddpm.samplers.ddim.DDIM", "steps": 5, "eta": 0.0}
    assert build(node).steps == 5
    with pytest.raises(
        InputError, match=r"sampler.stepz: no such key. Did you mean 'sampler.steps'"
    ):
        build(node | {"stepz": 1}, "sampler")
    with pytest.raises(InputError, match=r"guidance.classifier: must be set"):
        build({"_target_": "ddpm.guidance.classifier.from_checkpoint", "scale": 1.0}, "guidance")
    with pytest.raises(InputError, match=r"model.channels: must be set"):  # it has a default, too
        build({"_target_": "ddpm.models.unet.UNet", "out_channels": 1, "image_size": 8}, "model")


def test_lists_are_passed_as_plain_lists_and_partials_unwrapped():
    made = build({"_target_": "torch.optim.Adam", "_partial_": True, "betas": [0.9, 0.99]})
    assert type(made) is functools.partial
    optimizer = made([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["betas"] in ([0.9, 0.99], (0.9, 0.99))
    assert type(optimizer.defaults["betas"]) in (list, tuple)
