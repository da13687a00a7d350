"""Scores with whole passports, made without a run."""

import copy
import dataclasses

from ddpm.runner.runs.scores import Scored

RULER = {
    "metric": {"name": "kd", "version": 1, "kernel": "cubic", "rescale": True, "reference": "both"},
    "features": {
        **{"name": "mnist", "digest": "0123456789ab", "size": 32, "resize": "none"},
        **{"layer": "hidden", "dtype": "float32"},
    },
    "reference": {
        **{"data": "mnist", "fingerprint": "ba9876543210", "split": "train"},
        **{"n": 60000, "seed": "none"},
    },
    "n": 1000,
    "quantise": True,
}
SUBJECT = {
    **{"run": "70c8c9db", "checkpoint": "4a435126064c", "step": 500, "weights": "ema"},
    "sampler": {"name": "ddim", "steps": 5, "eta": 0.0, "spacing": "uniform"},
    **{"evaluations": 5, "guidance": {"name": "none"}, "labels": "none"},
    **{"seeds": {"first": 1000000, "n": 1000}, "clip": [-1.0, 1.0], "precision": "32-true"},
}


def scored(value=1.0, *, ruler=RULER, subject=SUBJECT, **changes):
    made = Scored(
        name="kd_mnist",
        value=value,
        n=1000,
        step=500,
        better="lower",
        ruler=copy.deepcopy(ruler),
        subject=copy.deepcopy(subject),
        low=value - 0.1,
        high=value + 0.1,
        floor=0.5,
        reference="train",
    )
    return dataclasses.replace(made, **changes)


def changed(passport, key, value):
    """A copy in which one dotted field differs."""
    made = copy.deepcopy(passport)
    *path, name = key.split(".")
    node = made
    for part in path:
        node = node[part]
    node[name] = value
    return made
