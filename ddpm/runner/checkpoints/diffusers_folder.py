"""Folders of diffusers' DDPMPipeline and DDIMPipeline, read as checkpoints and written as exports.

    model_index.json                       names the classes of the parts
    unet/config.json                       UNet2DModel
    unet/diffusion_pytorch_model.safetensors, or .bin
    scheduler/scheduler_config.json        betas, objective, clipping
    hydra-ddpm.json                        only ours: run, step, data, sampler; diffusers ignores it
    README.md                              the model card

The first pipelines of the Hub have the files of both parts in the folder itself. Everything is
untrusted; diffusers itself is not needed.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import InputError, one_line, shown
from ddpm.runner.checkpoints import diffusers_config, safetensors_file
from ddpm.runner.checkpoints.diffusers_config import DDIM
from ddpm.runner.checkpoints.summary import FORMAT, PIPELINE, SCHEMA
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.torch_archive import read_archive
from ddpm.runner.safe_io.yaml_json import MAX_YAML, read_json_file

if TYPE_CHECKING:
    from torch import Tensor

OURS = "hydra-ddpm.json"
CARD = "README.md"
WEIGHTS = "diffusion_pytorch_model"  # .safetensors or .bin
PARTS = {"unet": "config.json", "scheduler": "scheduler_config.json"}
MAX_JSON = 4 * MAX_YAML  # a list of betas takes some 25 bytes for each
# Attention before diffusers 0.17 -> since.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(.*\battentions\.\d+\.)({'|'.join(_OLD_ATTENTION)})\.(weight|bias)")

# An empty data set of conf/data/folder.yaml: the pictures that a network from elsewhere was trained
# on are not known.
UNKNOWN_DATA: dict[str, Any] = {
    "_target_": "ddpm.data.folder.Folder",
    "root": None,
    "split": "train",
    "holdout": 0.1,
    "channels": 3,
    "image_size": 64,
    "num_classes": None,
    "conditional": False,
    "resize_mode": "crop",
    "background": 255,
    "flip": False,
    "on_error": "stop",
}


def read_head(index: Path) -> tuple[int, str, dict[str, Any]]:
    """Step, run id and configuration of a pipeline, without its weights, as if it were a run.

    Args:
        index: its model_index.json.

    Raises:
        InputError: our parts cannot be set to do the same; names the file and the key.
    """
    about = _about(index.parent)
    return about["step"], about["run_id"], about["hparams"]


def read(index: Path) -> dict[str, Any]:
    """A pipeline as the state of a checkpoint.

    Raises:
        InputError: as in `read_head`, or the weights cannot be read.
    """
    folder = index.parent
    about = _about(folder)
    with _answering(folder):
        tensors = _weights(folder)
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        **{entry: about[entry] for entry in ("step", "run_id", "hparams")},
        **({"average": about["average"]} if "average" in about else {}),
        about["weights"]: tensors,
        "diffusion": {},
    }


@contextlib.contextmanager
def _answering(folder: Path) -> Iterator[None]:
    try:
        yield
    except (Refused, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"checkpoint={folder}: {shown(reason, 400)}.") from None


def _about(folder: Path) -> dict[str, Any]:
    """Step, run, kind of weights and configuration."""
    with _answering(folder):
        index = _json(folder, folder / PIPELINE)
        if not isinstance(index.get("unet"), list) or not isinstance(index.get("scheduler"), list):
            raise Refused(f"{PIPELINE}: names no unet and scheduler; it is no DDPMPipeline")
        unet, scheduler = (_config(folder, part) for part in PARTS)
        ours = _ours(folder)
        null_class = ours is not None and _has_null_class(ours["hparams"], unet)
        with _within("unet/config.json"):
            model, images = diffusers_config.network(unet, null_class)
        with _within("scheduler/scheduler_config.json"):
            channels = model["channels"], model["out_channels"]
            parts, choices = diffusers_config.process(scheduler, channels)
        data = UNKNOWN_DATA | images | {"conditional": images["num_classes"] is not None}
        hparams = {
            "version": 1,
            "seed": 0,
            "kind": "trains",
            "model": model,
            "data": data,
            **parts,
            "choices": {"job": "train", "model": "resunet", "data": "folder", **choices},
        }
        if ours is None:
            digest = hashlib.sha256(json.dumps([unet, scheduler], sort_keys=True).encode())
            run_id = f"diffusers-{digest.hexdigest()[:8]}"
            return {"step": 0, "run_id": run_id, "weights": "ema", "hparams": hparams}
        kept = ("step", "run_id", "weights", "average")
        entries = {entry: ours[entry] for entry in kept if entry in ours}
        return entries | {"hparams": _with_ours(hparams, ours["hparams"])}


def _with_ours(hparams: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what diffusers has no place for: data, sampler, guidance, weighting
    and the loss. Network, betas and objective stay those that diffusers reads."""
    for key in ("channels", "image_size"):
        if ours["data"].get(key) != hparams["data"][key]:
            raise Refused(
                f"{OURS}: its data.{key}={shown(ours['data'].get(key))} is not that of unet, "
                f"{hparams['data'][key]}"
            )
    chosen = ours["choices"]
    parts: dict[str, Any] = {
        part: ours[part] for part in ("data", "sampler", "guidance") if part in ours
    }
    names: dict[str, Any] = {part: chosen[part] for part in parts if part in chosen}
    if "weighting" in ours and "weighting" in chosen:
        parts["weighting"], names["weighting"] = ours["weighting"], chosen["weighting"]
        parts["diffusion"] = hparams["diffusion"] | {"weighting": ours["weighting"]}
    if "objective" in ours and chosen.get("objective") == hparams["choices"]["objective"]:
        learned = hparams["objective"]["learned_variance"]
        parts["objective"] = ours["objective"] | {"learned_variance": learned}
        parts["diffusion"] = parts.get("diffusion", hparams["diffusion"]) | {
            "objective": parts["objective"]
        }
    extra = {key: ours[key] for key in ("version", "seed") if key in ours}
    return hparams | extra | parts | {"choices": hparams["choices"] | names}


