"""The allowed values of configuration keys, checked before anything is built or written."""

import math
import re
from typing import Any

from ddpm.errors import InputError
from ddpm.limits.parts import LIMITS, lengths
from ddpm.limits.rule import (
    Rule,
    below_1,
    boolean,
    integer,
    integer_or,
    number,
    one_of,
    path,
    positive,
)
from ddpm.runner.checkpoints.summary import LENGTH
from ddpm.runner.roles import DECAYS_BY_LENGTH
from ddpm.runner.safe_io.tree import locate
from ddpm.trackers.wandb_client import limits


def text() -> Rule:
    """YAML 1.1 reads no, off and on as booleans, so these need quotes."""
    return Rule(str, "text, in quotes if YAML reads another type", lambda x: True, True)


AREAS = ("left", "right", "top", "bottom", "center")  # masks that need no file

RULES = {
    **{f"{group}.{k}": rule for group, rules in LIMITS.items() for k, rule in rules.items()},
    "seed": Rule(int, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
    "kind": one_of("trains", "draws", "converts", "reads", "other"),
    "output_dir": path(null=True),
    "data_dir": path(),
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
    "job.accumulate_grad_batches": integer_or("auto", 1),
    "job.warmup_steps": integer(0),
    "job.lr_decay": one_of("inverse", *DECAYS_BY_LENGTH),
    "job.lr_decay_start": integer(1, null=True),
    "job.clip_grad_norm": positive(null=True),
    "job.ema_decay": below_1(),
    "job.ema_ramp": number("a number from 1 (1: no ramp)", lambda x: x >= 1),
    "job.compile": Rule(
        bool | str,
        "true, false or auto",
        lambda x: isinstance(x, bool) or x == "auto",
        options=("true", "false", "auto"),
    ),
    "job.recompute": boolean(),
    "job.label_dropout": below_1(),
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
        lambda x: re.fullmatch(rf"model|ema(:{LENGTH})?", x) is not None,
        options=("ema", "model"),
    ),
    "job.sigma_rel": lengths(1),
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
        node, name = locate(config, key)
        if node is None or name not in node:
            continue
        rule = RULES.get(key) or _rule_of(defaults[key])
        try:
            node[name] = rule.check(key, node[name], whole_floats=True)
        except InputError as error:
            errors.append(str(error))
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
