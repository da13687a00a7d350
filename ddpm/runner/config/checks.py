"""Rules between keys: what does not go together is refused, what is probably a mistake noted."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm.errors import InputError
from ddpm.limits.image_size import sides
from ddpm.runner.config.derive import takes_labels
from ddpm.runner.roles import DECAYS_BY_LENGTH
from ddpm.runner.safe_io.tree import get_path

# Files of pictures, by their endings, and what reads them.
READERS = {
    ".zip": "data=zip data.path",
    ".parquet": "data=parquet data.path",
    ".tar": "data=webdataset data.shards",
}
# Keys of the network that repeat keys of the data.
REPEATED = {
    "model.channels": "data.channels",
    "model.image_size": "data.image_size",
}


def check_together(config: dict[str, Any]) -> None:
    """Check keys against each other, after each has passed its own rule.

    Raises:
        InputError: names the keys, their values and what is allowed.
    """
    wrong = [
        *_check_source(config),
        *_check_duration(config),
        *_check_batch(config),
        *_check_timesteps(config),
        *_check_folder(config),
        *_check_classifier_training(config),
        *_check_augment(config),
        *_check_last_step(config),
        *_check_bits(config),
        *_check_apple_gpu(config),
        *_check_variance(config),
        *(_check_classes(config) or _check_labels(config)),
        *_check_repeated(config),
    ]
    if wrong:
        raise InputError("\n".join(wrong[:5]))


def _check_source(config: dict[str, Any]) -> list[str]:
    """An evaluation scores either a checkpoint or pictures."""
    if "samples" not in config:
        return []
    checkpoint, samples = config.get("checkpoint"), config["samples"]
    if (checkpoint is None) == (samples is None):
        given = "are given both" if samples is not None else "are not set"
        return [
            f"checkpoint, samples: {given}; name what to score, either by checkpoint=<run> or by "
            "samples=<folder of pictures>."
        ]
    if samples is not None and config["job"].get("labels") is not None:
        return ["job.labels: is for checkpoint=...; the pictures of samples=... are drawn already."]
    if not config.get("metric"):
        return ["metric=[]: name at least one, like 'metric=[fd,kd]'."]
    return []


def _check_duration(config: dict[str, Any]) -> list[str]:
    job = config.get("job", {})
    validated = ("eval/loss", "eval/loss_raw", "eval/accuracy")  # others are of evaluations
    figure = job.get("keep_best") or "eval/loss"
    if job.get("patience") is not None and figure in validated and not job.get("validate_every"):
        return [
            f"job.patience={job['patience']}: needs job.validate_every, whose figures it reads."
        ]
    if "evaluate_samples" in job and figure not in validated and not job.get("evaluate_every"):
        return [f"job.keep_best={figure}: needs job.evaluate_every, after which it is measured."]
    if "max_steps" in job and job["max_steps"] is None and job.get("max_epochs") is None:
        return ["job.max_steps=null, job.max_epochs=null: one of them must be a number."]
    return []


def _check_batch(config: dict[str, Any]) -> list[str]:
    """A batch must split evenly into micro-batches and over devices."""
    job = config.get("job", {})
    parts, batch = job.get("accumulate_grad_batches", 1), job.get("batch_size", 0)
    parts = 1 if parts == "auto" else parts
    if parts > batch > 0:
        return [
            f"job.accumulate_grad_batches={parts}: must be at most job.batch_size={batch}, the "
            "images of a step."
        ]
    if batch % parts:
        return [
            f"job.batch_size={batch}: must be divisible by job.accumulate_grad_batches={parts}."
        ]
    return _check_shares(config, batch, parts)


def _check_timesteps(config: dict[str, Any]) -> list[str]:
    """Steps of the sampler and of interpolation must be steps of the schedule."""
    wrong, job = [], config.get("job", {})
    steps, T = get_path(config, "sampler.steps"), get_path(config, "schedule.T")
    if {"sampler", "pipeline"} & job.keys() and steps is not None and T is not None and steps > T:
        wrong.append(f"sampler.steps={steps}: must be at most schedule.T={T}.")
    if (t := job.get("t")) is not None and T is not None and t >= T:
        wrong.append(f"job.t={t}: must be from 0 to {T - 1}, below schedule.T={T}.")
    return wrong


def _check_folder(config: dict[str, Any]) -> list[str]:
    """data=folder needs a folder, in jobs that read its images."""
    job = config.get("job", {})
    if get_path(config, "choices.data") != "folder" or "data" not in job:
        return []
    if job.get("image") or job.get("images"):  # the data set only frames the pictures given
        return []
    root = get_path(config, "data.root")
    if not root:
        return ["data.root: must be set to the folder of the images: data.root=/path/to/a/folder"]
    if not os.path.isdir(os.path.expanduser(root)):
        reader = READERS.get(Path(root).suffix.lower())
        instead = f"; such a file is read by {reader}=..." if reader else ""
        return [f"data.root: no such folder: {str(Path(root).absolute())!r}{instead}"]
    return []


def _check_repeated(config: dict[str, Any]) -> list[str]:
    wrong = []
    for key, leader in REPEATED.items():
        value, leads = get_path(config, key), get_path(config, leader)
        if value is not None and leads is not None and value != leads:
            wrong.append(f"{key}={value}: follows {leader}={leads}; set that instead.")
    return wrong


def _check_shares(config: dict[str, Any], batch: int, parts: int) -> list[str]:
    """A batch must split evenly over the devices, if their number is configured."""
    hardware = config.get("hardware", {})
    counts = hardware.get("devices"), hardware.get("num_nodes", 1)
    if not all(type(count) is int and count >= 1 for count in counts):
        return []
    shares = math.prod(counts) * parts
    # Images to draw need not be shared evenly.
    trains = "accumulate_grad_batches" in config.get("job", {})
    if not trains or "TORCHELASTIC_RUN_ID" in os.environ or batch % shares == 0:
        return []  # torchrun decides the number of processes
    near = [n for n in (batch // shares * shares, (batch // shares + 1) * shares) if n > 0]
    auto = config["job"]["accumulate_grad_batches"] == "auto"
    split = "" if auto else f" x job.accumulate_grad_batches={parts}"
    return [
        f"job.batch_size={batch}: not divisible by {math.prod(counts)} devices{split}; the nearest "
        f"that are: {', '.join(map(str, near))}."
    ]


def warnings(config: dict[str, Any]) -> list[str]:
    """A line for each setting that is allowed and probably a mistake."""
    job, lines = config.get("job", {}), []
    steps, ramp = job.get("max_steps"), job.get("ema_ramp")
    for key, decay in _decays(config) if None not in (steps, ramp) else []:
        if (left := _left_of_start(steps, decay, ramp)) > 0.1:
            lines.append(
                f"{key}={decay:g}: after {steps} steps the averaged weights, which draw the "
                f"images, are still {100 * left:.0f} % initial weights; lower it, or set "
                "job.ema_ramp=10."
            )
    lines += _late_decay(job)
    if problem := _without_attention(config):
        lines.append(f"{problem} Only the middle has attention.")
    cores = os.cpu_count() or 1
    if (workers := job.get("num_workers") or 0) > cores:
        lines.append(f"job.num_workers={workers}: slower, as this machine has {cores} cores.")
    threads = get_path(config, "hardware.threads")
    if isinstance(threads, int) and threads > cores:
        lines.append(f"hardware.threads={threads}: slower, as this machine has {cores} cores.")
    return lines


def _late_decay(job: dict[str, Any]) -> list[str]:
    """A decay of the learning rate that ends with the run must begin before that."""
    steps, decay = job.get("max_steps"), job.get("lr_decay")
    key = "warmup_steps" if job.get("lr_decay_start") is None else "lr_decay_start"
    if decay not in DECAYS_BY_LENGTH or steps is None or job[key] + 1 < steps:
        return []
    instead = ""
    if key == "lr_decay_start" and job["warmup_steps"] + 1 < steps:
        instead = ", or set job.lr_decay_start=null (after the warm-up)"
    return [
        f"job.{key}={job[key]}: the run ends after job.max_steps={steps} steps, before "
        f"job.lr_decay={decay} begins: the learning rate does not fall. Lower it{instead}."
    ]


def check_attention(config: dict[str, Any]) -> None:
    """Check that the network has a level with one of the attention resolutions.

    Raises:
        InputError: it has none; names the resolutions of its levels.
    """
    if problem := _without_attention(config):
        raise InputError(problem)


def check_average(config: dict[str, Any], typed: Iterable[str]) -> None:
    """Check that keys of the job's average are not given where the group ema has another.

    Raises:
        InputError: one is.
    """
    chosen = get_path(config, "choices.ema")
    unused = {"several": ["job.ema_decay"], "power": ["job.ema_decay", "job.ema_ramp"]}
    own = {"several": "ema.decays", "power": "ema.sigma_rel"}
    if given := [key for key in unused.get(str(chosen), []) if key in typed]:
        raise InputError(
            f"{given[0]}: is not used by ema={chosen}, whose lengths are {own[chosen]}; leave it "
            "out, or choose ema=simple."
        )


def _decays(config: dict[str, Any]) -> list[tuple[str, float]]:
    """The decays of the averages and their keys; none of averages whose length grows."""
    if get_path(config, "choices.ema") == "several":
        return [("ema.decays", decay) for decay in config["ema"]["decays"]]
    decay = get_path(config, "job.ema_decay")
    simple = get_path(config, "choices.ema") != "power" and decay is not None
    return [("job.ema_decay", decay)] if simple else []


def _without_attention(config: dict[str, Any]) -> str | None:
    """A line if none of the resolutions with attention is that of a level of the network, of which
    each has half the pixels of the one before; None too where the network has no such keys."""
    wanted, widths = (get_path(config, f"model.{k}") for k in ("attention_resolutions", "widths"))
    size = get_path(config, "data.image_size")
    if not isinstance(wanted, list) or not isinstance(widths, list) or size is None:
        return None
    size = min(sides(size))
    patch_size = get_path(config, "model.patch_size") or 1
    if size % patch_size:
        return None  # the network refuses it
    levels = [size // patch_size >> level for level in range(len(widths))]
    if not wanted or set(wanted) & set(levels):
        return None
    return (
        f"model.attention_resolutions={wanted}: no level of this network has one of these; "
        f"they have {', '.join(map(str, levels))} pixels."
    )


def _left_of_start(steps: int, decay: float, ramp: float) -> float:
    """The share of the initial weights in the average after `steps` steps. Step n multiplies it by
    min(decay, (1 + n) / (ramp + n)). Below 0.1 the exact value does not matter."""
    left, n = 1.0, 0
    while n < steps and left > 0.1:
        kept = (1 + n) / (ramp + n)
        if kept >= decay:  # from here on it is always decay
            return left * decay ** (steps - n)
        left, n = left * kept, n + 1
    return left


def _check_classifier_training(config: dict[str, Any]) -> list[str]:
    """The classifier and its job belong together, and that job trains no schedule."""
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
    return wrong


def _check_augment(config: dict[str, Any]) -> list[str]:
    """augment needs job=train, a network that takes it as an input, and a fixed schedule."""
    choices = config.get("choices", {})
    job, model, augment = (choices.get(k, "none") for k in ("job", "model", "augment"))
    if augment == "none" or config.get("kind") != "trains":
        return []
    if job != "train":
        return [f"augment={augment}: job={job} cannot use it; leave it out."]
    if "augment_dim" not in config["model"]:
        return [
            f"augment={augment}: model={model} takes no parameters of an augmentation "
            "(it has no augment_dim); leave it out."
        ]
    if choices.get("schedule") == "learned":
        return [f"augment={augment}: schedule=learned cannot use it; choose a fixed one."]
    return []


def _check_last_step(config: dict[str, Any]) -> list[str]:
    """Where x_T is pure noise, the network must not predict eps."""
    choices, wrong = config.get("choices", {}), []
    if get_path(config, "schedule.zero_terminal_snr") and choices.get("objective") == "eps":
        wrong.append(
            "schedule.zero_terminal_snr=true: x_T is then pure noise, which says nothing of x_0: "
            "objective=eps cannot be sampled from; choose objective=v or x_0."
        )
    rectified, end = choices.get("schedule") == "rectified", get_path(config, "schedule.end")
    if rectified and not 0 < end <= 1:
        wrong.append(f"schedule.end={end}: must be above 0 and at most 1 for schedule=rectified.")
    if rectified and end == 1 and choices.get("objective") == "eps":
        wrong.append(
            "schedule.end=1: x_T is then pure noise, which says nothing of x_0: objective=eps "
            "cannot be sampled from; choose objective=velocity, or schedule.end=0.999."
        )
    return wrong


def _check_bits(config: dict[str, Any]) -> list[str]:
    """Some losses, and job=play, are for pictures of 8 bits."""
    span, channels = get_path(config, "data.value_range"), get_path(config, "data.channels")
    deep = span is not None and list(span) != [0, 255]
    of_8_bits = {
        "objective.learned_variance=true": get_path(config, "objective.learned_variance"),
        "schedule=learned": get_path(config, "choices.schedule") == "learned",
    }
    wrong = [
        f"{key}: its loss is that of 8-bit pictures, and data.value_range={span}; leave it out."
        for key, on in of_8_bits.items()
        if on and deep
    ]
    if get_path(config, "choices.job") == "play" and (channels not in (1, 3) or deep):
        wrong.append(
            "job=play: shows pictures of 8 bits and 1 or 3 channels; the checkpoint's have "
            f"data.channels={channels}, data.value_range={span}. Use job=sample."
        )
    return wrong


def _check_apple_gpu(config: dict[str, Any]) -> list[str]:
    """A learned schedule is computed in float64, which Apple GPUs lack."""
    accelerator, schedule = (
        get_path(config, key) for key in ("hardware.accelerator", "choices.schedule")
    )
    if (accelerator, schedule) != ("mps", "learned"):
        return []
    return [
        "hardware.accelerator=mps: schedule=learned needs float64, which Apple GPUs lack; choose "
        "hardware=cpu, or a fixed schedule."
    ]


def _check_variance(config: dict[str, Any]) -> list[str]:
    """The sampler uses a learned variance only of networks that have one."""
    learned = get_path(config, "objective.learned_variance")
    if get_path(config, "sampler.variance") != "learned" or learned:
        return []
    return [
        "sampler.variance=learned: the network has none (objective.learned_variance=false); "
        "choose auto."
    ]


def _check_classes(config: dict[str, Any]) -> list[str]:
    """Settings that need classes or a guiding classifier must have them."""
    choices, wrong = config.get("choices", {}), []
    name, classes = choices.get("data"), get_path(config, "data.num_classes")
    conditional = get_path(config, "data.conditional")
    if classes is None:
        needs = {
            "data.conditional=true": conditional,
            "job=train_classifier": choices.get("job") == "train_classifier",
        }
        hint = "give data.num_classes, if it has" if name == "folder" else "leave it out"
        wrong = [f"{key}: data={name} has no classes; {hint}." for key, on in needs.items() if on]
    guidance = choices.get("guidance")
    if guidance == "classifier" and get_path(config, "guidance.classifier") is None:
        wrong.append(
            "guidance.classifier: must be set to the folder of a job=train_classifier run."
        )
    if guidance == "autoguidance" and get_path(config, "guidance.weak") is None:
        wrong.append(
            "guidance.weak: must be set to the folder of a weaker job=train run, or to an earlier "
            "checkpoint."
        )
    guides = guidance in ("classifier", "classifier_free")
    if guides and choices.get("job") == "interpolate" and config["job"].get("labels") is None:
        wrong.append(
            f"job.labels: must be set to the class that guidance={guidance} leads to; or set "
            "guidance=none."
        )
    if conditional and get_path(config, "model.null_class") is False:
        if guidance == "classifier_free":
            wrong.append(
                "guidance=classifier_free: the network has no class that stands for no label "
                "(model.null_class=false); choose guidance=none."
            )
        if config["job"].get("label_dropout"):
            wrong.append(
                f"job.label_dropout={config['job']['label_dropout']}: the network has no class "
                "that stands for no label (model.null_class=false); set it to 0."
            )
    if guidance == "classifier_free" and not conditional and not wrong:
        trained = "the checkpoint was" if config.get("kind") == "draws" else "the network is"
        wrong.append(
            f"guidance=classifier_free: {trained} trained without labels (data.conditional=false)."
        )
    return wrong


def _check_labels(config: dict[str, Any]) -> list[str]:
    """job.labels must name classes of the data set."""
    name, classes = get_path(config, "choices.data"), get_path(config, "data.num_classes")
    if (value := get_path(config, "job.labels")) is None:
        return []
    labels = value if isinstance(value, list) else [value]
    if not takes_labels(config):
        return [
            f"job.labels={value}: the checkpoint was trained without labels "
            "(data.conditional=false); guidance=classifier can guide it."
        ]
    if bad := [n for n in labels if type(n) is not int or not 0 <= n < classes]:
        return [
            f"job.labels={value}: {bad[0]} is not one of 0 to {classes - 1}, the {classes} "
            f"classes of data={name}."
        ]
    return []
