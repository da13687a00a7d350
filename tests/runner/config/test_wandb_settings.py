"""W&B settings of a run: precedence of their sources, conversions, and refused values.

No test here starts a run; those of trackers/test_wandb_sources.py do.
"""

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.trackers import NODES, knobs
from support.wandb_runs import not_logged_in

from ddpm.errors import InputError
from ddpm.runner.config import catalog, rules
from ddpm.runner.config import wandb_settings as settings
from ddpm.runner.runs.stored_config import is_word
from ddpm.trackers.wandb_client import limits

__all__ = ["not_logged_in"]

VALUES = {
    "entity": "our-lab",
    "project": "pets",
    "group": "study",
    "name": "first",
    "tags": "a, b,,a",
    "notes": "two\nlines",
    "job_type": "ablation",
}


def filled(*words, folders=(), choices=None, **given):
    """The settings from all sources, and the names of those not given by the command line."""
    config = {"tracker": {"wandb": knobs("wandb") | given}}
    overrides = OverridesParser.create().parse_overrides(list(words))
    unset = settings.fill_from_env(config, overrides, folders, choices or {})
    settings.normalise(config)
    rules.check(config, {})
    return config["tracker"]["wandb"], unset


@pytest.fixture
def variables(monkeypatch):
    for key, value in VALUES.items():
        monkeypatch.setenv(settings.VARIABLES[key], value)


def test_defaults_equal_those_of_the_yaml_file():
    shipped = {key: NODES["wandb"][key] for key in settings.VARIABLES}
    assert shipped == settings.DEFAULTS


def test_variables_fill_settings_not_given_elsewhere(variables):
    node, unset = filled()
    assert {key: node[key] for key in VALUES} == VALUES | {"tags": ["a", "b"]}
    assert set(unset) == set(VALUES)


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("how", ["a key", "in braces", "in deeper braces", "with a plus"])
def test_command_line_takes_precedence_over_the_variable(key, how, variables):
    value = ["mine"] if key == "tags" else "mine"
    text = "[mine]" if key == "tags" else "mine"
    word = {
        "a key": f"tracker.wandb.{key}={text}",
        "in braces": f"tracker.wandb={{{key}:{text}}}",
        "in deeper braces": f"tracker={{wandb:{{{key}:{text}}}}}",
        "with a plus": f"++tracker.wandb.{key}={text}",
    }[how]
    node, unset = filled(word, **{key: value})
    assert node[key] == value
    assert set(unset) == set(VALUES) - {key}


@pytest.mark.parametrize("key", VALUES)
def test_typed_default_takes_precedence_over_the_variable(key, variables):
    default = settings.DEFAULTS[key]
    text = {None: "null", "ddpm": "ddpm"}.get(default if default != [] else 0, "[]")
    node, unset = filled(f"tracker.wandb.{key}={text}")
    assert node[key] == default
    assert key not in unset


@pytest.mark.parametrize("key", VALUES)
def test_file_takes_precedence_over_the_variable(key, variables):
    value = ["mine"] if key == "tags" else "mine"
    assert filled(**{key: value})[0][key] == value


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("team/lab.yaml", "# @package _global_\ntracker: {wandb: {project: ddpm}}\n", True),
        (
            "team/lab.yaml",
            "# the lab\n# @package _global_\ntracker: {wandb: {project: ddpm}}",
            True,
        ),
        ("experiment/x.yaml", "# @package _global_\ntracker:\n  wandb:\n    project: ddpm\n", True),
        ("tracker/own.yaml", "# @package tracker.wandb\nproject: ddpm\n", True),
        ("config.yaml", "tracker: {wandb: {project: ddpm}}\n", True),
        (
            "team/lab.yaml",
            "# @package _global_\ntracker: {wandb: {entity: lab}}  # project\n",
            False,
        ),
        ("experiment/x.yaml", "# @package _global_\nproject: ddpm\n", False),
        ("experiment/x.yaml", "project: [", False),
        ("experiment/x.yaml", "project\n", False),
        ("team/others.yaml", "# @package _global_\ntracker: {wandb: {project: ddpm}}\n", False),
    ],
)
def test_default_in_a_file_takes_precedence_over_the_variable(
    path, text, says, tmp_path, variables
):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
    choices = {"team": "lab", "experiment": "x", "tracker": ["wandb", "own"], "model": "unet"}
    node, _ = filled(folders=[tmp_path, catalog.CONF], choices=choices)
    assert node["project"] == ("ddpm" if says else "pets")


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_variables_are_ignored(key, empty, monkeypatch):
    monkeypatch.setenv(settings.VARIABLES[key], empty)
    assert filled()[0][key] == settings.DEFAULTS[key]