def _has_null_class(ours: dict[str, Any], unet: dict[str, Any]) -> bool:
    classes = ours["data"].get("num_classes")
    return type(classes) is int and unet.get("num_class_embeds") == classes + 1


@contextlib.contextmanager
def _within(name: str) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise Refused(f"{name}: {error}") from None


def _place(folder: Path, part: str) -> Path:
    """The folder of a part: its own, or that of the whole pipeline."""
    return folder / part if (folder / part).is_dir() else folder


def files(names: Sequence[str]) -> list[str]:
    """The files of a repository that `read` opens."""
    places = {part: f"{part}/" if f"{part}/{file}" in names else "" for part, file in PARTS.items()}
    weights = [f"{places['unet']}{WEIGHTS}{suffix}" for suffix in (".safetensors", ".bin")]
    known = [PIPELINE, OURS, *(f"{places[part]}{file}" for part, file in PARTS.items())]
    found = [name for name in weights if name in names]
    return [name for name in known if name in names] + found[:1]


def _config(folder: Path, part: str) -> dict[str, Any]:
    return _json(folder, _place(folder, part) / PARTS[part])


def _json(folder: Path, path: Path) -> dict[str, Any]:
    """The object in a JSON file of a pipeline."""
    name = path.relative_to(folder).as_posix()
    with _within(name):
        try:
            content = read_json_file(path, MAX_JSON)
        except FileNotFoundError:
            raise Refused("there is no such file") from None
        if not isinstance(content, dict):
            raise Refused("not an object")
        if "${" in json.dumps(content):
            raise Refused("refers to what is not in it, by ${...}")
    return content


def _ours(folder: Path) -> dict[str, Any] | None:
    """Our exporter's own file, checked like the metadata of an export; None: it is missing."""
    if not (folder / OURS).exists():
        return None
    about = _json(folder, folder / OURS)
    with _within(OURS):
        needed = [entry for entry in safetensors_file.ENTRIES if entry != "sha256"]
        if missing := [entry for entry in needed if entry not in about]:
            raise Refused(f"it lacks {', '.join(missing)}")
        try:
            return about | {"hparams": safetensors_file.check_about({**about, "sha256": "0" * 64})}
        except InputError as error:  # of a newer version
            raise Refused(str(error).rstrip(".")) from None


def _weights(folder: Path) -> dict[str, "Tensor"]:
    """The tensors of the network, with diffusers' present names."""
    place = _place(folder, "unet")
    for suffix, load in ((".safetensors", safetensors_file.read_foreign), (".bin", _read_bin)):
        path = place / f"{WEIGHTS}{suffix}"
        if path.exists():
            with _within(path.relative_to(folder).as_posix()):
                return _renamed(load(path))
    if (place / f"{WEIGHTS}.safetensors.index.json").exists():
        raise Refused("unet: its weights are in several files; save them as one (max_shard_size)")
    raise Refused(f"unet: there is no {WEIGHTS}.safetensors or {WEIGHTS}.bin")


