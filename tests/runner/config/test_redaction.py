"""No secret is written to a file; values of environment variables are stored by name."""

import zipfile

import pytest
import wandb
import yaml
from omegaconf import OmegaConf
from PIL import Image
from support.base import TINY
from support.mistakes import assert_answered, contents
from support.wandb_reader import records, run_files

from ddpm.errors import InputError
from ddpm.runner.config import catalog, redaction
from ddpm.runner.runs.stored_config import check_version

KEY = "4b1d" * 10
TOKEN = "tok-77aa90cc12"
MARKER = "pictures-of-project-x31"
PICTURES = ["data=folder", "data.root=${oc.env:MARKER}", "data.image_size=8", "data.channels=1"]
STORE = "store-of-team-q82"


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """An environment with secrets, and a file of settings."""
    for name, value in {"WANDB_API_KEY": KEY, "MY_TOKEN": TOKEN, "MARKER": MARKER}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STORE", STORE)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "lab.yaml").write_text(
        "# @package _global_\n"
        "data_dir: ${oc.env:STORE,data}\n"
        "tracker: {wandb: {mode: offline}, tensorboard: {flush_secs: 1}}\n"
    )
    (tmp_path / MARKER).mkdir()
    for grey in range(8):
        Image.new("L", (8, 8), 30 * grey).save(tmp_path / MARKER / f"{grey}.png")
    return tmp_path


@pytest.fixture
def private_run(run, secrets):
    """A run with all trackers, whose image folder is given by environment variables."""
    wandb.teardown()  # a service of this environment, and not one that other tests have used
    status, out, err = run(
        *(word for word in TINY if word != "tracker=local"),
        *("--config-dir", "mine", "experiment=lab", "tracker=[wandb,tensorboard]", *PICTURES),
        "output_dir=run",
    )
    assert status == 0, err
    assert run_files(secrets / "run"), out + err
    assert_nowhere(secrets, out, err)
    return secrets / "run"


def assert_nowhere(folder, *texts):
    """None of the values in any byte of any file: archives, W&B's records and homes, too."""
    values = [value.encode() for value in (KEY, TOKEN, MARKER, STORE)]
    blobs = {str(i): text.encode() for i, text in enumerate(texts)}
    for path in (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        blobs[str(path)] = path.read_bytes()
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                blobs[f"{path} inside"] = b"".join(map(archive.read, archive.namelist()))
        if path.suffix == ".wandb":
            blobs[f"{path} inside"] = b"".join(r.SerializeToString() for r in records(path))
    assert len(blobs) > 10
    assert {name: [v for v in values if v in blob] for name, blob in blobs.items()} == {
        name: [] for name in blobs
    }


def test_variable_names_are_stored_instead_of_their_values(private_run):
    written = yaml.safe_load((private_run / "config.yaml").read_text())
    assert written["data"]["root"] == "${oc.env:MARKER}"
    assert written["data_dir"] == written["data"]["data_dir"] == "${oc.env:STORE,data}"
    assert "data.root=${oc.env:MARKER}" in written["overrides"]
    assert written["version"] == 1


@pytest.mark.slow
def test_private_run_resumes_only_if_its_variable_is_set(private_run, run, monkeypatch):
    status, out, err = run(f"resume={private_run}", "job.max_steps=8")
    assert status == 0, err
    assert_nowhere(private_run.parent, out, err)
    written = yaml.safe_load((private_run / "config.yaml").read_text())
    assert written["data"]["root"] == "${oc.env:MARKER}"
    monkeypatch.delenv("MARKER")
    before = contents(private_run)
    status, _, err = run(f"resume={private_run}", "job.max_steps=10")
    assert_answered(status, err, "data.root=${oc.env:MARKER}", "MARKER is not set")
    assert contents(private_run) == before


@pytest.mark.slow
def test_a_private_run_can_be_sampled_from(private_run, run):
    status, out, err = run(
        *("job=sample", f"checkpoint={private_run}", "job.num_samples=2", "hardware=cpu"),
        *("tracker=wandb", "sampler.steps=2", "output_dir=drawn"),
    )
    assert status == 0, err
    assert_nowhere(private_run.parent, out, err)


@pytest.mark.parametrize(
    "words",
    [
        [f"+wandb_api_key={TOKEN}"],
        [f"wandb.password={TOKEN}"],
        [f"++tracker.wandb.api-key={TOKEN}"],
        [f"+tracker.wandb={{api_key:{TOKEN}}}"],
        [f"+hydra.job.env_set.WANDB_API_KEY={TOKEN}"],
        [f"--token={TOKEN}"],
        ["--api-key", TOKEN],
        [f"tracker.wandb.notes=about {TOKEN}"],
        [TOKEN],
        [f"+{TOKEN}=1"],
        ["tracker.wandb.notes=${oc.env:MY_TOKEN}"],
        ['tracker.wandb.notes=${oc.env:"MY_TOKEN"}'],
        ["data_dir=${oc.env:NOPE,${oc.env:MY_TOKEN}}"],
    ],
    ids=lambda words: " ".join(words).replace(TOKEN, "VALUE"),
)
@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(words, sweep, run, secrets):
    before = contents(secrets)
    status, out, err = run(*(["-m", "seed=1,2"] if sweep else []), "tracker=wandb", *words)
    assert_answered(status, err, "WANDB_API_KEY", "wandb login")
    assert TOKEN not in out + err
    assert contents(secrets) == before


@pytest.mark.quick(4)
@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tracker: {wandb: {api_key: abcdefgh1234}}", "tracker.wandb.api_key"),
        ("hf_token: abcdefgh1234", "hf_token"),
        (f"tracker: {{wandb: {{notes: '{TOKEN}'}}}}", "tracker.wandb.notes"),
        ("tracker: {wandb: {notes: '${oc.env:MY_TOKEN}'}}", "tracker.wandb.notes"),
    ],
    ids=["api_key", "token", "value", "variable"],
)
def test_a_secret_in_a_file_is_refused_and_not_repeated(text, key, sweep, run, secrets):
    (secrets / "mine" / "experiment" / "lab.yaml").write_text(f"# @package _global_\n{text}\n")
    before = contents(secrets)
    first = ["-m", "seed=1,2"] if sweep else []
    status, out, err = run(*first, "--config-dir=mine", "experiment=lab")
    assert_answered(status, err, f"{key}: ", "WANDB_API_KEY")
    assert TOKEN not in out + err
    assert "abcdefgh1234" not in out + err
    assert contents(secrets) == before


