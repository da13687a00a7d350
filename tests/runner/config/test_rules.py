import math

import pytest

from ddpm.errors import InputError
from ddpm.runner.config import checks, derive, rules


def config(key, value):
    node = value
    for name in reversed(key.split(".")):
        node = {name: node}
    return node


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("optimizer.lr", v) for v in (0, -1, math.nan, math.inf, "abc", None, True)),
        *(("job.max_steps", v) for v in (0, -5, 1.5, math.nan, "10k")),
        *(("job.batch_size", v) for v in (0, -1, None, math.inf)),
        ("job.save_every", 0),
        ("job.keep_checkpoints", 1),
        ("job.ema_decay", 1.0),
        ("job.compile", 1),
        ("sampler.steps", 0),
        ("sampler.eta", -0.5),
        ("schedule.T", 0),
        ("seed", -1),
        ("seed", True),
    ],
)
def test_broken_rules_name_the_key_and_the_value(key, value):
    with pytest.raises(InputError) as error:
        rules.check(config(key, value), {})
    shown = "null" if value is None else value
    assert f"{key}={shown}: must be" in str(error.value)


def test_whole_floats_are_integers():
    given = config("job.max_steps", 1e3)
    rules.check(given, {})
    assert given["job"]["max_steps"] == 1000
    assert isinstance(given["job"]["max_steps"], int)


def test_all_broken_rules_are_reported_at_once():
    with pytest.raises(InputError) as error:
        rules.check({"optimizer": {"lr": -1}, "job": {"batch_size": 0}}, {})
    assert len(str(error.value).splitlines()) == 2


def test_a_run_must_end():
    with pytest.raises(InputError, match="one of them must be"):
        checks.check_together({"job": {"max_steps": None, "max_epochs": None}})
    checks.check_together({"job": {"max_steps": None, "max_epochs": 2}})


@pytest.mark.parametrize(
    ("default", "bad", "good"),
    [(64, "abc", 32), (0.1, "x", 1), ([1, 2], 5, [3]), (True, 3, False)],
)
def test_a_key_without_a_rule_keeps_the_type_of_its_default(default, bad, good):
    rules.check({"model": {"new": good}}, {"model.new": default})
    with pytest.raises(InputError, match=f"model.new={bad}: must be"):
        rules.check({"model": {"new": bad}}, {"model.new": default})


def test_contradicting_value_of_a_derived_key_is_refused():
    with pytest.raises(InputError, match=r"model.channels=3: follows data.channels=1"):
        checks.check_together({"model": {"channels": 3}, "data": {"channels": 1}})


def parts(*, conditional, learned_variance=False, **model):
    data = {"conditional": conditional, "num_classes": 10, "channels": 1}
    own = {"num_classes": None, "out_channels": 1} | model
    return {"model": own, "data": data, "objective": {"learned_variance": learned_variance}}


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_network_keys_are_derived_from_data_and_objective(conditional, learned):
    config = parts(conditional=conditional, learned_variance=learned)
    for _ in range(2):  # what has followed once is no contradiction
        derive.model_keys(config)
        assert config["model"]["num_classes"] == (10 if conditional else None)
        assert config["model"]["out_channels"] == (2 if learned else 1)


@pytest.mark.parametrize(
    ("key", "value"), [("num_classes", 5), ("num_classes", 3), ("out_channels", 7)]
)
def test_network_keys_that_contradict_data_or_objective_are_refused(key, value):
    with pytest.raises(InputError, match=f"model.{key}={value}: follows"):
        derive.model_keys(parts(conditional=True, **{key: value}))


def test_labels_are_all_classes_unless_given():
    data = {"conditional": True, "num_classes": 3}
    config = {"data": data, "job": {"labels": None}}
    derive.labels(config)
    assert config["job"]["labels"] == [0, 1, 2]
    config["job"]["labels"] = [2]
    derive.labels(config)
    assert config["job"]["labels"] == [2]
    config = {"data": data | {"conditional": False}, "job": {"labels": None}}
    derive.labels(config)
    assert config["job"]["labels"] is None


DATA = {"data": {"image_size": 48}}


@pytest.mark.parametrize("wanted", [[], [48], [24, 7], [12]])
def test_attention_at_existing_resolutions_is_accepted(wanted):
    config = DATA | {"model": {"widths": [8, 8, 8], "attention_resolutions": wanted}}
    checks.check_attention(config)
    assert not checks.warnings(config)


@pytest.mark.parametrize("wanted", [[32, 16, 8], [6], [0], [96]])
def test_attention_at_a_missing_resolution_is_refused_naming_the_others(wanted):
    config = DATA | {"model": {"widths": [8, 8, 8], "attention_resolutions": wanted}}
    with pytest.raises(InputError, match="48, 24, 12"):
        checks.check_attention(config)
    (line,) = checks.warnings(config)
    assert "48, 24, 12" in line


def test_attention_check_ignores_networks_without_resolutions():
    for config in ({}, DATA, {"model": {"width": 8}} | DATA):
        checks.check_attention(config)
        assert not checks.warnings(config)
