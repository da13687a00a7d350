"""What the numbers of a configuration may be, checked before anything is built or touched."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddpm.errors import InputError


@dataclass(frozen=True)
class Rule:
    """A value's type, what is allowed in words and as a test, and whether null is."""

    type: type
    allowed: str
    test: Callable[[Any], bool]
    null: bool = False


def integer(least: int, *, null: bool = False) -> Rule:
    return Rule(int, f"a whole number from {least}", lambda x: x >= least, null)


def number(allowed: str, test: Callable[[float], bool], *, null: bool = False) -> Rule:
    return Rule(float, allowed, lambda x: math.isfinite(x) and test(x), null)


def positive(*, null: bool = False) -> Rule:
    return number("a finite number above 0", lambda x: x > 0, null=null)


RULES = {
    "seed": Rule(int, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
    "schedule.T": integer(1),
    "sampler.steps": integer(1, null=True),
    "sampler.eta": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "optimizer.lr": positive(),
    "optimizer.weight_decay": number("a finite number from 0", lambda x: x >= 0),
    "data.image_size": integer(1),
    "job.max_steps": integer(1, null=True),
    "job.max_epochs": positive(null=True),
    "job.batch_size": integer(1),
    "job.accumulate": integer(1),
    "job.warmup_steps": integer(0),
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
}


def check(config: dict[str, Any]) -> None:
    """Hold `config`, plain and resolved, against RULES; 1e3 becomes 1000 where integers belong.

    Raises:
        InputError: naming every key that breaks its rule, the value, and what is allowed.
    """
    wrong = []
    for key, rule in RULES.items():
        *path, name = key.split(".")
        node: Any = config
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            continue
        value = _convert(node[name], rule.type)
        if value is None and rule.null:
            continue
        if not isinstance(value, rule.type) or not rule.test(value):
            null = ", or null" if rule.null else ""
            wrong.append(f"{key}={node[name]}: must be {rule.allowed}{null}.")
        else:
            node[name] = value
    job = config.get("job", {})
    if "max_steps" in job and job["max_steps"] is None and job.get("max_epochs") is None:
        wrong.append("job.max_steps=null, job.max_epochs=null: one of them must say when to stop.")
    if (parts := job.get("accumulate", 1)) and not wrong and job.get("batch_size", 0) % parts:
        wrong.append(
            f"job.batch_size={job['batch_size']}: must be divisible by job.accumulate={parts}."
        )
    steps, T = config.get("sampler", {}).get("steps"), config.get("schedule", {}).get("T")
    if not wrong and steps is not None and T is not None and steps > T:
        wrong.append(f"sampler.steps={steps}: must be at most schedule.T={T}, the steps there are.")
    if wrong:
        raise InputError("\n".join(wrong))


def _convert(value: Any, wanted: type) -> Any:
    """1e3 as 1000, 1 as 1.0; True is no number."""
    if isinstance(value, bool):
        return value if wanted is bool else str(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wanted is float and isinstance(value, int):
        return float(value)
    return value
