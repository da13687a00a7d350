"""The configurations of diffusers' UNet2DModel and schedulers, and those of our parts.

What one side has and the other lacks is refused, by the name of its key: a network that draws other
images than its author's would be worse than none. Pure data: neither torch nor diffusers is needed.
"""

from collections.abc import Sequence
from typing import Any

from ddpm.errors import shown
from ddpm.limits.image_size import Size, sides
from ddpm.runner.safe_io.plain import Refused

Config = dict[str, Any]

UNET = "UNet2DModel"
RESUNET = "ddpm.models.resunet.ResUNet"
DDPM, DDIM, SOLVER = "DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"
# Values that our network has for these keys; a missing key has the first one, diffusers' default.
FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
PREDICTIONS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
OBJECTIVES = {"eps": "eps.Eps", "x_0": "x_0.X0", "v": "v.V"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned",
}
# "leading" takes x_T for an x_t of less noise: our samplers begin at T - 1 instead.
SPACINGS = {"linspace": "uniform", "leading": "uniform", "trailing": "trailing"}
# Schedules that both have, by diffusers' names; their functions have ours.
SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine"}
# Limits on numbers from elsewhere: they are used before the weights are compared with them.
MAX_LEVELS, MAX_WIDTH, MAX_BLOCKS, MAX_SIZE, MAX_CLASSES, MAX_T = 16, 2**16, 64, 2**14, 10**6, 10**5


def network(config: Config, null_class: bool) -> tuple[Config, Config]:
    """Our network for a UNet2DModel, as a node of our configuration, and {channels, image_size,
    num_classes} of its images.

    Args:
        null_class: whether the last row of the class embedding stands for no label.

    Raises:
        Refused: names the first key that our network does not support.
    """
    _one_of(config.get("_class_name"), "_class_name", (UNET,))
    _check_fixed(config)
    widths = [_integer(w, "block_out_channels", 1, MAX_WIDTH) for w in _widths(config)]
    size = image_size(config)
    groups = _integer(config.get("norm_num_groups", 32), "norm_num_groups", 1, MAX_WIDTH)
    _check_derived(config, groups, 4 * widths[0])
    head_dim = config.get("attention_head_dim", 8)
    if head_dim is not None:
        head_dim = _integer(head_dim, "attention_head_dim", 1, MAX_WIDTH)
    classes = config.get("num_class_embeds")
    if classes is not None:
        classes = _integer(classes, "num_class_embeds", 1 + null_class, MAX_CLASSES) - null_class
    attended = _attended(config, len(widths))
    channels = _integer(config.get("in_channels", 3), "in_channels", 1, MAX_WIDTH)
    node = {
        "_target_": RESUNET,
        "channels": channels,
        "out_channels": _integer(config.get("out_channels", 3), "out_channels", 1, MAX_WIDTH),
        "image_size": size,
        "num_classes": classes,
        "widths": widths,
        "num_res_blocks": _integer(
            config.get("layers_per_block", 2), "layers_per_block", 1, MAX_BLOCKS
        ),
        "attention_resolutions": [min(sides(size)) >> level for level in attended],
        "num_heads": 1,
        "groups": groups,
        "dropout": _float(config.get("dropout", 0.0), "dropout"),
        "head_dim": head_dim,
        "mid_attention": _boolean(config.get("add_attention", True), "add_attention"),
        "norm_eps": _float(config.get("norm_eps", 1e-5), "norm_eps"),
        "downsample_padding": _integer(
            config.get("downsample_padding", 1), "downsample_padding", 0, 1
        ),
        "freq_shift": _float(config.get("freq_shift", 0), "freq_shift"),
        "flip_sin_to_cos": _boolean(config.get("flip_sin_to_cos", True), "flip_sin_to_cos"),
        "null_class": null_class or classes is None,
    }
    return node, {"channels": channels, "image_size": size, "num_classes": classes}


def _check_fixed(config: Config) -> None:
    """Check the keys of `FIXED`."""
    for key, values in FIXED.items():
        value = config.get(key, values[0])
        if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
            raise Refused(f"{key}={shown(value)}: model=resunet has only {_listed(values)}")


