"""conf/metric: every file names a metric and all of its options."""

import inspect
import json
from typing import get_args

import pytest
import yaml
from support.base import ROOT

from ddpm.metrics.base import Metric, Need
from ddpm.runner.config.build import build

FILES = {path.stem: path for path in sorted((ROOT / "conf" / "metric").glob("*.yaml"))}


@pytest.mark.parametrize("name", FILES)
def test_config_file_builds_its_metric_with_all_options(name):
    text = FILES[name].read_text()
    assert text.startswith(f"# @package metric.{name}\n")
    config = yaml.safe_load(text)
    metric = build(config, f"metric.{name}")
    assert isinstance(metric, Metric)
    assert metric.needs <= set(get_args(Need))
    assert metric.least >= 1
    options = set(inspect.signature(type(metric)).parameters)
    assert set(config) == {"_target_", *options}
    passport = metric.passport()
    assert passport["name"] == name
    assert json.loads(json.dumps(passport)) == passport