def test_tags_of_only_commas_are_empty(monkeypatch):
    monkeypatch.setenv("WANDB_TAGS", ", ,")
    assert filled()[0]["tags"] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_PROJECT", "lab/pets"),
        ("WANDB_PROJECT", "p" * 129),
        *(("WANDB_PROJECT", f"a{character}b") for character in "\\#?%:\n"),
        ("WANDB_ENTITY", "a/b"),
        ("WANDB_ENTITY", "e" * 200),
        ("WANDB_TAGS", "good," + "b" * 65),
        ("WANDB_MODE", "ofline"),
        ("WANDB_MODE", "shared"),
    ],
)
def test_invalid_variables_are_refused_by_name(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as error:
        filled()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{variable}=")
    assert "must be" in line or "at most 64" in line


def test_unused_variables_are_not_checked(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    assert filled("tracker.wandb.project=pets", project="pets")[0]["project"] == "pets"
    settings.fill_from_env({"tracker": {}}, [], [], {})
    settings.fill_from_env({"tracker": {"tensorboard": {"flush_secs": 1}}}, [], [], {})


@pytest.mark.parametrize(("old", "mode"), [("dryrun", "offline"), ("run", "online")])
def test_old_mode_names_of_wandb_are_translated(old, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", old)
    assert limits.wanted_mode(None) == mode
    assert limits.wanted_mode("disabled") == "disabled"


@pytest.mark.parametrize("key", ["notes", "name", "tags"])
def test_a_variable_that_holds_a_secret_is_refused(key, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "tok-77aa90cc12")
    monkeypatch.setenv(settings.VARIABLES[key], "about tok-77aa90cc12")
    with pytest.raises(InputError, match="MY_TOKEN") as error:
        filled()
    assert "77aa" not in str(error.value)


def test_sweep_agent_sets_entity_and_project(variables, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw1")
    words = ["tracker.wandb.project=mine", "tracker.wandb.entity=me", "tracker.wandb.name=n"]
    node, _ = filled(*words, project="mine", entity="me", name="n")
    assert (node["entity"], node["project"], node["name"]) == ("our-lab", "pets", "n")


@pytest.mark.parametrize(
    ("key", "value", "mended"),
    [
        ("tags", [2026], ["2026"]),
        ("tags", [1.5, -3, "a"], ["1.5", "-3", "a"]),
        ("tags", ["a", 1, "1", "a"], ["a", "1"]),
        ("tags", "alone", ["alone"]),
        ("tags", 7, ["7"]),
        ("tags", None, []),
        ("tags", ["t" * 64, "größer ✓"], ["t" * 64, "größer ✓"]),
        ("project", 2026, "2026"),
        ("project", None, "ddpm"),
        ("project", "p" * 128, "p" * 128),
        ("project", "Größe (2) & more", "Größe (2) & more"),
        ("entity", "", None),
        ("entity", 42, "42"),
        *((key, "", None) for key in ("name", "group", "notes", "job_type")),
        *((key, 1.5, "1.5") for key in ("name", "group", "notes", "job_type")),
        *((key, "x" * 1000, "x" * 1000) for key in ("name", "group", "notes", "job_type")),
    ],
)
def test_values_of_other_types_are_converted(key, value, mended):
    assert filled(f"tracker.wandb.{key}=x", **{key: value})[0][key] == mended


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("tags", [tag]) for tag in ("", " ", None, True, ["a"], {"a": 1}, "t" * 65)),
        ("tags", ["good", ""]),
        ("tags", {"a": 1}),
        ("tags", True),
        *(("project", f"a{character}b") for character in "/\\#?%:\n\r\t"),
        *(("project", value) for value in ("", " ", "p" * 129, True, ["a"], " a", "a\x7f")),
        *(("entity", value) for value in ("a/b", "e" * 129, False, ["a"], "a:b")),
        *(("name", value) for value in (True, ["a"], {"a": 1})),
        *((key, False) for key in ("group", "notes", "job_type")),
        ("mode", "ofline"),
        ("mode", True),
        ("artifacts", "some"),
        ("artifacts", None),
    ],
)
def test_invalid_values_are_refused_with_key_and_rule(key, value):
    with pytest.raises(InputError) as error:
        filled(f"tracker.wandb.{key}=x", **{key: value})
    assert str(error.value).startswith(f"tracker.wandb.{key}=")
    assert "must be" in str(error.value)


def test_accepted_values_are_valid_for_the_wandb_client():
    """By the validation of the installed version."""
    import wandb

    def takes(**fields):
        try:
            wandb.Settings(**fields).to_proto()
        except Exception:
            return False
        return True

    texts = ["a", "", " ", "a" * 64, "a" * 65, "a" * 128, "a" * 129, "ü✓", "a b", "a'b", "a,b"]
    texts += [f"a{character}b" for character in "/\\#?%:;&=+@!~*()[]{}<>|^`$\"'"]
    for text in texts:
        assert takes(project=text) or not limits.is_project(text), text
        assert takes(run_tags=[text]) or not limits.are_tags([text]), text
        assert takes(run_id=text) or not is_word(text), text
        assert takes(run_name=limits.shortened(text), run_group=limits.shortened(text)), text
        assert takes(run_tags=limits.tags([text])), text
    for odd in ("a\udcffb", "a\0b", "a\nb", "\u202eb", "a" * 5000):
        name, notes = limits.shortened(odd), limits.cleaned_notes(odd)
        assert takes(run_name=name, run_group=name, run_notes=notes, run_job_type=name), odd
        assert takes(run_tags=limits.tags([odd])), odd


def test_artifact_names_are_valid_for_the_wandb_client():
    from wandb.sdk.artifacts._validators import validate_artifact_name

    names = [
        limits.artifact_name(f"model-{run_id}") for run_id in ("a1b2", "a/b", "é", "ü", "x" * 300)
    ]
    assert names[0] == "model-a1b2"
    assert len(set(names)) == len(names)
    for name in names:
        assert validate_artifact_name(name) == name
        assert name.isascii()


def test_long_texts_are_shortened_and_stay_distinct():
    long = [f"{'a' * 300}{middle}{'b' * 300}" for middle in ("x", "y")]
    short = [limits.shortened(text) for text in long]
    assert short[0] != short[1]
    assert all(
        len(text) == 128 and text.startswith("aaa") and text.endswith("bbb") for text in short
    )
    assert limits.shortened("a" * 128) == "a" * 128
    assert len(limits.shortened("é" * 129)) == 128


@pytest.mark.parametrize(
    ("name", "label", "whole"),
    [("run", "", "run"), ("run", "seed=1", "run seed=1"), ("n" * 120, "s=1", "n" * 120 + " s=1")],
)
def test_labels_are_appended_to_short_names(name, label, whole):
    assert limits.labelled(name, label) == whole


@pytest.mark.parametrize("length", [10, 60, 100, 500])
def test_labelled_long_names_stay_distinct(length):
    made = {limits.labelled("n" * 200, f"{'k' * length}={seed}") for seed in range(20)}
    assert len(made) == 20
    assert max(map(len, made)) <= 128
    assert length > 60 or all(name.endswith(f"{'k' * length}=7") for name in made if "=7" in name)


def stored(**node):
    return {"tracker": {"wandb": {"job_type": None, **node}}}


def test_resumed_run_keeps_settings_not_given_again():
    config = {
        "tracker": {"wandb": knobs("wandb") | {"project": "new", "name": "new", "tags": ["n"]}}
    }
    before = stored(project="old", name="old", tags=["o"], entity=None)
    settings.keep_stored(config, before, ("project", "tags", "entity"))
    node = config["tracker"]["wandb"]
    assert (node["project"], node["name"], node["tags"]) == ("old", "new", ["o"])


@pytest.mark.parametrize(
    "node",
    [{"project": "a/b"}, {"project": None}, {"project": 5}, {"project": "${oc.env:HOME}"}, {}],
)
def test_invalid_stored_settings_are_not_kept(node):
    config = {"tracker": {"wandb": knobs("wandb")}}
    settings.keep_stored(config, stored(**node), ("project",))
    assert config["tracker"]["wandb"]["project"] == "ddpm"
    for other in ({}, {"tracker": None}, {"tracker": {"wandb": 3}}):
        settings.keep_stored(config, other, ("project",))


def test_runs_of_older_versions_still_use_their_variables(variables):
    config = {"tracker": {"wandb": {"entity": None, "project": "p", "group": "g", "name": None}}}
    settings.normalise(config)
    node = config["tracker"]["wandb"]
    assert (node["entity"], node["group"], node["notes"]) == ("our-lab", "g", "two\nlines")
    assert (node["project"], node["name"], node["tags"], node["job_type"]) == ("p", None, [], None)
    settings.keep_stored(now := stored(project="ddpm", name="x"), config, ("project", "name"))
    assert now["tracker"]["wandb"]["project"] == "p"


def test_yaml_comments_name_each_variable():
    text = (catalog.CONF / "tracker" / "wandb.yaml").read_text()
    lines = {line.split(":")[0]: line for line in text.splitlines() if ":" in line}
    assert set(settings.VARIABLES) <= set(yaml.safe_load(text))
    for key, variable in settings.VARIABLES.items():
        assert variable in lines[key]
