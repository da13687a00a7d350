"""`checkpoint=wandb:...`: checkpoints uploaded by one run and used by another."""

import json

import pytest
import torch
import yaml
from PIL import Image
from support.base import TINY
from support.mistakes import assert_answered
from support.wandb_artifact_server import StoredArtifact
from support.wandb_runs import forget, not_logged_in, server

from ddpm.errors import InputError
from ddpm.trackers.wandb_client import download, reference

__all__ = ["not_logged_in", "server"]

TRAIN = [*(word for word in TINY if word != "tracker=local"), "output_dir=run", "team=example_lab"]
SAMPLE = ["job=sample", "hardware=cpu", "job.num_samples=2", "sampler.steps=2"]


@pytest.fixture(autouse=True)
def no_fetched_artifacts():
    reference._fetched.cache_clear()


def config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.slow
def test_uploaded_model_is_sampled_from_and_trained_on_by_its_name(run, server, tmp_path):
    status, out, err = run(*TRAIN)
    assert status == 0, err
    run_id = config(tmp_path / "run")["run_id"]
    assert f"{server.url}/example-lab/diffusion/runs/{run_id}" in out
    model, samples = server.artifacts
    assert (model.name, list(model.files)) == (f"model-{run_id}", ["step-0000006.pt"])
    assert list(samples.files) == ["step-000006.png"]
    settings = server.runs[run_id].settings
    assert settings["tags"][-1] == "shared"
    code = config(tmp_path / "run")["code"]
    if code is not None:  # None in a copy without git
        assert settings["commit"] == code["commit"]

    name = f"example-lab/diffusion/model-{run_id}"
    fresh_process()
    status, out, err = run(
        *(*SAMPLE, "tracker=wandb", f"checkpoint=wandb:{name}:best", "output_dir=drawn")
    )
    assert status == 0, err
    assert "download example-lab/diffusion/model-" in out
    drawn = config(tmp_path / "drawn")
    about = {"artifact": f"{name}:v0", "digest": model.digest}
    assert drawn["source"] == {"run_id": run_id, "step": 6, **about}
    assert drawn["choices"]["model"] == "convnet"
    assert server.runs[drawn["run_id"]].used == [model.id], "lineage"
    fresh_process()
    found = reference.find(f"wandb:{name}:v0")
    assert (str(found.path), found.about) == (drawn["checkpoint"], about)

    words = [word for word in TRAIN if not word.startswith(("model", "output_dir"))]
    words += [f"init_from=wandb:{name}:best", "job.max_steps=1", "output_dir=tuned"]
    status, out, err = run(*words, "tracker=wandb", "tracker.wandb.artifacts=none")
    assert status == 0, err
    tuned = config(tmp_path / "tuned")
    assert tuned["init_source"] == {"file": drawn["checkpoint"], **drawn["source"]}
    assert server.runs[tuned["run_id"]].used == [model.id]
    assert len([path for path in server.asked if path.startswith("GET /artifactsV2")]) == 1
    status, _, err = run(*SAMPLE, "tracker=local", "checkpoint=run", "output_dir=local")
    assert status == 0, err
    one, other = (Image.open(tmp_path / folder / "grid.png") for folder in ("drawn", "local"))
    assert one.tobytes() == other.tobytes()
    uploaded = [list(a.files) for a in server.artifacts if a.kind == "samples"][-1]
    assert uploaded == ["000000.png", "000001.png", "denoising.gif", "grid.png"]


def fresh_process():
    forget()
    reference._fetched.cache_clear()


@pytest.mark.parametrize(
    "name", ["model-x:best", "lab/ddpm/model-x", "a/b/c/d:e", "../../x/y:z", "lab/ddpm/:v0"]
)
def test_invalid_artifact_name_is_refused_without_a_request(name, run):
    status, _, err = run("job=sample", f"checkpoint=wandb:{name}")
    assert_answered(status, err, f"checkpoint=wandb:{name}", "<entity>/<project>/<artifact>:<alias")


