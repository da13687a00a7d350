"""Keys that hold paths and names: any folder name can be typed, and printed commands can be
pasted."""

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.base import TINY

from ddpm.errors import InputError
from ddpm.runner.config import base_run, overrides, paths
from ddpm.runner.terminal import shell

# Names of folders that shells, Hydra or YAML would read as something else.
NASTY = [
    *(
        "a b",
        " a",
        "a ",
        "a=b",
        "c=1",
        "(a)",
        "[a]",
        "{a}",
        "{a:1}",
        "a,b",
        "a;b",
        "a&b",
        "!a",
        "#a",
    ),
    *("~a", "~", "a:b", "$a", "$(a)", "`a`", "${a}", "${oc.env:HOME}", "\\${a}", "\\", "a\\", "é"),
    *("日本", "'", '"', '"a"', "'a'", "it's", 'a\\"b', "a\nb", "a\tb", "\x1b[31m", "*", "?", "%"),
    *("null", "true", "False", "7", "007", "1e3", "7.5", "nan", "-a", "+a", "@", "|", ">", "???"),
]
T = ("tracker=local", "model=convnet", "model.width=8", "job.max_steps=4", "job.batch_size=4")
T += ("job.log_every=1", "job.num_samples=1", "sampler.steps=1", "job.warmup_steps=1")


def pasted(lines: list[str]) -> list[list[str]]:
    """The words that `python` is called with when bash reads these lines."""
    script = "python() { printf '%s\\0' \"$@\"; printf '\\1'; }\n" + "\n".join(lines)
    out = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    calls = os.fsdecode(out).split("\1")[:-1]
    return [call.split("\0")[:-1] for call in calls]


def read(word: str) -> tuple[str, object]:
    """Key and value of a word, after Hydra's parser and OmegaConf's references."""
    override = overrides.parse(word)
    assert override is not None, word
    node = OmegaConf.create({"value": override.value()})
    return override.key_or_group, OmegaConf.to_container(node, resolve=True)["value"]


def test_printed_commands_can_be_pasted_into_bash():
    lines = [shell.command("job=sample", shell.word("checkpoint", name)) for name in NASTY]
    assert all(line.isprintable() for line in lines)
    for name, (script, job, word) in zip(NASTY, pasted(lines), strict=True):
        assert (script, job) == ("run.py", "job=sample")
        key, value = read(word)
        assert key == "checkpoint"
        assert os.path.normpath(os.path.expanduser(value)) == os.path.normpath(name)


@pytest.mark.parametrize("name", NASTY)
def test_quoted_text_is_read_back_unchanged(name):
    if name != "???":  # means "missing" in every kind of quotes
        assert read(f"data.root={shell.quoted(name)}") == ("data.root", name)


def test_bytes_that_are_not_utf_8_are_kept_by_the_shell():
    name = os.fsdecode(b"a\xe9b")
    assert pasted([shell.command(shell.word("resume", name))])[0][1:] == [f'resume="{name}"']


@pytest.mark.parametrize(
    "word", ["output_dir=runs/c=1", "resume=(a)", "data.root={a", "sweep=a~b", "output_dir=é"]
)
def test_message_shows_the_correct_quoting(run, word):
    status, _, err = run(word)
    assert status == 2
    spelled = err.splitlines()[-1].strip()
    key, _, value = word.partition("=")
    assert read(pasted([f"python run.py {spelled}"])[0][1]) == (key, value)
    assert len(err.splitlines()) <= 5


def test_value_with_a_comma_is_refused_with_the_correct_quoting(run):
    status, _, err = run("output_dir=a,b")
    assert status == 2
    assert "-m" in err
    assert """'output_dir="a,b"'""" in err


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        *(("7", "7"), ("007", "007"), ("1e3", "1e3"), ("1_0", "1_0"), ("7.50", "7.50")),
        *(("true", "true"), ("False", "False"), ("nan", "nan"), ("'5'", "5"), ('"a=b"', "a=b")),
    ],
)
@pytest.mark.parametrize("key", ["output_dir", "resume", "checkpoint", "sweep", "experiment"])
def test_numbers_and_booleans_are_texts_for_path_and_name_keys(key, typed, value):
    word = overrides.with_text_values(f"{key}={typed}", (*paths.KEYS, "experiment"))
    assert read(word) == (key, value)


def test_numbers_and_booleans_in_lists_of_paths_are_texts():
    keys = paths.KEYS
    assert overrides.with_text_values("runs=[1, a,true]", keys) == 'runs=["1", a,"true"]'
    assert overrides.with_text_values("checkpoint=1,a", keys) == 'checkpoint="1",a'
    for word in ("seed=5", "output_dir=null", "checkpoint=[1,'a,b']", "~output_dir", "a=(", "seed"):
        assert overrides.with_text_values(word, keys) == word


@pytest.mark.parametrize("value", [7, 7.5, True, "x", "a=b"])
@pytest.mark.parametrize("key", sorted({*paths.PATHS, *paths.NAMES} - {"sweep"}))
def test_values_of_all_path_keys_become_text(key, value):
    *parents, name = key.split(".")
    config = node = {}
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    paths.normalise(config)
    assert node[name] == str(value).replace("True", "true")