def _check_derived(config: Config, groups: int, time_width: int) -> None:
    """Check the keys whose values follow from others in our network."""
    if config.get("attn_norm_num_groups") not in (None, groups):
        raise Refused(
            f"attn_norm_num_groups={shown(config['attn_norm_num_groups'])}: model=resunet has the "
            f"norm_num_groups={groups} of its other norms"
        )
    if config.get("time_embedding_dim") not in (None, time_width):
        raise Refused(
            f"time_embedding_dim={shown(config['time_embedding_dim'])}: model=resunet has four "
            f"times its first width, {time_width}"
        )


def image_size(config: Config) -> Size:
    """The size of the images of a UNet2DModel."""
    size = config.get("sample_size")
    if isinstance(size, list | tuple) and len(size) == 2:
        height, width = (_integer(side, "sample_size", 1, MAX_SIZE) for side in size)
        return height if height == width else [height, width]
    return _integer(size, "sample_size", 1, MAX_SIZE)


def _widths(config: Config) -> Sequence[Any]:
    widths = config.get("block_out_channels", (224, 448, 672, 896))
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= MAX_LEVELS:
        raise Refused(f"block_out_channels={shown(widths)}: must be a list of 1 to {MAX_LEVELS}")
    return widths


def _attended(config: Config, levels: int) -> list[int]:
    """The levels with attention, the same on the way down and up."""
    kinds = {}
    for key, direction in (("down_block_types", "Down"), ("up_block_types", "Up")):
        default = [f"{direction}Block2D"] + [f"Attn{direction}Block2D"] * 3
        types = config.get(key, default if direction == "Down" else default[::-1])
        if not isinstance(types, list | tuple) or len(types) != levels:
            raise Refused(f"{key}={shown(types)}: must name {levels} blocks, one for each width")
        known = (f"{direction}Block2D", f"Attn{direction}Block2D")
        if unknown := [kind for kind in types if kind not in known]:
            raise Refused(f"{key}: model=resunet has no {shown(unknown[0])}, only {_listed(known)}")
        kinds[direction] = [level for level, kind in enumerate(types) if kind == known[1]]
    up = sorted(levels - 1 - level for level in kinds["Up"])
    if kinds["Down"] != up:
        raise Refused(
            "up_block_types: model=resunet has attention at the same levels on the way down and "
            f"up; these are {kinds['Down']} in down_block_types and {up} in up_block_types"
        )
    return up


def unet(model: Config) -> Config:
    """The configuration of UNet2DModel for one of our networks.

    Raises:
        Refused: diffusers has no such network.
    """
    target = str(model.get("_target_"))
    if target != RESUNET:
        raise Refused(
            f"model={shown(target.split('.')[-2:][0])}: diffusers has no such network, only that "
            "of model=resunet. job.format=safetensors exports every network"
        )
    widths, size = list(model["widths"]), model["image_size"]
    smaller, attending = min(sides(size)), model["attention_resolutions"]
    attended = [smaller >> level in attending for level in range(len(widths))]
    classes = model.get("num_classes")
    kinds = ["Attn" if attention else "" for attention in attended]
    return {
        "_class_name": UNET,
        "_diffusers_version": "0.35.0",  # the oldest that the tests' extra allows
        "sample_size": size,
        "in_channels": model["channels"],
        "out_channels": model["out_channels"],
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": _whole(model.get("freq_shift", 1)),
        "flip_sin_to_cos": model.get("flip_sin_to_cos", False),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": model["num_res_blocks"],
        "mid_block_scale_factor": 1,
        "downsample_padding": model.get("downsample_padding", 0),
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": model["dropout"],
        "act_fn": "silu",
        "attention_head_dim": _head_dim(model, attended),
        "norm_num_groups": model["groups"],
        "norm_eps": model.get("norm_eps", 1e-6),
        "resnet_time_scale_shift": "default",
        "add_attention": model.get("mid_attention", True),
        "class_embed_type": None,
        "num_class_embeds": None if classes is None else classes + model.get("null_class", True),
    }