def test_guidance_classifier_can_be_an_artifact(run, tiny, monkeypatch):
    words = ["job=sample", "checkpoint=run", "guidance=classifier"]
    status, _, err = run(*words, "guidance.classifier=wandb:model-x")
    assert_answered(
        status, err, "guidance.classifier=wandb:model-x: an artifact is named wandb:<en"
    )
    found = download.Fetched(tiny / "checkpoints" / "step-0000006.pt", "a/b/c:v1", "ab")
    monkeypatch.setattr(reference, "_fetched", lambda source: found)
    status, _, err = run(*words, "guidance.classifier=wandb:a/b/c:best")
    assert_answered(status, err, "guidance.classifier=wandb:a/b/c:best: of job=train, not of")


def test_missing_login_and_network_are_reported(run, monkeypatch):
    words = ["job=sample", "checkpoint=wandb:our-lab/ddpm/model-x:best"]
    status, _, err = run(*words)
    assert_answered(status, err, "model-x:best: not logged in", "wandb login")
    forget()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    status, _, err = run(*words)
    assert_answered(status, err, "http://127.0.0.1:9 does not answer")


def stored(server, files, kind="model", name="model-x"):
    """Put an artifact on the server that no client would make: `files` is its manifest."""
    policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {}}
    policy["storagePolicyConfig"]["storageLayout"] = "V2"
    manifest = json.dumps({"version": 1, **policy, "contents": files}).encode()
    number = f"A{len(server.artifacts)}"
    made = StoredArtifact(number, "our-lab", "ddpm", name, kind, 0, "ab" * 16, "{}", None)
    made.aliases, made.manifest, made.state = ["best"], manifest, "COMMITTED"
    server.blobs[f"manifest/{number}"] = manifest
    server.artifacts.append(made)


def entry(server, data, **more):
    import base64
    import hashlib

    digest = hashlib.md5(data).digest()
    server.blobs[f"md5/{digest.hex()}"] = data
    return {"digest": base64.b64encode(digest).decode(), "size": len(data)} | more


def test_foreign_artifacts_are_refused_with_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    junk = entry(server, b"not a checkpoint")
    secret = tmp_path / "mine.pt"
    secret.write_bytes(b"mine")
    cases = {
        "nothing": (None, "W&B does not give it"),
        "kind": ({"a.pt": junk}, "of type dataset, not model"),
        "empty": ({"a.txt": junk}, "it holds 0 checkpoints"),
        "two": ({"a.pt": junk, "b.pt": junk}, "it holds 2 checkpoints"),
        "reference": ({"a.pt": {**junk, "ref": secret.as_uri()}}, "it holds 0 checkpoints"),
        "junk": ({"a.pt": junk}, "not a whole checkpoint"),
        "huge": ({"a.pt": {**junk, "size": 2**60}}, "has room for"),
        "short": ({"a.pt": {**junk, "size": 3}}, "W&B states"),
        "out": ({"../../../out.pt": junk}, ""),
        "hidden": ({".a.pt": junk}, "it holds 0 checkpoints"),
    }
    for name, (files, answer) in cases.items():
        if files is not None:
            stored(server, files, kind="dataset" if name == "kind" else "model", name=name)
        with pytest.raises(InputError) as caught:
            reference.find(f"wandb:our-lab/ddpm/{name}:best")
        assert answer in str(caught.value), name
        assert str(caught.value).startswith(f"checkpoint=wandb:our-lab/ddpm/{name}:best: ")
        assert "\n" not in str(caught.value)
    assert not [p for p in tmp_path.rglob("*.pt") if p != secret], "nothing was kept anywhere"


def test_pickled_code_in_an_artifact_is_not_run(server, tmp_path, monkeypatch):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    torch.save({"format": Hostile()}, tmp_path / "bad.bin")
    stored(server, {"a.pt": entry(server, (tmp_path / "bad.bin").read_bytes())})
    with pytest.raises(InputError, match="not a whole checkpoint"):
        reference.find("wandb:our-lab/ddpm/model-x:best")
    assert not (tmp_path / "pwned").exists()


def test_local_paths_are_returned_unchanged(tmp_path):
    assert reference.find(str(tmp_path)) == (tmp_path, {})
    assert download._FILE.fullmatch("step-0000006.pt")
