"""From the composed configuration to the plan of one run: plain data from here on.

A run that goes on, and one that samples, take their parts from the run they build on. What the
command line says of those parts must agree with it; what it says of the others counts.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm import rules, run_dir
from ddpm.build import check_targets
from ddpm.errors import InputError
from ddpm.mistakes import no_such_key

# What the weights were trained with: no command line can change it afterwards.
TRAINED_WITH = ("model", "schedule", "diffusion", "data")
RESULT_DEPENDS_ON = (*TRAINED_WITH, "optimizer", "seed")
_WIRE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Plan:
    """One run, as plain data.

    Args:
        config: resolved; `config["job"]` holds all the job is built from.
        hparams: the same without the copies of parts in the job: for files and trackers.
        output_dir: the run's folder, to be made unless `resume`.
        unique: whether the folder may get another name where this one is taken.
        resume: whether to go on with the run in `output_dir`.
        checkpoint: the file, or the folder whose newest checkpoint, the run starts from.
        name, group, tags: what trackers call the run.
    """

    config: dict[str, Any]
    hparams: dict[str, Any]
    output_dir: Path
    unique: bool
    resume: bool
    checkpoint: Path | None
    name: str
    group: str | None
    tags: list[str]


def plan(cfg: DictConfig) -> Plan:
    """Plan the run that Hydra composed.

    Raises:
        InputError: a value is missing, breaks its rule, or contradicts the run built on.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise InputError("\n".join(f"{key}: must be given, as {key}=..." for key in missing))
    hydra_config = HydraConfig.get()
    _check_added(cfg, hydra_config)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    config["choices"] = {k: v for k, v in hydra_config.runtime.choices.items() if "/" not in k}
    config["overrides"] = list(hydra_config.overrides.task)
    config["run_id"] = secrets.token_hex(4)
    resume, source = config.pop("resume", None), config.get("checkpoint")
    if resume is not None:
        stored = _stored_run(_run_folder(resume))
        config = _continue(config, stored, hydra_config, RESULT_DEPENDS_ON, f"resume={resume}")
    elif source is not None:
        stored = _stored_parts(Path(source))
        config = _continue(config, stored, hydra_config, TRAINED_WITH, f"checkpoint={source}")
    config["data"]["data_dir"] = config["data_dir"]
    wires = _wires(cfg.job)
    config["job"] |= {key: _look_up(config, path) for key, path in wires.items()}
    check_targets(config)
    rules.check(config)

    hparams = {key: value for key, value in config.items() if key != "output_dir"}
    hparams["job"] = {key: value for key, value in config["job"].items() if key not in wires}
    choices = config["choices"]
    parts = ("model", "data", "schedule", "optimizer", "sampler")
    sweep = hydra_config.mode == RunMode.MULTIRUN
    name = f"{choices['model']}-{choices['data']}"
    return Plan(
        config=config,
        hparams=hparams,
        output_dir=_output_dir(config, hydra_config, resume, name),
        unique=config["output_dir"] is None and not sweep,
        resume=resume is not None,
        checkpoint=None if resume is source is None else Path(resume or source),
        name=" ".join(config["overrides"]) if sweep else name,
        group=Path(hydra_config.sweep.dir).name if sweep else None,
        tags=[str(choices[part]) for part in parts],
    )


def _output_dir(
    config: dict[str, Any], hydra_config: DictConfig, resume: str | None, name: str
) -> Path:
    """`output_dir`, or the run resumed, or the sweep's folder for this job, or a new one."""
    if resume is not None:
        return _run_folder(resume)
    if config["output_dir"] is not None:
        return Path(config["output_dir"])
    if hydra_config.mode == RunMode.MULTIRUN:
        return Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path("outputs") / config["choices"]["job"] / name / now


def _run_folder(resume: str) -> Path:
    """The run's folder, also where one of its checkpoints is named."""
    path = Path(resume)
    return path.parents[1] if path.suffix == ".pt" else path


def _stored_run(folder: Path) -> dict[str, Any]:
    """The configuration of a training run."""
    stored = run_dir.read_config(folder)
    job = stored.get("choices", {}).get("job")
    if job != "train":
        raise InputError(f"resume={folder}: not a training run (job={job}).")
    return stored


def _stored_parts(path: Path) -> dict[str, Any]:
    """What a checkpoint knows of the run that wrote it."""
    from ddpm import checkpoint

    hparams = checkpoint.find(path)[1]["hparams"]
    return {key: hparams[key] for key in (*TRAINED_WITH, "sampler", "choices")}


def _overrides(hydra_config: DictConfig) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))


def _check_added(cfg: DictConfig, hydra_config: DictConfig) -> None:
    """Refuse `+key=value` where nobody would read it: outside the nodes that build something."""
    for override in _overrides(hydra_config):
        key = override.key_or_group
        if override.is_add() and key not in hydra_config.runtime.choices:
            parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
            if not isinstance(parent, DictConfig) or "_target_" not in parent:
                raise InputError(no_such_key(key))


def _continue(
    config: dict[str, Any],
    stored: dict[str, Any],
    hydra_config: DictConfig,
    fixed: tuple[str, ...],
    source: str,
) -> dict[str, Any]:
    """`stored` with what the command line says of parts that are not `fixed`.

    Raises:
        InputError: the command line contradicts a fixed one.
    """
    chosen, wrong = config["choices"], []
    merged = config | stored
    merged["job"] = config["job"] | stored.get("job", {})
    merged["choices"] = chosen | stored["choices"] | {"job": chosen["job"]}
    for key in [override.key_or_group for override in _overrides(hydra_config)]:
        root = key.split(".")[0]
        if root in ("resume", "checkpoint", "output_dir"):
            continue
        if root in (*fixed, "experiment"):
            group = key in chosen
            given = chosen[key] if group else _look_up(config, key)
            trained = stored["choices"].get(key) if group else _look_up(stored, key)
            if given != trained:
                wrong.append(f"{key}={given}: {source} was trained with {trained}; leave it out.")
        elif key in chosen:
            if key != "job":
                merged[key] = config[key]
                merged["choices"][key] = chosen[key]
        else:
            _set(merged, key, _look_up(config, key))
    if wrong:
        raise InputError("\n".join(wrong))
    return merged


def _wires(job: DictConfig) -> dict[str, str]:
    """The job's arguments that stand for another node: `{"model": "model", ...}`."""
    raw = OmegaConf.to_container(job, resolve=False)
    found = {key: _WIRE.fullmatch(str(value)) for key, value in raw.items()}
    return {key: match[1] for key, match in found.items() if match}


def _look_up(config: dict[str, Any], path: str) -> Any:
    node: Any = config
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _set(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[name] = value
