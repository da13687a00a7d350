"""Where artifacts of W&B are kept, also for users without a home."""

from pathlib import Path

import pytest

from ddpm.errors import InputError
from ddpm.trackers.wandb_client import reference


@pytest.fixture
def homeless(monkeypatch):
    """A container that runs under a number without a name, and no HOME."""

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
def test_a_cache_that_is_set_asks_for_no_home(homeless, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert reference.cache() == Path(place)


def test_without_a_home_the_variable_is_named(homeless):
    with pytest.raises(InputError, match="set the environment variable DDPM_CACHE"):
        reference.cache()


def test_at_home_by_default(monkeypatch, tmp_path):
    for name in ("DDPM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reference.cache() == tmp_path / ".cache" / "hydra-ddpm" / "artifacts"