def _read_bin(path: Path) -> dict[str, "Tensor"]:
    import torch

    content = read_archive(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise Refused("not the weights of a network")
    return {name: value.detach() for name, value in content.items()}


def _renamed(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if old := _OLD_NAME.fullmatch(name):
            name = f"{old[1]}{_OLD_ATTENTION[old[2]]}.{old[3]}"
        if name in renamed:
            raise Refused(f"{shown(name)} twice, by its old and its new name")
        renamed[name] = tensor
    return renamed


def write(folder: Path, state: dict[str, Any], weights: str, betas: list[float], card: str) -> Path:
    """Write a pipeline into `folder`; return its model_index.json, which is written last.

    Args:
        state: of a checkpoint.
        weights: which of its weights: "ema", an average by its length as "ema:0.05", or "model".
        betas: of its process, (T,).
        card: the text of README.md.

    Raises:
        InputError: diffusers has no such network, or the files cannot be written.
    """
    from safetensors.torch import save

    unet, scheduler = configs(state["hparams"], betas)
    about = safetensors_file.entries_of(state, weights)
    tensors = {
        name: safetensors_file.copy(tensor) for name, tensor in network(state[weights]).items()
    }
    try:
        for part in PARTS:
            (folder / part).mkdir(exist_ok=True)
        files: dict[str, bytes] = {
            f"unet/{WEIGHTS}.safetensors": save(tensors, {"format": "pt"}),
            "unet/config.json": _text(unet),
            "scheduler/scheduler_config.json": _text(scheduler),
            OURS: _text(about),
            CARD: card.encode(),
            PIPELINE: _text(_index(unet, scheduler)),
        }
        for name, content in files.items():
            atomic.write(folder / name, content, durable=True)
        atomic.sync_folder(folder)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: the export could not be written ({one_line(error)})."
        ) from error
    return folder / PIPELINE


def _index(unet: dict[str, Any], scheduler: dict[str, Any]) -> dict[str, Any]:
    """The content of model_index.json: the classes of the pipeline and of its parts."""
    kind = "DDIMPipeline" if scheduler["_class_name"] == DDIM else "DDPMPipeline"
    return {
        "_class_name": kind,
        "_diffusers_version": unet["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", unet["_class_name"]],
    }


def size(folder: Path) -> int:
    """Bytes of the weights of a pipeline."""
    return (folder / "unet" / f"{WEIGHTS}.safetensors").stat().st_size


def configs(hparams: dict[str, Any], betas: list[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of UNet2DModel and of the scheduler for a run of ours.

    Raises:
        InputError: diffusers has no such network or objective.
    """
    try:
        unet = diffusers_config.unet(hparams["model"])
        return unet, diffusers_config.scheduler(hparams, name_betas(betas))
    except Refused as error:
        raise InputError(f"job.format=diffusers: {error}.") from None


def network(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The weights that UNet2DModel has, too. It lacks the embedding of augmentations, which adds
    nothing while sampling."""
    return {name: x for name, x in tensors.items() if not name.startswith("augment_embedding.")}


def name_betas(betas: list[float]) -> dict[str, Any]:
    """The keys by which a scheduler makes these betas, (T,): one of diffusers' schedules, if it
    agrees in float32, else the list itself."""
    import torch

    wanted = torch.tensor(betas, dtype=torch.float64)
    T, ends = len(betas), {"beta_start": _short(betas[0]), "beta_end": _short(betas[-1])}
    first, last = ends.values()
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = ((u + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    known = {
        "linear": torch.linspace(first, last, T, dtype=torch.float64),
        "scaled_linear": torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64) ** 2,
        "squaredcos_cap_v2": (1 - f[1:] / f[:-1]).clamp(max=0.999),
    }
    for name, made in known.items():
        if torch.allclose(made, wanted, rtol=1e-6, atol=1e-9):
            kept = ends if name != "squaredcos_cap_v2" else {}
            return {"num_train_timesteps": T, "beta_schedule": name, **kept, "trained_betas": None}
    return {"num_train_timesteps": T, "beta_schedule": "linear", "trained_betas": list(betas)}


def _short(beta: float) -> float:
    """The shortest number that float32 rounds to this: 0.02, not 0.019999999552965164."""
    return float(f"{beta:.7g}")


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
