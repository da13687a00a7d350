"""The allowed values of configuration keys, checked before anything is built or written."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any

from ddpm.errors import InputError, nearest
from ddpm.runner.safe_io.tree import get_path
from ddpm.trackers.wandb_client import limits


@dataclass(frozen=True)
class Rule:
    """The allowed values of a key: their type, a description, a test, and whether null is one."""

    type: type | UnionType
    allowed: str
    test: Callable[[Any], bool]
    null: bool = False
    options: tuple[str, ...] = ()


def integer(least: int, *, null: bool = False) -> Rule:
    return Rule(int, f"a whole number from {least}", lambda x: x >= least, null)


def number(allowed: str, test: Callable[[float], bool], *, null: bool = False) -> Rule:
    return Rule(float, allowed, lambda x: math.isfinite(x) and test(x), null)


def positive(*, null: bool = False) -> Rule:
    return number("a finite number above 0", lambda x: x > 0, null=null)


def path(*, null: bool = False) -> Rule:
    return Rule(str, "a path", lambda x: x != "", null)


def one_of(*options: str, null: bool = False) -> Rule:
    return Rule(str, f"one of {', '.join(options)}", lambda x: x in options, null, options)


def integers(least: int = 1, *, null: bool = False) -> Rule:
    return Rule(
        list,
        f"a list of whole numbers from {least}",
        lambda x: all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in x),
        null,
    )


def lengths(least: int) -> Rule:
    """Of averages of ema=power."""
    few = "two or more different numbers" if least > 1 else "a list of different numbers"
    return Rule(
        list,
        f"{few} above 0 and at most {LONGEST}, like [0.05, 0.1]",
        lambda x: len(x) >= least and _distinct(x) and all(0 < n <= LONGEST for n in x),
    )


def _distinct(values: list[Any]) -> bool:
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in values)
    return numbers and len(values) > 0 and len({float(n) for n in values}) == len(values)


def text() -> Rule:
    """YAML 1.1 reads no, off and on as booleans, so these need quotes."""
    return Rule(str, "text, in quotes if YAML reads another type", lambda x: True, True)


def boolean() -> Rule:
    return Rule(bool, "true or false", lambda x: True)


LONGEST = 0.28  # sigma_rel; a plain mean over the run has 0.289
_LENGTH = r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?"


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


AREAS = ("left", "right", "top", "bottom", "center")  # masks that need no file

RULES = {
    "seed": Rule(int, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
    "kind": one_of("trains", "draws", "converts", "reads", "other"),
    "output_dir": path(null=True),
    "data_dir": path(),
    "model.patch_size": integer(1),
    "model.size": one_of("S", "B", "L", "XL", "H", null=True),
    **{f"model.{k}": integer(1, null=True) for k in ("depth", "width", "num_heads")},
    "model.bottleneck": integer(1),
    "schedule.T": integer(1),
    "schedule.end": number("a finite number", lambda x: True),  # of sigmoid, too
    "schedule.rescale": boolean(),
    "schedule.zero_terminal_snr": boolean(),
    "objective.learned_variance": boolean(),
    "objective.vlb_weight": positive(),
    "objective.loss_type": one_of("mse", "l1", "huber"),
    "objective.sigma_data": Rule(
        float | str,
        "a finite number above 0, or data",
        lambda x: x == "data" or (isinstance(x, float) and 0 < x < math.inf),
        options=("data",),
    ),
    "weighting.gamma": positive(),
    "weighting.k": positive(),
    "weighting.sigma_data": positive(),
    "weighting.max_weight": positive(null=True),
    "weighting.quantity": one_of("eps", "x_0", "v", "velocity"),
    "timesteps.std": positive(),
    "timesteps.history": integer(1),
    "timesteps.uniform_share": number("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "timesteps.stratified": boolean(),
    "sampler.steps": integer(1, null=True),
    "sampler.eta": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "sampler.variance": one_of("auto", "fixed_large", "fixed_small", "learned"),
    "sampler.spacing": one_of("uniform", "quadratic", "trailing", "log_snr", "karras"),
    "sampler.rho": positive(),
    "sampler.churn": number("a finite number from 0", lambda x: x >= 0),
    "sampler.churn_min": number("a finite number from 0", lambda x: x >= 0),
    "sampler.churn_max": positive(null=True),
    "sampler.churn_noise": number("a finite number from 0", lambda x: x >= 0),
    "features.weights": path(null=True),
    "features.size": integer(32),
    "features.resize": one_of("legacy", "clean"),
    "features.arch": one_of("vits14", "vitb14", "vitl14"),
    "sampler.stochastic": boolean(),
    "sampler.order": Rule(int, "1, 2 or 3", lambda x: x in (1, 2, 3)),
    "guidance.scale": number("a finite number from 0", lambda x: x >= 0),
    "guidance.rescale": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "guidance.classifier": path(null=True),
    "guidance.weak": path(null=True),
    "guidance.weights": one_of("ema", "model"),
    "guidance.interval": Rule(
        list,
        "two rising numbers from 0, like [0.2, 3]",
        lambda x: (
            len(x) == 2
            and all(isinstance(n, int | float) and not isinstance(n, bool) for n in x)
            and 0 <= x[0] < x[1]
        ),
        null=True,
    ),
    "augment.probability": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "augment.color": boolean(),
    "optimizer.lr": positive(),
    "optimizer.eps": positive(),
    "optimizer.betas": Rule(
        list,
        "two numbers from 0 to below 1",
        lambda x: len(x) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in x),
    ),
    "optimizer.weight_decay": number("a finite number from 0", lambda x: x >= 0),
    "data.image_size": Rule(
        int | list,
        "a whole number from 1, or [height, width]",
        lambda x: (
            all(type(side) is int and side >= 1 for side in x) and len(x) == 2
            if isinstance(x, list)
            else type(x) is int and x >= 1
        ),
    ),
    "data.value_range": Rule(
        list,
        "two finite numbers, the lower one first, like [0, 65535]",
        lambda x: len(x) == 2 and all(map(is_finite, x)) and x[0] < x[1],
        null=True,
    ),
    "data.attribute": Rule(
        str | list, "an attribute, or a list of them", lambda x: len(x) > 0, null=True
    ),
    "data.splits": one_of("hash", "named"),
    "data.test_share": number("a number from 0 to below 1", lambda x: 0 <= x < 1),
    "data.conditional": boolean(),
    "data.holdout": number("a number from 0 to below 1", lambda x: 0 <= x < 1),
    "data.on_error": one_of("stop", "skip"),
    "model.widths": integers(),
    "model.attention_resolutions": integers(),
    "tracker.wandb.entity": Rule(str, limits.PROJECT, limits.is_project, null=True),
    "tracker.wandb.project": Rule(
        str, f"{limits.PROJECT} (a user or team is tracker.wandb.entity)", limits.is_project
    ),
    **{f"tracker.wandb.{k}": text() for k in ("group", "name", "notes", "job_type")},
    "tracker.wandb.tags": Rule(list, limits.TAGS, limits.are_tags),
    "tracker.wandb.mode": one_of("online", "offline", "disabled", null=True),
    "tracker.wandb.artifacts": one_of("none", "last", "all"),
    "tracker.mlflow.tracking_uri": text(),
    "tracker.mlflow.experiment": Rule(str, "a name", lambda x: x != ""),
    "tracker.mlflow.artifacts": one_of("none", "last", "all"),
    "tracker.trackio.project": Rule(str, "a name", lambda x: x != ""),
    "tracker.trackio.artifacts": one_of("none", "last", "all"),
    "job.max_steps": integer(1, null=True),
    "job.max_epochs": positive(null=True),
    "job.batch_size": integer(1),
    "job.accumulate_grad_batches": Rule(
        int | str,
        "a whole number from 1, or auto",
        lambda x: x == "auto" or (type(x) is int and x >= 1),
        options=("auto",),
    ),
    "job.warmup_steps": integer(0),
    "job.lr_decay_start": integer(1, null=True),
    "job.clip_grad_norm": positive(null=True),
    "job.ema_decay": number("a number from 0 to below 1", lambda x: 0 <= x < 1),
    "job.ema_ramp": number("a number from 1 (1: no ramp)", lambda x: x >= 1),
    "job.compile": Rule(
        bool | str,
        "true, false or auto",
        lambda x: isinstance(x, bool) or x == "auto",
        options=("true", "false", "auto"),
    ),
    "job.recompute": boolean(),
    "job.label_dropout": number("a number from 0 to below 1", lambda x: 0 <= x < 1),
    "job.labels": Rule(
        list | int,
        "a class or a list of classes, like 3 or [3, 8]",
        lambda x: x != [] and not isinstance(x, bool),
        null=True,
    ),
    "job.validate_every": integer(1, null=True),
    "job.keep_best": Rule(
        str,
        "a figure of the log, like eval/loss or eval/kd_digits",
        lambda x: x.startswith("eval/"),
        True,
        ("eval/loss", "eval/loss_raw", "eval/accuracy"),
    ),
    "job.patience": integer(1, null=True),
    "job.evaluate_every": integer(1, null=True),
    "job.evaluate_samples": integer(1),
    "job.evaluate_reference": integer(1, null=True),
    "job.evaluate_steps": integer(1, null=True),
    "job.num_workers": integer(0),
    "job.log_every": integer(1),
    "job.save_every": integer(1, null=True),
    "job.keep_checkpoints": Rule(
        int, "a whole number from 2, or -1 for all", lambda x: x >= 2 or x == -1
    ),
    "job.sample_every": integer(1, null=True),
    "job.sample_every_epochs": positive(null=True),
    "job.num_samples": integer(1),
    "job.num_reference": integer(1, null=True),
    "job.first_seed": integer(0),
    "job.num_images": integer(1),
    "job.figures": Rule(
        list,
        "a list of figures, like [forward, schedules]",
        lambda x: bool(x) and all(isinstance(name, str) for name in x),
        null=True,
    ),
    "job.gif_seconds": positive(),
    "job.images": Rule(
        list,
        "two picture files, like [a.png, b.jpg]",
        lambda x: len(x) == 2 and all(isinstance(file, str) and file for file in x),
        null=True,
    ),
    "job.indices": Rule(
        list,
        "two whole numbers from 0, like [0, 1]",
        lambda x: len(x) == 2 and all(type(n) is int and n >= 0 for n in x),
    ),
    "job.t": integer(0, null=True),
    "job.num_mixtures": integer(2),
    "job.image": path(),
    "job.mask": Rule(str, f"a path, or one of {', '.join(AREAS)}", lambda x: x != "", False, AREAS),
    "job.resamples": integer(1),
    "job.jump_length": integer(1),
    "job.weights": Rule(
        str,
        "ema, model, or ema:<length> as ema:0.07",
        lambda x: re.fullmatch(rf"model|ema(:{_LENGTH})?", x) is not None,
        options=("ema", "model"),
    ),
    "job.sigma_rel": lengths(1),
    "ema.decays": Rule(
        list,
        "a list of different numbers from 0 to below 1, like [0.999, 0.9999]",
        lambda x: _distinct(x) and all(0 <= d < 1 for d in x),
    ),
    "ema.sigma_rel": lengths(2),
    "ema.snapshots": integer(1),
    "job.max_nonfinite_steps": integer(1),
    "allow_changes": Rule(
        list, "a list of keys, like [optimizer.lr]", lambda x: all(isinstance(k, str) for k in x)
    ),
    "job.host": Rule(str, "a name or an address of this machine", lambda x: x != ""),
    "job.port": Rule(int, "a whole number from 0 to 65535", lambda x: 0 <= x < 2**16),
    "job.max_runs": integer(1),
    "init_from": path(null=True),
    "init_weights": one_of("ema", "model", "both"),
    "init_allow": Rule(
        list,
        "a list of parts, like [conv_in,objective]",
        lambda x: all(isinstance(k, str) for k in x),
    ),
    "job.format": one_of("safetensors", "diffusers"),
    "job.push_to": path(null=True),
}


def check(config: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Check `config`, plain and resolved, against RULES and the types of its defaults.

    Whole numbers may be written as 1e3; they are converted.

    Raises:
        InputError: names every key that breaks a rule, its value and the allowed values.
    """
    errors = []
    for key in dict.fromkeys([*RULES, *defaults]):
        *parents, name = key.split(".")
        node = get_path(config, ".".join(parents)) if parents else config
        if not isinstance(node, dict) or name not in node:
            continue
        rule = RULES.get(key) or _rule_of(defaults[key])
        value = _convert(node[name], rule.type)
        if value is None and rule.null:
            continue
        if isinstance(value, rule.type) and rule.test(value):
            node[name] = value
        else:
            shown = "null" if value is None else node[name]
            null = ", or null" if rule.null else ""
            hint = nearest(str(value), rule.options)
            errors.append(f"{key}={shown}: must be {rule.allowed}{null}.{hint}")
    if errors:
        raise InputError("\n".join(errors[:5]))


def _rule_of(default: Any) -> Rule:
    """The rule of a key that is not in RULES: the type of its default; any type if that is null."""
    if isinstance(default, bool):
        return Rule(bool, "true or false", lambda x: True)
    if isinstance(default, int):
        return Rule(int, f"a whole number, like {default}", lambda x: True, null=True)
    if isinstance(default, float):
        return Rule(float, f"a number, like {default:g}", math.isfinite)
    if isinstance(default, list):
        return Rule(list, f"a list, like {default}", lambda x: True)
    return Rule(object, "", lambda x: True, null=True)


def _convert(value: Any, target: type | UnionType) -> Any:
    """Convert a value to the type of its rule: 1e3 to 1000, 1 to 1.0, 5 to "5". A boolean is
    neither a number nor a text."""
    if isinstance(value, bool):
        return str(value) if target in (int, float) else value
    if target in (int | str, float | str) and not isinstance(value, str):  # numbers stay numbers
        target = int if target == int | str else float
    if target == int | list:
        target = int
    if target is str and isinstance(value, int):
        return str(value)
    if target is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if target is float and isinstance(value, int):
        return float(value)
    return value
