"""Where W&B artifacts are cached, also without a home directory."""

from pathlib import Path

import pytest

from ddpm.errors import InputError
from ddpm.trackers.wandb_client import reference


@pytest.fixture
def no_home_directory(monkeypatch):
    """A container whose user id has no name, without HOME."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("DDPM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"DDPM_CACHE": "/big/ours"}, "/big/ours/artifacts"),
        ({"DDPM_CACHE": "/big/ours", "XDG_CACHE_HOME": "/cache"}, "/big/ours/artifacts"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/hydra-ddpm/artifacts"),
        ({"XDG_CACHE_HOME": "/cache", "DDPM_CACHE": ""}, "/cache/hydra-ddpm/artifacts"),
    ],
)
def test_configured_cache_needs_no_home_directory(no_home_directory, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert reference.cache() == Path(place)


def test_missing_home_directory_is_refused_naming_ddpm_cache(no_home_directory):
    with pytest.raises(InputError, match="set the environment variable DDPM_CACHE"):
        reference.cache()


def test_default_cache_is_in_the_home_directory(monkeypatch, tmp_path):
    for name in ("DDPM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reference.cache() == tmp_path / ".cache" / "hydra-ddpm" / "artifacts"
