"""What the values of a configuration may be, checked before anything is built or touched."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddpm.errors import InputError, nearest


@dataclass(frozen=True)
class Rule:
    """A value's type, what is allowed in words and as a test, and whether null is."""

    type: type
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


def integers() -> Rule:
    return Rule(
        list,
        "a list of whole numbers from 1",
        lambda x: all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in x),
    )


RULES = {
    "seed": Rule(int, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
    "output_dir": path(null=True),
    "data_dir": path(),
    "schedule.T": integer(1),
    "sampler.steps": integer(1, null=True),
    "sampler.eta": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "optimizer.lr": positive(),
    "optimizer.eps": positive(),
    "optimizer.betas": Rule(
        list,
        "two numbers from 0 to below 1",
        lambda x: len(x) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in x),
    ),
    "optimizer.weight_decay": number("a finite number from 0", lambda x: x >= 0),
    "data.image_size": integer(1),
    "model.widths": integers(),
    "model.attention_resolutions": integers(),
    "tracker.wandb.mode": one_of("online", "offline", "disabled", null=True),
    "job.max_steps": integer(1, null=True),
    "job.max_epochs": positive(null=True),
    "job.batch_size": integer(1),
    "job.accumulate": integer(1),
    "job.warmup_steps": integer(0),
    "job.decay_steps": integer(1, null=True),
    "job.clip_grad_norm": positive(null=True),
    "job.ema_decay": number("a number from 0 to below 1", lambda x: 0 <= x < 1),
    "job.ema_ramp": number("a number from 1 (1: no ramp)", lambda x: x >= 1),
    "job.compile": Rule(bool, "true or false", lambda x: True),
    "job.num_workers": integer(0),
    "job.log_every": integer(1),
    "job.save_every": integer(1, null=True),
    "job.keep_checkpoints": Rule(
        int, "a whole number from 2, or -1 for all", lambda x: x >= 2 or x == -1
    ),
    "job.sample_every": integer(1, null=True),
    "job.sample_every_epochs": positive(null=True),
    "job.num_samples": integer(1),
    "job.first_seed": integer(0),
    "job.gif_seconds": positive(),
    "job.weights": one_of("ema", "model"),
}
# Keys that say what another key says, and nothing else.
FOLLOW = {
    "model.channels": "data.channels",
    "model.out_channels": "data.channels",
    "model.image_size": "data.image_size",
}


def check(config: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Hold `config`, plain and resolved, against RULES and the types of its defaults.

    1e3 becomes 1000 where whole numbers belong.

    Raises:
        InputError: naming every key that breaks a rule, the value, and what is allowed.
    """
    wrong = []
    for key in dict.fromkeys([*RULES, *defaults]):
        *parents, name = key.split(".")
        node = look_up(config, ".".join(parents)) if parents else config
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
            wrong.append(f"{key}={shown}: must be {rule.allowed}{null}.{hint}")
    wrong = wrong or _check_together(config)
    if wrong:
        raise InputError("\n".join(wrong[:5]))


def _rule_of(default: Any) -> Rule:
    """Without a rule of its own, a key keeps the type of its default; null may become anything."""
    if isinstance(default, bool):
        return Rule(bool, "true or false", lambda x: True)
    if isinstance(default, int):
        return Rule(int, f"a whole number, like {default}", lambda x: True, null=True)
    if isinstance(default, float):
        return Rule(float, f"a number, like {default:g}", math.isfinite)
    if isinstance(default, list):
        return Rule(list, f"a list, like {default}", lambda x: True)
    return Rule(object, "", lambda x: True, null=True)


def _check_together(config: dict[str, Any]) -> list[str]:
    """Rules between keys."""
    wrong = []
    job = config.get("job", {})
    if "max_steps" in job and job["max_steps"] is None and job.get("max_epochs") is None:
        wrong.append("job.max_steps=null, job.max_epochs=null: one of them must say when to stop.")
    parts, batch = job.get("accumulate", 1), job.get("batch_size", 0)
    if batch % parts:
        wrong.append(f"job.batch_size={batch}: must be divisible by job.accumulate={parts}.")
    steps, T = look_up(config, "sampler.steps"), look_up(config, "schedule.T")
    if steps is not None and T is not None and steps > T:
        wrong.append(f"sampler.steps={steps}: must be at most schedule.T={T}, the steps there are.")
    if (classes := look_up(config, "model.num_classes")) is not None:
        wrong.append(f"model.num_classes={classes}: training on labels is not there yet; null.")
    for key, leader in FOLLOW.items():
        value, leads = look_up(config, key), look_up(config, leader)
        if value is not None and leads is not None and value != leads:
            wrong.append(f"{key}={value}: follows {leader}={leads}; set that instead.")
    return wrong


def look_up(config: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _convert(value: Any, wanted: type) -> Any:
    """1e3 as 1000, 1 as 1.0; True is no number."""
    if isinstance(value, bool):
        return value if wanted in (bool, object) else str(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wanted is float and isinstance(value, int):
        return float(value)
    return value