def test_messages_name_the_variable_and_not_its_value(run, secrets):
    status, out, err = run("seed=${oc.env:MARKER}")
    assert_answered(status, err, "seed=${oc.env:MARKER}: must be")
    assert MARKER not in out + err


def test_sweep_jobs_store_references_not_values(run, secrets):
    status, out, err = run("-m", *TINY, *PICTURES, "job.max_steps=2", "job.batch_size=4,-1")
    assert status == 1, "one of them failed"
    assert_nowhere(secrets, out, err)
    (good,) = (secrets / "outputs" / "sweep").rglob("0-*/config.yaml")
    assert yaml.safe_load(good.read_text())["data"]["root"] == "${oc.env:MARKER}"


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apikey", "WANDB_API_KEY", "key", "hf_token", "my-secret", "password"),
        *("PGPASSWORD", "SSHPASS", "MYSQL_PWD", "authToken", "accessToken", "secretkey", "tokens"),
        *("passphrase", "api-keys", "GITHUB_PAT", "bearer", "DATABASE_URL", "SLACK_WEBHOOK"),
    ],
)
def test_secret_names_are_recognised(name):
    assert redaction.is_secret(name)


def test_no_config_key_is_named_like_a_secret():
    names = {part for key in catalog.keys() for part in key.name.split(".")}  # noqa: SIM118
    names |= {"keep_checkpoints", "monkey", "keyboard", "path", "author", *catalog.groups()}
    assert [name for name in names if redaction.is_secret(name)] == []


def test_values_from_the_environment_are_found_through_references(monkeypatch):
    monkeypatch.setenv("PLACE", "/far/away")
    monkeypatch.setenv("NUMBER", "5")
    monkeypatch.setenv("DDPM_DATA", "/far/away")
    cfg = OmegaConf.create(
        {
            "a": "${oc.env:PLACE}",
            "b": {"c": "${a}/x", "list": ["y", "${b.c}"]},
            "n": "${oc.decode:${oc.env:NUMBER}}",
            "set": "${oc.env:PLACE,/here}",
            "unset": "${oc.env:NOPE,/here}",
            "own": "/far/away",
            "data_dir": "${oc.env:DDPM_DATA,data}",
        }
    )
    found = redaction.env_values(cfg)
    assert {h.path: h.text for h in found} == {
        ("a",): "${oc.env:PLACE}",
        ("b", "c"): "${oc.env:PLACE}/x",
        ("b", "list", 1): "${oc.env:PLACE}/x",
        ("set",): "${oc.env:PLACE,/here}",
    }
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert plain["a"] == "/far/away", "the resolver is put back"
    masked = redaction.mask_env(plain, found)
    assert masked["b"] == {"c": "${oc.env:PLACE}/x", "list": ["y", "${oc.env:PLACE}/x"]}
    assert (masked["n"], masked["own"], plain["a"]) == (5, "/far/away", "/far/away")
    assert redaction.unmask_env(masked, found)[0] == plain
    with pytest.raises(InputError, match=r"b\.c=.*: a stored configuration"):
        redaction.unmask_env({"b": masked["b"]})


def test_list_from_a_single_variable_is_refused(monkeypatch):
    monkeypatch.setenv("TAGS", "[a,b]")
    with pytest.raises(InputError, match=r"tags=\$\{oc\.env:TAGS\}: "):
        redaction.env_values(OmegaConf.create({"tags": "${oc.decode:${oc.env:TAGS}}"}))


@pytest.mark.parametrize("text", ["${foo.bar}", "${oc.decode:x}", "${oc.env:${x}}", "$HOME", "$"])
def test_other_references_in_a_stored_config_are_not_resolved(text):
    assert redaction.unmask_env({"a": [text]})[0] == {"a": [text]}


def test_stored_config_cannot_read_a_secret_variable(secrets):
    with pytest.raises(InputError, match=r"a\.b=\$\{oc\.env:MY_TOKEN\}: MY_TOKEN is named like"):
        redaction.unmask_env({"a": {"b": "${oc.env:MY_TOKEN}"}})


def test_version_of_a_stored_config_is_checked():
    check_version({}, "resume=run")
    check_version({"version": 1}, "resume=run")
    with pytest.raises(InputError, match=r"^resume=run: written by a newer version .*\(2, here 1"):
        check_version({"version": 2}, "resume=run")
    with pytest.raises(InputError, match="not a whole number"):
        check_version({"version": "1"}, "resume=run")
