"""Keys that follow from others: what the network needs for the data, labels, absolute paths."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm.errors import InputError, listed, nearest, shown
from ddpm.runner.config.build import build
from ddpm.runner.config.rules import AREAS
from ddpm.runner.roles import MEASURING
from ddpm.runner.safe_io.tree import get_path, locate


def model_keys(config: dict[str, Any]) -> None:
    """Set the keys of the network that follow from data and objective: classes, output channels.

    Raises:
        InputError: the command line sets one of them to something else.
    """
    model, data = config.get("model"), config.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict):
        return
    if data.get("attribute") and data.get("num_classes") is None:  # of CelebA
        attributes = data["attribute"]
        data["num_classes"] = 2 ** (1 if isinstance(attributes, str) else len(attributes))
    conditional = data.get("conditional") is True or "out_channels" not in model
    wanted = {"num_classes": data.get("num_classes") if conditional else None}
    leaders = {"num_classes": "data.conditional and data.num_classes"}
    channels = data.get("channels")
    if isinstance(channels, int) and "out_channels" in model:
        learned = get_path(config, "objective.learned_variance") is True
        wanted["out_channels"] = channels * (2 if learned else 1)
        leaders["out_channels"] = "data.channels and objective.learned_variance"
    if config.get("kind") == "trains":  # the others take what the checkpoint's network has
        wanted["augment_dim"] = (config.get("augment") or {}).get("dim", 0)
        leaders["augment_dim"] = "augment"
    defaults = {"num_classes": None, "out_channels": channels, "augment_dim": 0}
    for name in wanted.keys() & model.keys():
        if model[name] not in (defaults[name], wanted[name]):
            raise InputError(f"model.{name}={model[name]}: follows {leaders[name]}; set those.")
        model[name] = wanted[name]


def value_range(config: dict[str, Any]) -> None:
    """Copy data.value_range to the process, which scales the values of pictures."""
    data = config.get("data")
    diffusion = config.get("diffusion")
    if isinstance(data, dict) and isinstance(diffusion, dict) and "value_range" in diffusion:
        wanted = data.get("value_range")
        if diffusion["value_range"] not in (None, wanted):
            raise InputError(
                f"diffusion.value_range={diffusion['value_range']}: follows data.value_range="
                f"{wanted}; set that instead."
            )
        diffusion["value_range"] = wanted


def named_labels(config: dict[str, Any]) -> None:
    """Replace names of classes in job.labels by their numbers.

    Raises:
        InputError: the data set has no class of a name.
    """
    job = config.get("job", {})
    given = job.get("labels")
    values = given if isinstance(given, list) else [given]
    if not any(isinstance(value, str) for value in values) or not takes_labels(config):
        return
    names = build(config["data"], "data").class_names
    data, count = get_path(config, "choices.data"), get_path(config, "data.num_classes")
    if names is None:
        raise InputError(
            f"job.labels={given}: the classes of data={data} have no names here; give numbers from "
            f"0 to {count - 1}."
        )
    for value in values:
        if isinstance(value, str) and value not in names:
            raise InputError(
                f"job.labels={shown(given)}: data={data} has no class {shown(value)!r}; give "
                f"numbers from 0 to {count - 1}, or names: "
                f"{listed([shown(name, 40) for name in names], 10)}."
                f"{nearest(value, names)}"
            )
    job["labels"] = [names.index(v) if isinstance(v, str) else v for v in values]


def labels(config: dict[str, Any]) -> None:
    """Make job.labels a list: by default all classes, in turn; none for interpolation."""
    job = config.get("job", {})
    if isinstance(job.get("labels"), int):
        job["labels"] = [job["labels"]]
    by_default = get_path(config, "choices.job") != "interpolate" and takes_labels(config)
    if "labels" in job and job["labels"] is None and by_default:
        job["labels"] = list(range(config["data"]["num_classes"]))


def scoring(config: dict[str, Any], typed: Iterable[str]) -> None:
    """Leave the groups that score samples out of a training run that scores none.

    Args:
        typed: keys of the command line.

    Raises:
        InputError: the command line sets one of them.
    """
    if config["kind"] != "trains" or get_path(config, "job.evaluate_every") is not None:
        return
    for key in typed:
        if (group := key.partition(".")[0]) in MEASURING:
            raise InputError(
                f"{key}: a training run scores its samples only with job.evaluate_every=<steps>; "
                f"set that, too, or leave {group} out."
            )
    for group in MEASURING:
        config.pop(group, None)
        config["choices"].pop(group, None)


def pipeline(config: dict[str, Any]) -> None:
    """Pictures that exist already need no network to draw them."""
    if config.get("samples") is not None:
        config["pipeline"] = None


def takes_labels(config: dict[str, Any]) -> bool:
    """Whether images can be drawn by class: by the network, or by a classifier that guides it."""
    labelled = get_path(config, "data.conditional") or get_path(config, "guidance.classifier")
    return bool(labelled) and get_path(config, "data.num_classes") is not None


def absolute_paths(config: dict[str, Any]) -> None:
    """Make the paths of data and pictures absolute: the configuration is read elsewhere, too."""
    keys = ("data_dir", "data.root", "data.shards", "data.path", "samples")
    for key in (*keys, "job.image", "job.mask", "job.images"):
        node, name = locate(config, key)
        if node is not None and node.get(name) is not None and not _is_name(key, node):
            node[name] = _absolute(node[name])
    config["data"]["data_dir"] = config["data_dir"]


def _is_name(key: str, node: dict[str, Any]) -> bool:
    """Whether a value is no path: an area of a mask, or a name on the Hub, which looks like one."""
    if key == "job.mask":
        return node["mask"] in AREAS
    on_hub = key == "data.path" and "revision" in node
    return on_hub and not os.path.exists(_absolute(node["path"]))


def _absolute(path: Any) -> Any:
    """A path, or each of a list."""
    if isinstance(path, list):
        return [_absolute(one) for one in path]
    return str(Path(os.path.expanduser(path)).absolute())