def _head_dim(model: Config, attended: Sequence[bool]) -> int | None:
    """Channels of a head; null: all of a level. UNet2DModel has one number for all levels."""
    if model.get("head_dim") is not None:
        return model["head_dim"]
    if model["num_heads"] == 1:
        return None
    used = {width for width, on in zip(model["widths"], attended, strict=True) if on}
    used |= {model["widths"][-1]} if model.get("mid_attention", True) else set()
    if len(used) > 1:
        raise Refused(
            f"model.num_heads={model['num_heads']}: UNet2DModel has heads of one size at all "
            f"levels, and the levels with attention have widths of {_listed(sorted(used))}; "
            "model.num_heads=1 or model.head_dim=... can go there. job.format=safetensors exports "
            "every network"
        )
    return max(used, default=0) // model["num_heads"] or None


def process(config: Config, unet_channels: tuple[int, int]) -> tuple[Config, Config]:
    """Our schedule, objective, process and sampler for a scheduler, and the options chosen.

    Args:
        unet_channels: of its input and output: twice as many with a learned variance.

    Raises:
        Refused: names the first key that our process does not support.
    """
    kind = _one_of(config.get("_class_name"), "_class_name", (DDPM, DDIM, SOLVER))
    T = _integer(config.get("num_train_timesteps", 1000), "num_train_timesteps", 1, MAX_T)
    schedule, chosen = _schedule(config, T)
    prediction = config.get("prediction_type", "epsilon")
    name = PREDICTIONS[_one_of(prediction, "prediction_type", [*PREDICTIONS])]
    if config.get("thresholding", False) is not False:
        raise Refused("thresholding=true: x_0 is clipped to a fixed interval here")
    variance = config.get("variance_type") or "fixed_small"
    if kind == DDPM:
        _one_of(variance, "variance_type", [*VARIANCES])
    learned = kind != DDIM and variance == "learned_range"
    _check_channels(*unet_channels, learned)
    objective = {
        "_target_": f"ddpm.objectives.{OBJECTIVES[name]}",
        "learned_variance": learned,
        "vlb_weight": 0.001,
        "loss_type": "mse",
    }
    weighting = {"_target_": "ddpm.weightings.uniform.Uniform"}
    clip = _clip(config, kind)
    sampler, sampled_by = _sampler(config, kind, variance, T)
    parts = {
        "schedule": schedule,
        "objective": objective,
        "weighting": weighting,
        "diffusion": {
            "_target_": "ddpm.diffusion.GaussianDiffusion",
            "betas": schedule,
            "objective": objective,
            "weighting": weighting,
            "clip": clip,
        },
        "sampler": sampler,
        "guidance": {"_target_": "ddpm.guidance.none.Unguided"},
    }
    choices = {"schedule": chosen, "objective": name, "weighting": "uniform"}
    return parts, choices | {"sampler": sampled_by, "guidance": "none"}


def _check_channels(before: int, after: int, learned: bool) -> None:
    """Check that the network has an output for each channel, and for its variance if learned."""
    if after != before * (2 if learned else 1):
        raise Refused(
            f"out_channels={after}: must be in_channels={before}, or twice as many for a scheduler "
            "of variance_type=learned_range"
        )


def _clip(config: Config, kind: str) -> list[float] | None:
    """The interval to which x_0 is clipped; None: it is not."""
    if not _boolean(config.get("clip_sample", kind != SOLVER), "clip_sample"):
        return None
    limit = _float(config.get("clip_sample_range", 1.0), "clip_sample_range")
    return [-limit, limit]


def _schedule(config: Config, T: int) -> tuple[Config, str]:
    zero = _boolean(config.get("rescale_betas_zero_snr", False), "rescale_betas_zero_snr")
    if (betas := config.get("trained_betas")) is not None:
        if not isinstance(betas, list) or len(betas) != T:
            raise Refused(f"trained_betas: must be a list of num_train_timesteps={T} numbers")
        listed = [_float(beta, "trained_betas") for beta in betas]
        if zero:
            raise Refused("rescale_betas_zero_snr=true: with trained_betas, which say all")
        return {"_target_": "ddpm.schedules.listed.listed", "T": T, "betas": listed}, "listed"
    name = config.get("beta_schedule", "linear")
    if not isinstance(name, str) or name not in SCHEDULES:
        raise Refused(
            f"beta_schedule={shown(name)}: must be {_listed([*SCHEDULES])}, or trained_betas"
        )
    keys: Config = {
        "beta_start": _float(config.get("beta_start", 0.0001), "beta_start"),
        "beta_end": _float(config.get("beta_end", 0.02), "beta_end"),
        "rescale": False,
    }
    ours = SCHEDULES[name]
    if ours == "cosine":
        keys = {"s": 0.008, "max_beta": 0.999}
    target = {"_target_": f"ddpm.schedules.{ours}.{ours}", "T": T}
    return target | keys | {"zero_terminal_snr": zero}, ours