@pytest.mark.parametrize("value", [["a"], {"a": None}, "", "a\0b", [1]])
@pytest.mark.parametrize("key", ["output_dir", "resume", "checkpoint", "sweep"])
def test_invalid_paths_are_refused(key, value):
    with pytest.raises(InputError, match=f"^{key}="):
        paths.normalise({key: value})


@pytest.mark.parametrize(
    ("value", "expected"),
    [([1, "~", True], ["1", "HOME", "true"]), ("~/a", "HOME/a"), (5, "5"), (None, None)],
)
def test_lists_of_paths_are_normalised(value, expected, monkeypatch):
    monkeypatch.setenv("HOME", "HOME")
    config = {"runs": value, "job": {"images": value}}
    paths.normalise(config)
    assert config == {"runs": expected, "job": {"images": expected}}


@pytest.mark.parametrize(
    "words",
    [
        *(["resume=123"], ["resume=true"], ["checkpoint=7", "job=sample"], ["resume=7.5"]),
        *(["job=status", "sweep=1"], ["job=status", "sweep=true"], ["job=report", "runs=5"]),
        *(["job=report", "runs=[a]", "output_dir=7"], ["job=status", "sweep=[a,b]"]),
        *(["job=status", "runs=[]"], ["resume=[a]"], ["data=folder", "data.root=5"]),
        *(["resume=auto", "output_dir=[5]"], ["output_dir={a:1}"], ["-m", "sweep=a,b", "seed=1,2"]),
    ],
    ids=" ".join,
)
def test_invalid_path_values_are_refused_without_traceback(run, words, tmp_path):
    status, out, err = run("tracker=local", *words) if "job=" not in words[0] else run(*words)
    assert status == 2, out + err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 3
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]


@pytest.mark.slow
def test_tilde_is_the_home_directory_for_every_path_key(run, tmp_path, monkeypatch):
    """Trained, resumed, inherited from and reported on by `~`, with a `=` in the folder's name."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    status, out, err = run(*T, 'output_dir="~/c=1"', "sampler=ddim")
    assert status == 0, out + err
    assert (home / "c=1" / "config.yaml").is_file()
    assert not (tmp_path / "~").exists()
    line = next(line for line in out.splitlines() if line.startswith("sample "))
    word = pasted([line.removeprefix("sample").strip()])[0][2]
    assert read(word) == ("checkpoint", str(home / "c=1"))
    status, out, err = run(
        job := "job=sample", word, "job.num_samples=1", "sampler.eta=1", "output_dir=s"
    )
    assert status == 0, job + out + err
    status, out, err = run('resume="~/c=1"', "job.max_steps=5")
    assert status == 0, out + err
    status, out, err = run("job=status", 'runs=["~/c=1"]')
    assert status == 0, out + err
    assert "5/5" in out


@pytest.mark.slow
def test_sweep_name_may_be_a_number_and_its_folder_in_the_home_directory(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "own" / "team").mkdir(parents=True)
    text = '# @package _global_\nhydra: {sweep: {dir: "~/sweeps/${sweep}"}}\n'
    (tmp_path / "own" / "team" / "lab.yaml").write_text(text)
    lab = ("--config-dir", "own", "team=lab")
    status, out, err = run("-m", *lab, *T, "sweep=7.50", "seed=1")
    assert status == 0, out + err
    assert (tmp_path / "home" / "sweeps" / "7.50").is_dir()
    assert not (tmp_path / "~").exists()
    status, out, err = run(*lab, "job=status", "sweep=7.50")
    assert status == 0, out + err
    assert "1 done" in out


@pytest.mark.parametrize(
    "word",
    [
        *('resume="runs/c=1"', "resume='runs/c=1'", 'resume="${oc.env:R}/c=1"'),
        *('checkpoint="runs/c=1"', 'checkpoint="${oc.env:R}/c=1"', "resume=${where}/c\\=1"),
    ],
)
def test_parts_are_inherited_with_any_quoting_of_the_run(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("R", str(tmp_path / "runs"))
    folder = tmp_path / "runs" / "c=1"
    folder.mkdir(parents=True)
    choices = {"job": "train_classifier", "model": "classifier", "data": "mnist"}
    node = {"choices": choices, "model": {}, "data": {}}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(node)))
    found = base_run.inherited([word, "+where=runs"])
    assert {"model=classifier", "data=mnist"} <= set(found)
    assert ("job=train_classifier" in found) == word.startswith("resume")


def test_file_name_is_valid_and_short():
    for text in [*NASTY, "x" * 300, "é" * 300, "../a", ".hidden", "a/b", ""]:
        name = paths.file_name(text)
        assert name == Path(name).name
        assert not name.startswith(".")
        assert len(name.encode()) <= 255 - 60
    assert paths.file_name("0-unet-digits") == "0-unet-digits"


def test_missing_working_folder_and_dangling_links_are_reported(run, tmp_path, monkeypatch):
    (tmp_path / "outputs").symlink_to(tmp_path / "nothing")
    for words in ([*TINY], ["-m", *TINY, "seed=1,2"], [*TINY, "output_dir=outputs/a"]):
        status, _, err = run(*words)
        assert status == 2
        assert str(tmp_path / "nothing") in err
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    status, _, err = run(*TINY)
    assert status == 2
    assert "folder" in err
    assert len(err.splitlines()) == 1
