"""hf:owner/name and job.push_to, against a small local server."""

import builtins

import pytest
import torch
import yaml
from support.base import TINY
from support.diffusers_models import LSUN, randomised, saved, small, unet_of
from support.hub_server import Hub, serving
from support.runs import SAMPLE, go, pngs

from ddpm import Pipeline
from ddpm.errors import InputError
from ddpm.runner.hub import reference

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("diffusers")

parses_any_endpoint = pytest.mark.skipif(
    tuple(map(int, huggingface_hub.__version__.split(".")[:2])) < (1, 5),
    reason="huggingface_hub before 1.5 parses the names of repositories at few endpoints only",
)
DRAW = [*SAMPLE, "sampler=ddim", "sampler.steps=2", "job.num_samples=2"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    reference._fetched.cache_clear()
    hub = Hub()
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub
    reference._fetched.cache_clear()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return saved(randomised(unet_of(small(LSUN))), tmp_path_factory.mktemp("pipe"))


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_pipeline_is_downloaded_once_and_pinned(hub, run, pipeline, tmp_path):
    sha = hub.commit("lab/faces", files_of(pipeline) | {"big.bin": b"x" * 100})
    out = go(run, *DRAW, "checkpoint=hf:lab/faces", "output_dir=one")
    assert f"download hf:lab/faces at {sha[:12]}" in out
    folder = tmp_path / "cache" / "artifacts" / "hf" / "lab--faces" / sha
    assert "big.bin" not in files_of(folder)
    source = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())["source"]
    assert (source["repository"], source["revision"]) == ("lab/faces", sha)
    fetched = [path for _, path in hub.asked if "resolve" in path]
    reference._fetched.cache_clear()
    hub.commit("lab/faces", {})  # a newer commit, which holds nothing
    hub.asked.clear()
    out = go(run, *DRAW, f"checkpoint=hf:lab/faces@{sha}", "output_dir=two")
    assert hub.asked == []
    assert len(fetched) >= 4
    assert torch.equal(pngs(tmp_path / "one"), pngs(tmp_path / "two"))


def test_run_can_start_from_a_network_of_the_hub(hub, run, tiny, tmp_path):
    go(run, "job=export", f"checkpoint={tiny}", "hardware=cpu", "output_dir=given")
    sha = hub.commit("lab/digits", files_of(tmp_path / "given"))
    words = [w for w in TINY if not w.startswith("model")]
    go(run, *words, "init_from=hf:lab/digits", "job.max_steps=1", "output_dir=new")
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert config["init_from"] == "hf:lab/digits"
    assert config["init_source"]["revision"] == sha
    images = Pipeline.from_checkpoint("hf:lab/digits", device="cpu").sample(2)
    assert torch.equal(images, Pipeline.from_checkpoint(tiny, device="cpu").sample(2))


@parses_any_endpoint
def test_pushed_export_can_be_loaded_again(hub, run, tiny, tmp_path):
    words = ["job=export", f"checkpoint={tiny}", "hardware=cpu", "job.push_to=hf:lab/digits"]
    out = go(run, *words, "output_dir=given")
    assert "pushed   " in out
    assert "lab/digits" in out
    assert hub.created == [("lab/digits", hub.created[0][1])]
    assert hub.created[0][1] in (True, "private")
    assert set(hub.tokens) == {"Bearer hf_test"}
    _, files = hub.at("lab/digits", "main")
    assert files == files_of(tmp_path / "given")
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    images = Pipeline.from_checkpoint("hf:lab/digits", device="cpu").sample(2)
    assert torch.equal(images, Pipeline.from_checkpoint(tiny, device="cpu").sample(2))


@parses_any_endpoint
def test_a_large_file_is_pushed_by_the_protocol_of_git_lfs(hub, run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    hub.large = 5000
    words = ["job=export", f"checkpoint={tiny}", "hardware=cpu", "job.push_to=hf:lab/large"]
    status, _, err = run(*words, "output_dir=given")  # with a progress bar
    assert status == 0, err
    given = files_of(tmp_path / "given")
    assert list(hub.uploaded.values()) == [given["model.safetensors"]]
    assert hub.at("lab/large", "main")[1] == given


def test_missing_repositories_and_files_are_reported_in_one_line(hub, run, pipeline, tmp_path):
    sha = hub.commit("lab/text", {"README.md": b"hello"})
    for name, expected in {
        "lab/none": "there is no such repository",
        "lab/text@v2": "it has no such branch, tag or commit",
        "lab/text": "it holds no model_index.json",
        "lab": "a repository is named hf:<owner>/<name>",
        "../../etc": "a repository is named hf:<owner>/<name>",
    }.items():
        reference._fetched.cache_clear()
        status, _, err = run(*DRAW, f"checkpoint=hf:{name}")
        assert (status, err.count("\n")) == (2, 1), err
        assert err.startswith(f"checkpoint=hf:{name}: ")
        assert expected in err
    assert sha


def test_a_hostile_repository_is_checked_like_any_file(hub, run, pipeline):
    files = files_of(pipeline)
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.commit("lab/cut", files | {name: files[name][:-50]})
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.safetensors: "):
        Pipeline.from_checkpoint("hf:lab/cut")


def test_invalid_push_targets_and_missing_login_are_refused_before_writing(
    hub, run, tiny, tmp_path, monkeypatch
):
    words = ["job=export", f"checkpoint={tiny}", "hardware=cpu", "output_dir=given"]
    for target, expected in {
        "lab/digits": "a repository is named",
        "hf:a/b@v1": "leave @v1",
    }.items():
        status, _, err = run(*words, f"job.push_to={target}")
        assert (status, err.count("\n")) == (2, 1)
        assert expected in err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    status, _, err = run(*words, "job.push_to=hf:lab/digits")
    assert status == 2
    assert "not logged in. Run `hf auth login`, or set HF_TOKEN." in err
    assert not (tmp_path / "given").exists()
    assert hub.created == []


def test_missing_package_is_reported_with_the_pip_command(hub, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install -e '\.\[hub\]'"):
        reference.find("hf:lab/faces")
