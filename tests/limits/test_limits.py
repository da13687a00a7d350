"""The limits of a key are stated once: the constructor and the command line answer alike."""

import math

import pytest

from ddpm.data.digits import Digits
from ddpm.errors import InputError
from ddpm.limits.parts import LIMITS, check_limits
from ddpm.limits.rule import integer, number
from ddpm.models.resunet import ResUNet
from ddpm.models.unet import UNet
from ddpm.runner.config import catalog, rules
from ddpm.runner.config.build import build
from ddpm.runner.safe_io.tree import set_path

GROUPS = ("augment", "features", "objective", "sampler", "schedule", "timesteps", "weighting")
NODES = {(g, o): catalog.node(g, o) for g in GROUPS for o in catalog.groups()[g]}
NODES["guidance", "classifier_free"] = catalog.node("guidance", "classifier_free")
NODES |= {(f"metric.{o}", o): catalog.node("metric", o) for o in catalog.groups()["metric"]}
# Booleans, paths and numbers without a limit need no check.
LIMITED = [
    (group, option, key)
    for (group, option), node in NODES.items()
    for key in node
    if key in LIMITS[group]
    and LIMITS[group][key].type is not bool
    and key not in ("end", "weights")
]


def at(key, value):
    config = {}
    set_path(config, key, value)
    return config


@pytest.mark.parametrize(("group", "option", "key"), LIMITED)
def test_constructor_and_command_line_refuse_alike(group, option, key):
    bad = [-1, -2] if LIMITS[group][key].type is list else -1
    node = NODES[group, option] | {key: bad}
    with pytest.raises(InputError, match=f"^{group}.{key}=") as built:
        build(node, group)
    with pytest.raises(InputError) as checked:
        rules.check(at(f"{group}.{key}", bad), {})
    assert str(built.value) == str(checked.value)


@pytest.mark.parametrize(
    ("part", "arguments", "key"),
    [
        (Digits, {"background": 256}, "data.background=256"),
        (Digits, {"image_size": (8, 0)}, r"data.image_size=\(8, 0\)"),
        (Digits, {"resize_mode": "squash"}, "data.resize_mode=squash"),
        (Digits, {"holdout": 1}, "data.holdout=1"),
        (UNet, {"image_size": 8, "num_blocks": 0}, "model.num_blocks=0"),
        (UNet, {"image_size": 8, "widths": []}, r"model.widths=\[\]"),
        (ResUNet, {"image_size": 64, "dropout": 1.0}, "model.dropout=1.0"),
        (ResUNet, {"image_size": 64, "norm_eps": 0}, "model.norm_eps=0"),
    ],
)
def test_networks_and_data_sets_ask_too(part, arguments, key):
    with pytest.raises(InputError, match=f"^{key}: must be"):
        part(**arguments)


def test_steps_of_the_bound_are_a_number_or_all():
    for steps in ("all", 2):
        rules.check(at("metric.bound.steps", steps), catalog.defaults({"metric": ["bound"]}))
    for steps in ("every", 1, True):
        with pytest.raises(InputError, match="must be a whole number from 2, or all"):
            check_limits("metric.bound", steps=steps)


def test_a_part_may_state_a_limit_of_its_own():
    assert number("a number", lambda x: True).check("sampler.own", 3) == 3.0
    with pytest.raises(InputError, match=r"^sampler\.own=4: must be a whole number from 1 to 3\.$"):
        integer(1, 3).check("sampler.own", 4)
    with pytest.raises(InputError, match="above 2"):
        number("a number above 2", lambda x: x > 2).check("sampler.own", math.nan)


def test_an_option_is_answered_by_the_nearest_one():
    with pytest.raises(InputError, match="Did you mean 'karras'"):
        check_limits("sampler", spacing="karas")