def _sampler(config: Config, kind: str, variance: str, T: int) -> tuple[Config, str]:
    """Our sampler and its name: all T steps of DDPM, at most 50 of DDIM and 25 of DPM-Solver."""
    if kind == DDPM:
        node: Config = {"steps": None, "variance": VARIANCES[variance], "spacing": "uniform"}
        return {"_target_": "ddpm.samplers.ddpm.DDPM", **node}, "ddpm"
    spacing = config.get("timestep_spacing", "leading" if kind == DDIM else "linspace")
    spacing = SPACINGS[_one_of(spacing, "timestep_spacing", [*SPACINGS])]
    if kind == DDIM:
        node = {"steps": min(50, T), "eta": 0.0, "spacing": spacing}
        return {"_target_": "ddpm.samplers.ddim.DDIM", **node}, "ddim"
    for key, value in (("algorithm_type", "dpmsolver++"), ("solver_type", "midpoint")):
        if config.get(key, value) != value:
            raise Refused(f"{key}={shown(config[key])}: sampler=dpm_solver has only {value}")
    order = _integer(config.get("solver_order", 2), "solver_order", 1, 2)
    node = {"steps": min(25, T), "order": order, "stochastic": False, "spacing": spacing}
    return {"_target_": "ddpm.samplers.dpm_solver.DPMSolver", **node}, "dpm_solver"


def scheduler(hparams: Config, named: Config) -> Config:
    """The configuration of a scheduler for our objective and sampler.

    DDPMScheduler for sampler=ddpm and for networks with a learned variance, which DDIMScheduler
    cannot use; DDIMScheduler, which is deterministic, for all others.

    Args:
        named: how diffusers names the betas, see `diffusers_folder.name_betas`.

    Raises:
        Refused: diffusers has none with this objective.
    """
    choices, sampler = hparams["choices"], hparams.get("sampler", {})
    objective = choices.get("objective") or "eps"
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if objective not in predictions:
        raise Refused(
            f"objective={shown(objective)}: diffusers' DDPMScheduler and DDIMScheduler have only "
            f"{_listed([*predictions])}. job.format=safetensors exports every network"
        )
    learned = hparams.get("objective", {}).get("learned_variance") is True
    ancestral = str(sampler.get("_target_", "")).endswith(".DDPM") or learned
    clip = hparams["diffusion"].get("clip", [-1.0, 1.0])
    spacing = "trailing" if sampler.get("spacing") == "trailing" else "linspace"
    common = {
        "_class_name": DDPM if ancestral else DDIM,
        "_diffusers_version": "0.35.0",
        **named,
        "prediction_type": predictions[objective],
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else float(clip[1]),
        "thresholding": False,
        "timestep_spacing": spacing,
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }
    if not ancestral:
        return common | {"set_alpha_to_one": True}
    return common | {"variance_type": _variance(sampler, learned, named["num_train_timesteps"])}


def _variance(sampler: Config, learned: bool, T: int) -> str:
    """The variance of `samplers.ddpm.DDPM`, by diffusers' name."""
    variance = sampler.get("variance", "auto")
    if learned:
        return "learned_range"
    if variance == "auto":
        return "fixed_large" if sampler.get("steps") in (None, T) else "fixed_small"
    return str(variance)


def _listed(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _one_of(value: Any, key: str, known: Sequence[str]) -> str:
    if value not in known:
        raise Refused(f"{key}={shown(value)}: must be {_listed(known)}")
    return str(value)


def _integer(value: Any, key: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Refused(f"{key}={shown(value)}: must be a whole number from {low} to {high}")
    return value


def _float(value: Any, key: str) -> float:
    if not _number(value) or not 0 <= value < 1e6:
        raise Refused(f"{key}={shown(value)}: must be a number from 0 to below 1e6")
    return float(value)


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise Refused(f"{key}={shown(value)}: must be true or false")
    return value
