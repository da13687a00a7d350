"""A user's own network, one Python file and one YAML file, with keys that look secret.

It is composed, trained, stored, resumed, sampled from, swept, exported, shown to W&B and reported.
"""

import sys
import textwrap

import pytest
import yaml
from support.base import TINY
from support.mistakes import assert_answered, contents
from support.wandb_runs import finished, not_logged_in

from ddpm.runner.config import catalog

__all__ = ["not_logged_in"]

CODE = """
from torch import nn


class Tokens(nn.Module):
    def __init__(self, *, channels, out_channels, image_size, num_classes, num_tokens, key_dim,
                 token_dim, key, tokens, use_token, secret, auth, token_mixer, head):
        super().__init__()
        assert type(key) is int and use_token is True and auth is None and secret == 0.5
        assert token_mixer == "attention" and head == {"token": {"dim": 4, "init": "zeros"}}
        self.net = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.token = nn.Parameter(self.net.weight.new_zeros(num_tokens, key_dim + token_dim))

    def forward(self, x_t, t, label=None):
        return self.net(x_t) + self.token.mean()
"""
OPTION = """
_target_: own_tokens.Tokens
channels: ${data.channels}
out_channels: ${data.channels}
image_size: ${data.image_size}
num_classes: null
num_tokens: 8
key_dim: ${model.num_tokens}
token_dim: 4
key: 3
tokens: [8, 16]
use_token: true
secret: 0.5
auth: null
token_mixer: attention
head: {token: {dim: 4, init: zeros}}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_tokens.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "tokens.yaml").write_text(OPTION)
    monkeypatch.syspath_prepend(tmp_path)
    targets = catalog.targets() | {"own_tokens.Tokens"}
    monkeypatch.setattr(catalog, "targets", lambda: targets)
    yield ["--config-dir=own"]
    sys.modules.pop("own_tokens", None)


TRAIN = [word for word in TINY if word.split("=")[0] not in ("model", "tracker", "job.max_steps")]
TRAIN += ["model=tokens", "job.max_steps=2", "tracker.wandb.artifacts=none"]


def model_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["model"]


@pytest.mark.slow
def test_a_run_with_keys_that_look_secret(own, run, tmp_path):
    tracked = ["tracker=[wandb,tensorboard]", "output_dir=run", "model.tokens=[4]", "model.key=5"]
    status, _, err = run(*own, *TRAIN, *tracked)
    assert (status, err) == (0, "")
    wanted = yaml.safe_load(OPTION) | {"tokens": [4], "key": 5, "key_dim": 8}
    literal = {name: wanted[name] for name in wanted if "${" not in str(wanted[name])}
    assert literal.items() <= model_of(tmp_path / "run").items()
    (shown,) = finished(tmp_path / "run")
    assert shown.config["model"] == model_of(tmp_path / "run")
    for words in (
        ["resume=run", "model=tokens", "job.max_steps=3", "model.num_tokens=8", "model.key=5"],
        ["job=export", "checkpoint=run", "output_dir=export"],
        ["job=sample", "checkpoint=export", "job.num_samples=1", "tracker=local", "hardware=cpu"],
    ):
        status, _, err = run(*own, *words)
        assert (status, err) == (0, ""), words
    assert model_of(tmp_path / "run")["num_tokens"] == 8


@pytest.mark.slow
def test_a_sweep_over_such_keys(own, run, tmp_path):
    chosen = ["model.num_tokens=4,8", "model.key=1", "tracker=local", "job.num_samples=1"]
    status, _, err = run("-m", "sweep=s", *own, *TRAIN[:-1], *chosen)
    assert (status, err) == (0, "")
    folders = sorted(path.parent for path in tmp_path.glob("outputs/sweep/s/*/config.yaml"))
    assert [model_of(folder)["num_tokens"] for folder in folders] == [4, 8]
    status, _, err = run("job=report", "sweep=s", "tracker=local")
    assert (status, err) == (0, "")
    assert "num_tokens" in (tmp_path / "outputs" / "sweep" / "s" / "report.md").read_text()


@pytest.mark.parametrize("first", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    "word", ["model.key=abc12345", "model.tokens=[4,abc12345]", "model.auth=abc12345"]
)
def test_text_under_them_is_still_refused(word, first, own, run, tmp_path):
    before = contents(tmp_path)
    status, out, err = run(*first, *own, *TRAIN, word)
    assert_answered(status, err, word.split("=")[0], "WANDB_API_KEY")
    assert "abc12345" not in out + err
    assert contents(tmp_path) == before
