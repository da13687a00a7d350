"""The limits of the keys of all parts, stated once: constructors check them, and the command line
does before it imports torch."""

import math
from typing import Any

from ddpm.limits.rule import (
    Rule,
    below_1,
    between_0_and_1,
    boolean,
    from_0,
    from_0_to_1,
    integer,
    integer_or,
    integers,
    is_finite,
    number,
    one_of,
    path,
    positive,
)

LONGEST = 0.28  # sigma_rel; a plain mean over the run has 0.289
VARIANCES = ("auto", "fixed_large", "fixed_small", "learned")  # of the steps back
SPACINGS = ("uniform", "quadratic", "trailing", "log_snr", "karras")


def different_numbers(values: list[Any]) -> bool:
    """Whether they are numbers, at least one, and all different."""
    return 0 < len({float(n) for n in values if is_finite(n)}) == len(values)


def lengths(least: int) -> Rule:
    """The rule for lengths of averages of ema=power."""
    few = "two or more different numbers" if least > 1 else "a list of different numbers"
    return Rule(
        list,
        f"{few} above 0 and at most {LONGEST}, like [0.05, 0.1]",
        lambda x: len(x) >= least and different_numbers(x) and all(0 < n <= LONGEST for n in x),
    )


MODEL = {
    **{k: integer(1) for k in ("num_blocks", "num_res_blocks", "groups", "patch_size")},
    **{k: integer(1, null=True) for k in ("depth", "width", "num_heads", "head_dim")},
    "num_classes": integer(1, null=True),
    "bottleneck": integer(1),
    "size": one_of("S", "B", "L", "XL", "H", null=True),
    "widths": Rule(
        list,
        "a list of whole numbers from 1",
        lambda x: len(x) > 0 and all(type(n) is int and n >= 1 for n in x),
    ),
    "attention_resolutions": integers(),
    "dropout": below_1(),
    "norm_eps": positive(),
    "downsample_padding": Rule(int, "0 or 1", lambda x: x in (0, 1)),
}
SCHEDULE = {
    # The upper limits: a number in an untrusted checkpoint must not exhaust memory.
    "T": integer(1, 100_000),
    "hidden": integer(1, 100_000),
    "s": from_0(),
    "tau": positive(),
    "max_beta": between_0_and_1(),
    "end": number("a finite number", lambda x: True),  # of sigmoid, too
    "rescale": boolean(),
    "zero_terminal_snr": boolean(),
}
OBJECTIVE = {
    "learned_variance": boolean(),
    "vlb_weight": positive(),
    "loss_type": one_of("mse", "l1", "huber"),
    "sigma_data": Rule(
        float | str,
        "a finite number above 0, or data",
        lambda x: x == "data" or (isinstance(x, float) and 0 < x < math.inf),
        options=("data",),
    ),
}
WEIGHTING = {
    "gamma": positive(),
    "k": positive(),
    "sigma_data": positive(),
    "max_weight": positive(null=True),
    "quantity": one_of("eps", "x_0", "v", "velocity"),
}
TIMESTEPS = {
    "std": positive(),
    "history": integer(1),
    "uniform_share": number("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "stratified": boolean(),
}
EMA = {
    "decays": Rule(
        list,
        "a list of different numbers from 0 to below 1, like [0.999, 0.9999]",
        lambda x: different_numbers(x) and all(0 <= d < 1 for d in x),
    ),
    "sigma_rel": lengths(2),
    "snapshots": integer(1),
}
AUGMENT = {"probability": from_0_to_1(), "color": boolean()}
SAMPLER = {
    "steps": integer(1, null=True),
    "spacing": one_of(*SPACINGS),
    "rho": positive(),
    "eta": from_0_to_1(),
    "variance": one_of(*VARIANCES),
    "order": Rule(int, "1, 2 or 3", lambda x: x in (1, 2, 3)),
    "stochastic": boolean(),
    **{k: from_0() for k in ("churn", "churn_min", "churn_noise")},
    "churn_max": positive(null=True),
}
GUIDANCE = {
    "scale": from_0(),
    "rescale": from_0_to_1(),
    "classifier": path(null=True),
    "weak": path(null=True),
    "weights": one_of("ema", "model"),
    "interval": Rule(
        list,
        "two rising numbers from 0, like [0.2, 3]",
        lambda x: len(x) == 2 and different_numbers(x) and 0 <= x[0] < x[1],
        null=True,
    ),
}
DATA = {
    "image_size": Rule(
        int | list,
        "a whole number from 1, or [height, width]",
        lambda x: (
            all(type(side) is int and side >= 1 for side in x) and len(x) == 2
            if isinstance(x, list)
            else type(x) is int and x >= 1
        ),
    ),
    "num_classes": integer(1, null=True),
    "resize_mode": one_of("crop", "pad", "resize"),
    "background": integer(0, 255),
    "center_crop": integer(1, null=True),
    "flip": boolean(),
    "conditional": boolean(),
    "value_range": Rule(
        list,
        "two finite numbers, the lower one first, like [0, 65535]",
        lambda x: len(x) == 2 and all(map(is_finite, x)) and x[0] < x[1],
        null=True,
    ),
    "attribute": Rule(
        str | list, "an attribute, or a list of them", lambda x: len(x) > 0, null=True
    ),
    "splits": one_of("hash", "named"),
    "holdout": below_1(),
    "test_share": below_1(),
    "on_error": one_of("stop", "skip"),
}
FEATURES = {
    "weights": path(null=True),
    "size": integer(32),
    "resize": one_of("legacy", "clean"),
    "arch": one_of("vits14", "vitb14", "vitl14"),
}
REFERENCE = one_of("train", "held_out", "both")
METRICS = {
    "bound": {
        "num_images": integer(2),
        "steps": integer_or("all", 2),
        "variance": one_of(*VARIANCES),
    },
    "copies": {
        "quantile": between_0_and_1(),
        "flips": boolean(),
        "shifts": integer(0),
        "gallery": integer(0),
    },
    "fd": {"reference": REFERENCE, "groups": integer(2)},
    "is": {"splits": integer(1)},
    "kd": {"reference": REFERENCE},
    "loss": {"num_images": integer(2), "bins": integer(1)},
    "prdc": {"k": integer(1), "reference": REFERENCE},
}
OPTIMIZER = {
    "lr": positive(),
    "eps": positive(),
    "betas": Rule(
        list,
        "two numbers from 0 to below 1",
        lambda x: len(x) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in x),
    ),
    "weight_decay": from_0(),
}
LIMITS = {
    "model": MODEL,
    "schedule": SCHEDULE,
    "objective": OBJECTIVE,
    "weighting": WEIGHTING,
    "timesteps": TIMESTEPS,
    "ema": EMA,
    "augment": AUGMENT,
    "sampler": SAMPLER,
    "guidance": GUIDANCE,
    "data": DATA,
    "features": FEATURES,
    **{f"metric.{metric}": rules for metric, rules in METRICS.items()},
    "optimizer": OPTIMIZER,
}


def check_limits(group: str, **values: Any) -> None:
    """Check the arguments of a part, as `check_limits("sampler", eta=eta)`.

    Raises:
        InputError: one is outside its limits; says which key, its value and what is allowed.
    """
    for name, value in values.items():
        LIMITS[group][name].check(f"{group}.{name}", value)
