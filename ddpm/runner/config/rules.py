"""What the values of a configuration may be, checked before anything is built or touched."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from ddpm.errors import InputError, nearest
from ddpm.trackers.wandb_client import limits


@dataclass(frozen=True)
class Rule:
    """A value's type, what is allowed in words and as a test, and whether null is."""

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


def words() -> Rule:
    """YAML takes no, off and on for booleans, so that quotes are needed around them."""
    return Rule(str, "text, in quotes where YAML reads something else", lambda x: True, True)


def boolean() -> Rule:
    return Rule(bool, "true or false", lambda x: True)


AREAS = ("left", "right", "top", "bottom", "center")  # masks that need no file

RULES = {
    "seed": Rule(int, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
    "output_dir": path(null=True),
    "data_dir": path(),
    "model.patch_size": integer(1),
    "schedule.T": integer(1),
    "schedule.rescale": boolean(),
    "schedule.zero_terminal_snr": boolean(),
    "objective.learned_variance": boolean(),
    "objective.vlb_weight": positive(),
    "objective.loss_type": one_of("mse", "l1", "huber"),
    "weighting.gamma": positive(),
    "sampler.steps": integer(1, null=True),
    "sampler.eta": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "sampler.variance": one_of("auto", "fixed_large", "fixed_small", "learned"),
    "sampler.spacing": one_of("uniform", "quadratic", "trailing", "log_snr"),
    "sampler.stochastic": boolean(),
    "sampler.order": Rule(int, "1 or 2", lambda x: x in (1, 2)),
    "guidance.scale": number("a finite number from 0", lambda x: x >= 0),
    "guidance.rescale": number("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "guidance.classifier": path(null=True),
    "optimizer.lr": positive(),
    "optimizer.eps": positive(),
    "optimizer.betas": Rule(
        list,
        "two numbers from 0 to below 1",
        lambda x: len(x) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in x),
    ),
    "optimizer.weight_decay": number("a finite number from 0", lambda x: x >= 0),
    "data.image_size": integer(1),
    "data.conditional": boolean(),
    "data.on_error": one_of("stop", "skip"),
    "model.widths": integers(),
    "model.attention_resolutions": integers(),
    "tracker.wandb.entity": Rule(str, limits.PROJECT, limits.is_project, null=True),
    "tracker.wandb.project": Rule(
        str, f"{limits.PROJECT} (a user or team is tracker.wandb.entity)", limits.is_project
    ),
    **{f"tracker.wandb.{k}": words() for k in ("group", "name", "notes", "job_type")},
    "tracker.wandb.tags": Rule(list, limits.TAGS, limits.are_tags),
    "tracker.wandb.mode": one_of("online", "offline", "disabled", null=True),
    "tracker.wandb.artifacts": one_of("none", "last", "all"),
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
    "job.evaluate_every": integer(1, null=True),
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
    "job.weights": one_of("ema", "model"),
    "job.max_nonfinite_steps": integer(1),
    "allow_changes": Rule(
        list, "a list of keys, like [optimizer.lr]", lambda x: all(isinstance(k, str) for k in x)
    ),
    "job.format": one_of("safetensors"),
}
# Keys that say what another key says, and nothing else.
FOLLOW = {
    "model.channels": "data.channels",
    "model.image_size": "data.image_size",
}
SAMPLING = ("sample", "interpolate", "inpaint")


def follow(config: dict[str, Any]) -> None:
    """Set what the network must have for the data and the objective: classes, output channels.

    Raises:
        InputError: the command line says otherwise.
    """
    model, data = config.get("model"), config.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        return
    conditional = data.get("conditional") is True or "out_channels" not in model
    wanted = {"num_classes": data.get("num_classes") if conditional else None}
    leaders = {"num_classes": "data.conditional and data.num_classes"}
    channels = data.get("channels")
    if isinstance(channels, int) and "out_channels" in model:
        learned = look_up(config, "objective.learned_variance") is True
        wanted["out_channels"] = channels * (2 if learned else 1)
        leaders["out_channels"] = "data.channels and objective.learned_variance"
    defaults = {"num_classes": None, "out_channels": channels}
    for name in wanted.keys() & model.keys():
        if model[name] not in (defaults[name], wanted[name]):
            raise InputError(f"model.{name}={model[name]}: follows {leaders[name]}; set those.")
        model[name] = wanted[name]


def fill_in(config: dict[str, Any]) -> None:
    """Make job.labels a list: by default all classes, in turn; none for interpolation."""
    job = config.get("job", {})
    if isinstance(job.get("labels"), int):
        job["labels"] = [job["labels"]]
    by_default = look_up(config, "choices.job") != "interpolate" and _takes_labels(config)
    if "labels" in job and job["labels"] is None and by_default:
        job["labels"] = list(range(config["data"]["num_classes"]))


def _takes_labels(config: dict[str, Any]) -> bool:
    labelled = look_up(config, "data.conditional") or look_up(config, "guidance.classifier")
    return bool(labelled) and look_up(config, "data.num_classes") is not None


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
    parts, batch = job.get("accumulate_grad_batches", 1), job.get("batch_size", 0)
    parts = 1 if parts == "auto" else parts
    if parts > batch > 0:
        wrong.append(
            f"job.accumulate_grad_batches={parts}: must be at most job.batch_size={batch}, the "
            "images of a step."
        )
    elif batch % parts:
        wrong.append(
            f"job.batch_size={batch}: must be divisible by job.accumulate_grad_batches={parts}."
        )
    else:
        wrong += _check_shares(config, batch, parts)
    steps, T = look_up(config, "sampler.steps"), look_up(config, "schedule.T")
    draws = look_up(config, "choices.job") not in ("train_classifier", "export")
    if draws and steps is not None and T is not None and steps > T:
        wrong.append(f"sampler.steps={steps}: must be at most schedule.T={T}, the steps there are.")
    if (t := job.get("t")) is not None and T is not None and t >= T:
        wrong.append(f"job.t={t}: must be from 0 to {T - 1}, below schedule.T={T}.")
    reads = (*("train", "train_classifier"), "interpolate", "inpaint")
    if look_up(config, "choices.data") == "folder" and look_up(config, "choices.job") in reads:
        root = look_up(config, "data.root")
        if not root:
            wrong.append("data.root: say where the images are, data.root=/path/to/a/folder")
        elif not os.path.isdir(os.path.expanduser(root)):
            wrong.append(f"data.root: there is no folder {str(Path(root).absolute())!r}")
    wrong += _check_process(config) + _check_labels(config)
    for key, leader in FOLLOW.items():
        value, leads = look_up(config, key), look_up(config, leader)
        if value is not None and leads is not None and value != leads:
            wrong.append(f"{key}={value}: follows {leader}={leads}; set that instead.")
    return wrong


def _check_shares(config: dict[str, Any], batch: int, parts: int) -> list[str]:
    """A batch that cannot be shared out, where the number of devices is known before they are."""
    hardware = config.get("hardware", {})
    counts = hardware.get("devices"), hardware.get("num_nodes", 1)
    if not all(type(count) is int and count >= 1 for count in counts):
        return []
    shares = math.prod(counts) * parts
    # Images to draw need not be shared evenly.
    trains = "accumulate_grad_batches" in config.get("job", {})
    if not trains or "TORCHELASTIC_RUN_ID" in os.environ or batch % shares == 0:
        return []  # torchrun has a number of its own
    near = [n for n in (batch // shares * shares, (batch // shares + 1) * shares) if n > 0]
    auto = config["job"]["accumulate_grad_batches"] == "auto"
    split = "" if auto else f" x job.accumulate_grad_batches={parts}"
    return [
        f"job.batch_size={batch}: not divisible by {math.prod(counts)} devices{split}; the nearest "
        f"that are: {', '.join(map(str, near))}."
    ]


def doubts(config: dict[str, Any]) -> list[str]:
    """What may be meant, and probably is not: a line each."""
    job, lines = config.get("job", {}), []
    steps, decay, ramp = (job.get(key) for key in ("max_steps", "ema_decay", "ema_ramp"))
    if None not in (steps, decay, ramp) and (left := _left_of_start(steps, decay, ramp)) > 0.1:
        lines.append(
            f"job.ema_decay={decay:g}: after {steps} steps the average, which images are drawn "
            f"with, is still {100 * left:.0f} % the start; lower it, or set job.ema_ramp=10."
        )
    wanted, levels = _attention(config)
    if wanted and not set(wanted) & set(levels):
        lines.append(
            f"model.attention_resolutions={wanted}: no level of this network has one of these: "
            f"they have {', '.join(map(str, levels))} pixels. Only the middle has attention."
        )
    cores = os.cpu_count() or 1
    if (workers := job.get("num_workers") or 0) > cores:
        lines.append(f"job.num_workers={workers}: more than the {cores} cores here, and slower.")
    threads = look_up(config, "hardware.threads")
    if isinstance(threads, int) and threads > cores:
        lines.append(f"hardware.threads={threads}: more than the {cores} cores here, and slower.")
    return lines


def check_attention(config: dict[str, Any]) -> None:
    """See that one of the resolutions that were asked for is one of the network's.

    Raises:
        InputError: none is; names the levels there are.
    """
    wanted, levels = _attention(config)
    if wanted and not set(wanted) & set(levels):
        raise InputError(
            f"model.attention_resolutions={wanted}: no level of this network has one of these; "
            f"they have {', '.join(map(str, levels))} pixels."
        )


def _attention(config: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The resolutions with attention, and those of the levels of the network: halved each time.
    Both are empty where the network has none."""
    wanted, widths = (look_up(config, f"model.{k}") for k in ("attention_resolutions", "widths"))
    size = look_up(config, "data.image_size")
    if not isinstance(wanted, list) or not isinstance(widths, list) or not isinstance(size, int):
        return [], []
    patch_size = look_up(config, "model.patch_size") or 1
    if size % patch_size:
        return [], []  # the network refuses it
    size //= patch_size
    return wanted, [size >> level for level in range(len(widths))]


def _left_of_start(steps: int, decay: float, ramp: float) -> float:
    """The share of the first weights in their average, in which step n keeps
    min(decay, (1 + n) / (ramp + n)) of what was; any number below 0.1 where that is reached."""
    left, n = 1.0, 0
    while n < steps and left > 0.1:
        kept = (1 + n) / (ramp + n)
        if kept >= decay:  # from here on it is always decay
            return left * decay ** (steps - n)
        left, n = left * kept, n + 1
    return left


def _check_process(config: dict[str, Any]) -> list[str]:
    """Parts that do not go together."""
    choices, wrong = config.get("choices", {}), []
    job, model = choices.get("job"), choices.get("model")
    if job == "train_classifier" and model != "classifier":
        wrong.append(f"model={model}: job=train_classifier trains model=classifier; leave it out.")
    if job == "train_classifier" and choices.get("schedule") == "learned":
        wrong.append(
            "schedule=learned: job=train_classifier trains no schedule; choose a fixed one."
        )
    if job == "train" and model == "classifier":
        wrong.append("model=classifier: draws no images; it is for job=train_classifier.")
    if look_up(config, "schedule.zero_terminal_snr") and choices.get("objective") == "eps":
        wrong.append(
            "schedule.zero_terminal_snr=true: x_T is then pure noise, which says nothing of x_0: "
            "objective=eps cannot be sampled from; choose objective=v or x_0."
        )
    learned = look_up(config, "objective.learned_variance")
    if look_up(config, "sampler.variance") == "learned" and not learned:
        wrong.append(
            "sampler.variance=learned: the network has none (objective.learned_variance=false); "
            "choose auto."
        )
    return wrong


def _check_labels(config: dict[str, Any]) -> list[str]:
    """Labels that are asked for and not there."""
    choices, wrong = config.get("choices", {}), []
    name, classes = choices.get("data"), look_up(config, "data.num_classes")
    conditional = look_up(config, "data.conditional")
    if classes is None:
        needs = {
            "data.conditional=true": conditional,
            "job=train_classifier": choices.get("job") == "train_classifier",
        }
        hint = "give data.num_classes, if it has" if name == "folder" else "leave it out"
        wrong = [f"{key}: data={name} has no classes; {hint}." for key, on in needs.items() if on]
    guidance = choices.get("guidance")
    if guidance == "classifier" and look_up(config, "guidance.classifier") is None:
        wrong.append(
            "guidance.classifier: must be given, the folder of a job=train_classifier run."
        )
    guides = guidance in ("classifier", "classifier_free")
    if guides and choices.get("job") == "interpolate" and config["job"].get("labels") is None:
        wrong.append(
            f"job.labels: must be given, the class that guidance={guidance} leads to; or "
            "guidance=none."
        )
    if guidance == "classifier_free" and not conditional and not wrong:
        what = "the checkpoint was" if choices.get("job") in SAMPLING else "the network is"
        wrong.append(
            f"guidance=classifier_free: {what} trained without labels (data.conditional=false)."
        )
    return wrong or _check_asked(config)


def _check_asked(config: dict[str, Any]) -> list[str]:
    """The labels that images are to have, in job.labels."""
    name, classes = look_up(config, "choices.data"), look_up(config, "data.num_classes")
    if (asked := look_up(config, "job.labels")) is None:
        return []
    labels = asked if isinstance(asked, list) else [asked]
    if not _takes_labels(config):
        return [
            f"job.labels={asked}: the checkpoint was trained without labels "
            "(data.conditional=false); guidance=classifier can guide it."
        ]
    if bad := [n for n in labels if type(n) is not int or not 0 <= n < classes]:
        return [
            f"job.labels={asked}: {bad[0]} is not one of 0 to {classes - 1}, the {classes} "
            f"classes of data={name}."
        ]
    return []


def look_up(config: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _convert(value: Any, wanted: type | UnionType) -> Any:
    """1e3 as 1000, 1 as 1.0, 5 as "5"; True is no number and no text."""
    if isinstance(value, bool):
        return str(value) if wanted in (int, float) else value
    if wanted == int | str:  # numbers stay numbers
        wanted = int
    if wanted is str and isinstance(value, int):
        return str(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wanted is float and isinstance(value, int):
        return float(value)
    return value
