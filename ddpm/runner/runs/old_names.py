"""Names of earlier versions, and the names that stand for them today.

Stored configurations are read with today's names, command lines and files of users may hold old
ones for one more version (`config/renamed_keys.py`). docs/upgrading.md lists them for users. An
entry may go once no run of that version is worth continuing.
"""

from typing import Any

from ddpm.runner.safe_io.tree import locate

# `_target_` names: old -> new.
MOVED = {
    "ddpm.hardware.fabric": "ddpm.runner.distributed.fabric.fabric",
    "ddpm.guidance.classifier.from_run": "ddpm.guidance.classifier.from_checkpoint",
}
# Keys of a configuration, by their dotted names: old -> new.
RENAMED = {
    "job.accumulate": "job.accumulate_grad_batches",
    "job.decay_steps": "job.lr_decay_start",
    "job.max_skips": "job.max_nonfinite_steps",
    "job.mixes": "job.num_mixtures",
    "job.label": "job.labels",
    "data.fit": "data.resize_mode",
    "weighting.loss_type": "objective.loss_type",
    "resume_allow": "allow_changes",
}
# Groups: old -> new; also the keys of `choices` in a stored configuration.
RENAMED_GROUPS = {
    "budget": "job_data",
    "size": "model_data",
    "rate": "job_model_data_optimizer",
}
# The options that runs had before these groups existed.
FORMER_CHOICES = {"objective": "eps", "weighting": "uniform", "guidance": "none"}
FORMER_CHOICES |= {"timesteps": "uniform", "ema": "simple", "augment": "none"}
# Groups that runs did not have at first, as they held then: where they still do, they are no part
# of the identity of a sweep's job.
FORMER_PARTS: dict[str, dict[str, Any]] = {
    "timesteps": {"_target_": "ddpm.timesteps.uniform.Uniform", "stratified": False},
    "ema": {"_target_": "ddpm.ema.simple.Simple", "_partial_": True},
}
# The kinds of jobs, for configurations that do not say it.
FORMER_KINDS = {"train": "trains", "train_classifier": "trains", "export": "converts"}
FORMER_KINDS |= dict.fromkeys(("sample", "interpolate", "inpaint"), "draws")
# Keys that runs did not have at first, and what held then.
FORMER_VALUES: dict[str, Any] = {
    "data.holdout": 0.0,
    "job.patience": None,
    "job.lr_decay": "inverse",
    "sampler.rho": 7.0,
    "sampler.churn": 0.0,
    "sampler.churn_min": 0.0,
    "sampler.churn_max": None,
    "sampler.churn_noise": 1.0,
    "guidance.interval": None,
    "data.test_share": 0.0,
    "data.splits": "hash",
    "data.attribute": None,
    "data.value_range": None,
    "diffusion.value_range": None,
    "model.augment_dim": 0,
    "init_from": None,
    "init_weights": "ema",
    "init_allow": [],
    "model.head_dim": None,
    "model.mid_attention": True,
    "model.norm_eps": 1e-6,
    "model.downsample_padding": 0,
    "model.freq_shift": 1,
    "model.flip_sin_to_cos": False,
    "model.null_class": True,
}
# The process holds copies of the parts that it is made of.
_WITHIN = {
    f"diffusion.{old}": f"diffusion.{new}"
    for old, new in RENAMED.items()
    if old.partition(".")[0] in ("weighting", "objective")
}
_FIRST = {new: old for old, new in (RENAMED | _WITHIN).items() if new != "job.labels"}


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a stored configuration with today's names.

    Args:
        config: plain data that passed `stored_config.check_shape`.
    """
    config = _moved(config)
    for old, new in (RENAMED | _WITHIN).items():
        _move_key(config, old, new)
    job = config.get("job")
    if isinstance(job, dict) and type(job.get("labels")) is int:
        job["labels"] = [job["labels"]]
    choices = config.get("choices")
    if isinstance(choices, dict):
        config["choices"] = {RENAMED_GROUPS.get(group, group): c for group, c in choices.items()}
        job = choices.get("job")
        if isinstance(job, str) and job in FORMER_KINDS:
            config.setdefault("kind", FORMER_KINDS[job])
    words = config.get("overrides")
    if isinstance(words, list):
        config["overrides"] = [override(word) if isinstance(word, str) else word for word in words]
    return config


def keep_former_values(config: dict[str, Any], stored: dict[str, Any]) -> None:
    """Take keys that a stored configuration does not know out of one that continues it."""
    for key in FORMER_VALUES:
        (node, name), (then, _) = locate(config, key), locate(stored, key)
        if node is not None and then is not None and name not in then:
            node.pop(name, None)


def override(word: str) -> str:
    """An override of the command line, `key=value`, with today's name of its key."""
    key, equals, value = word.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    key = key.lstrip("+~")
    return f"{sign}{(RENAMED | RENAMED_GROUPS).get(key, key)}{equals}{value}"


def first_names(keys: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and their values with the first names that keys and targets had: the identity of
    a sweep's job is made of these, so that sweeps of earlier versions go on."""
    first_target = {new: old for old, new in MOVED.items()}
    return {
        _FIRST.get(key, key): first_target.get(value, value) if key.endswith("_target_") else value
        for key, value in keys.items()
    }


def _moved(node: Any) -> Any:
    if isinstance(node, dict):
        node = {key: _moved(value) for key, value in node.items()}
        if isinstance(node.get("_target_"), str):
            node["_target_"] = MOVED.get(node["_target_"], node["_target_"])
        return node
    return [_moved(value) for value in node] if isinstance(node, list) else node


def _move_key(config: dict[str, Any], old: str, new: str) -> None:
    """Move a value within nested dictionaries; a value that the new key has already stays."""
    (source, old_name), (target, new_name) = locate(config, old), locate(config, new)
    if source is not None and old_name in source and target is not None:
        target.setdefault(new_name, source.pop(old_name))
