"""The passports of scores: how each was measured (the ruler), and what was (the subject)."""

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ddpm.evaluation.reference import Reference
from ddpm.features.base import Features
from ddpm.metrics.base import Metric, Score
from ddpm.runner.runs.scores import Passport, Scored, known


def ruler(
    metric: Metric,
    score: Score,
    features: Features | None,
    references: Mapping[str, Reference],
    hparams: dict[str, Any],
) -> Passport:
    """How a score was measured: equal ones compare.

    Args:
        references: by role.
        hparams: of the run, whose schedule, objective and weighting belong to the ruler of a loss.
    """
    uses_features = bool(metric.needs & {"features", "classes"})
    assert features is not None or not uses_features
    passports = {role: reference.passport() for role, reference in references.items()}
    process = {group: part(hparams, group) for group in ("schedule", "objective", "weighting")}
    return known(
        {
            "metric": metric.passport(),
            "features": features.passport() if uses_features and features else None,
            "reference": passports.get(score.reference or "", passports),
            **({"process": process} if metric.of_process else {}),
            "n": score.n,
            "quantise": True,
        }
    )


def scored(
    score: Score, step: int, ruler: Passport, subject: Passport, environment: dict[str, Any]
) -> Scored:
    """A line of scores.jsonl."""
    without = None if score.without is None else [float(f"{v:.9g}") for v in score.without]
    return Scored(
        **vars(score) | {"without": without},
        step=step,
        ruler=ruler,
        subject=subject,
        environment=environment,
    )


def environment(device: str, began: float) -> dict[str, Any]:
    """Where and how long a score was measured, which should not change it.

    Args:
        device: its name.
        began: time of the start, by `time.monotonic`.
    """
    return {
        "device": device,
        "torch": str(torch.__version__),
        "python": sys.version.split()[0],
        "seconds": round(time.monotonic() - began, 1),
    }


def part(config: dict[str, Any], group: str) -> dict[str, Any]:
    """The chosen option of a group and its keys."""
    node = config.get(group)
    keys = {k: v for k, v in node.items() if k[:1] != "_"} if isinstance(node, dict) else {}
    return {"name": config["choices"].get(group), **keys}


def counted(labels: Sequence[int]) -> dict[str, int]:
    """How many pictures of each class."""
    return {str(label): labels.count(label) for label in sorted(set(labels))}


def weights_digest(state: dict[str, Any], weights: str) -> str:
    """A digest of the weights of network and process, whatever their file: 12 hex digits."""
    found = hashlib.sha256()
    for group in (weights, "diffusion"):
        for name, value in sorted(state.get(group, {}).items()):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().view(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]
