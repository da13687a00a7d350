"""From the composed configuration to the plan of one run: plain data from here on."""

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, NoSuchKey
from ddpm.runner import own_folder, roles
from ddpm.runner.config import (
    base_run,
    catalog,
    checks,
    derive,
    initial,
    output_dir,
    paths,
    redaction,
    renamed_keys,
    rules,
    validate,
    wandb_settings,
)
from ddpm.runner.config.base_run import BaseRun
from ddpm.runner.config.build import check_targets
from ddpm.runner.config.composed import to_dict
from ddpm.runner.config.explain import no_such_key, no_such_option
from ddpm.runner.config.merge import merge
from ddpm.runner.config.plan import Plan
from ddpm.runner.config.redaction import EnvValue
from ddpm.runner.config.request import INHERITED, Request
from ddpm.runner.runs import code_version, run_dir, stored_config
from ddpm.runner.runs.old_names import RENAMED
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.tree import get_path, locate
from ddpm.runner.terminal import shell
from ddpm.trackers.wandb_client import limits

OmegaConf.register_new_resolver("sweep_dir", paths.sweep_dir, replace=True)

logger = logging.getLogger(__name__)

_DATA_DIR = "${oc.env:DDPM_DATA,data}"  # the default in conf/config.yaml


def plan(cfg: DictConfig) -> Plan:
    """Plan the run that Hydra composed.

    Raises:
        InputError: a value is missing, breaks its rule, or contradicts the older run.
    """
    request = Request.of(cfg)
    renamed_keys.in_files(cfg, request.keys)
    _validate(cfg, request)
    env_values = redaction.env_values(cfg)
    try:
        return _plan(cfg, request, env_values)
    except InputError as error:
        raise InputError(redaction.redact(str(error), env_values)) from None


def _plan(cfg: DictConfig, request: Request, env_values: list[EnvValue]) -> Plan:
    """Plan a validated configuration."""
    wires = _wires(cfg)
    config = _resolve(cfg, request)
    allowed = [RENAMED.get(key, key) for key in config.pop("allow_changes", [])]
    base = _base_run(config, request)
    initial.bring(config, base, request.keys)
    unset_wandb_keys = _fill_wandb(config, base, request)
    config, changes = _merge(config, base, request, env_values, allowed)
    if base is not None and base.resumed:
        wandb_settings.keep_stored(config, base.config, unset_wandb_keys)
    config["code"] = code_version.state()
    wandb_settings.normalise(config)
    _derive_and_check(config, request)
    _connect(config, wires)
    stored_config.check_values(config)
    check_targets(config)
    for line in checks.warnings(config):
        logger.warning("%s", line)
    hparams = _hparams(config, wires, env_values)
    config["allow_changes"] = allowed
    output = output_dir.choose(config, hparams, request, base)
    if output.begun and not (base is not None and base.resumed):  # a job of sampling goes on
        for settings in (config, hparams):
            wandb_settings.keep_stored(settings, run_dir.read_config(output.path), unset_wandb_keys)
    output_dir.check_apart(output.path, config, base)
    return Plan(
        config=config,
        hparams=hparams | {"run_id": output.run_id or hparams["run_id"]},
        output=output,
        trains=config["kind"] == "trains",
        changes=changes,
        checkpoint=None if base is None else base.path,
        unset_wandb_keys=unset_wandb_keys,
        own_folder=own_folder.current(),
        **_names(config, request),
    )


def _validate(cfg: DictConfig, request: Request) -> None:
    """Refuse secrets, keys that do not exist, missing values, and files that Hydra misreads."""
    redaction.check_config(cfg)
    _check_overrides(cfg, request)
    validate.drop_unchosen(cfg)
    validate.check(cfg, request.choices)
    validate.check_files(validate.folders(), request.choices)
    if cfg.sweep is not None and not request.multirun:
        raise InputError(
            f"sweep={cfg.sweep}: names a sweep, which needs the flag -m: "
            f"{shell.command('-m', shell.word('sweep', cfg.sweep))} ..."
        )


def _resolve(cfg: DictConfig, request: Request) -> dict[str, Any]:
    """The configuration as plain data, with the choices and overrides that led to it."""
    config: dict[str, Any] = to_dict(cfg, resolve=True)
    config.pop(INHERITED, None)
    paths.normalise(config, request.texts)
    unused = {group for group in roles.MEASURING if group not in config}
    choices = request.choices.items()
    config["choices"] = {k: v for k, v in choices if "/" not in k and k not in unused}
    config["overrides"] = [text for text in request.texts if not text.startswith("sweep=")]
    config["run_id"] = _run_id(request)
    is_default = to_dict(cfg, resolve=False)["data_dir"] == _DATA_DIR
    if is_default and "DDPM_DATA" not in os.environ:
        config["data_dir"] = str(catalog.DATA)  # not the data/ of the current folder
    rules.check({"allow_changes": config.get("allow_changes", [])}, {})
    return config


def _run_id(request: Request) -> str:
    """A new one; or the one that W&B's sweep agent has given to the run it starts."""
    assigned = os.environ.get("WANDB_RUN_ID", "")
    alone = limits.in_sweep() and not request.multirun
    return assigned if alone and stored_config.is_word(assigned) else secrets.token_hex(4)


def _base_run(config: dict[str, Any], request: Request) -> BaseRun | None:
    """The run that resume= or checkpoint= names.

    Raises:
        InputError: it cannot be used.
    """
    resume = _resume(config, request)
    if resume is not None:
        base = base_run.resumed(resume)
        output_dir.check_same(config["output_dir"], base)
        return base
    if (checkpoint := config.get("checkpoint")) is not None:
        return base_run.drawn_from(checkpoint, config["kind"])
    return None


def _resume(config: dict[str, Any], request: Request) -> str | None:
    """The run to resume, if any: with resume=auto, the one in the folder this one would get.

    Raises:
        InputError: resume=auto, and no folder is named.
    """
    resume = config.pop("resume", None)
    if resume != "auto":
        return resume
    folder = config["output_dir"]
    if folder is None and request.multirun:
        return None  # jobs of a sweep are resumed anyway
    if folder is None and "SLURM_JOB_ID" in os.environ:  # kept when the job is queued again
        folder = f"outputs/{config['choices']['job']}/slurm-{os.environ['SLURM_JOB_ID']}"
    if folder is None:
        raise InputError(
            "resume=auto: resumes the run in output_dir, or starts it; set output_dir=... (a Slurm "
            "job has a default)."
        )
    config["output_dir"] = folder
    return folder if listing.exists(Path(folder) / "config.yaml") else None


def _fill_wandb(config: dict[str, Any], base: BaseRun | None, request: Request) -> tuple[str, ...]:
    """Fill W&B settings from its environment variables; return those that the user did not set."""
    if base is not None and base.resumed and "tracker" not in request.keys:
        return ()
    return wandb_settings.fill_from_env(
        config, request.overrides, validate.folders(), config["choices"]
    )


def _merge(
    config: dict[str, Any],
    base: BaseRun | None,
    request: Request,
    env_values: list[EnvValue],
    allowed: list[str],
) -> tuple[dict[str, Any], list[str]]:
    """Merge the configuration over the older run's; add that run's variables to `env_values`."""
    if base is None:
        return config, []
    if base.resumed:
        older, older_values = redaction.unmask_env(base.config, env_values, request.keys)
    else:
        # A checkpoint is untrusted: it may read no environment variables except for data paths.
        data, older_values = redaction.unmask_env({"data": base.config["data"]})
        older = base.config | data
    env_values += older_values
    base.config.update(older)
    config, changes = merge(config, base, request.keys, allowed)
    if base.checkpoint is not None:
        config["checkpoint"] = str(base.checkpoint)
    return config, changes if base.resumed else []


def _derive_and_check(config: dict[str, Any], request: Request) -> None:
    derive.model_keys(config)
    derive.value_range(config)
    derive.named_labels(config)
    rules.check(config, catalog.defaults(config["choices"]))
    checks.check_together(config)
    if "model.attention_resolutions" in request.keys:
        checks.check_attention(config)
    checks.check_average(config, request.keys)
    if not request.multirun:  # the machines that run the jobs may be logged in elsewhere
        wandb_settings.check_login(config)
    derive.labels(config)
    derive.scoring(config, request.keys)
    derive.pipeline(config)
    base_run.record_guide(config)
    derive.absolute_paths(config)


def _hparams(
    config: dict[str, Any], wires: dict[str, str], env_values: list[EnvValue]
) -> dict[str, Any]:
    """The configuration that the run leaves behind: without the keys of this start alone and the
    copies of parts in the job, and with the names of environment variables in place of values.

    Raises:
        InputError: a resumed run could not read it.
    """
    hparams = {key: value for key, value in config.items() if roles.is_kept(key)}
    for part in ("job", "features"):
        if node := hparams.get(part):
            hparams[part] = {k: value for k, value in node.items() if f"{part}.{k}" not in wires}
    hparams = {"version": stored_config.VERSION, **redaction.mask_env(hparams, env_values)}
    stored_config.to_yaml(hparams)
    return hparams


def _names(config: dict[str, Any], request: Request) -> dict[str, Any]:
    """The names of a plan that trackers show."""
    choices, words = config["choices"], config["overrides"]
    several = request.multirun or limits.in_sweep()
    parts = ("model", "data", "schedule", "optimizer", "sampler")
    return {
        "name": " ".join(words) if several else f"{choices['model']}-{choices['data']}",
        "group": request.sweep_dir.name if request.sweep_dir else None,
        "tags": [str(choices[part]) for part in parts],
        "title": limits.title_of(words) if several else "",
    }


def _check_overrides(cfg: DictConfig, request: Request) -> None:
    """Refuse overrides that Hydra accepts and no part would read."""
    for override in request.overrides:
        key = override.key_or_group
        root, _, name = key.rpartition(".")
        options = catalog.groups().get(key)
        if key in roles.MEASURING and f"${{{key}}}" not in to_dict(cfg.job, resolve=False).values():
            raise InputError(
                f"{key}: job={request.choices['job']} measures nothing by it; {key} is for "
                "job=evaluate, and for job=train with job.evaluate_every."
            )
        if options is not None and isinstance(choice := request.choices.get(key), str):
            if choice not in options and not _is_own(key, choice):  # presets are optional to Hydra
                raise InputError(no_such_option(key, choice))
        elif override.is_delete():
            raise InputError(f"~{key}: keys cannot be deleted, only set.")
        elif override.is_add():
            parent = OmegaConf.select(cfg, root) if root else cfg
            target = parent.get("_target_", "") if isinstance(parent, DictConfig) else ""
            # conf/ names every argument of our own parts; `build` checks those of other classes.
            if not target or (
                str(target).startswith("ddpm.") and key not in catalog.known(request.choices)
            ):
                raise NoSuchKey(no_such_key(key))
        elif root == "job" and name in cfg and _is_wired(key, name, request):
            raise InputError(f"{key}: is the run's {name}; set {name}=... instead.")


def _is_wired(key: str, name: str, request: Request) -> bool:
    """Whether a job's key repeats the run's key of that name, rather than being the job's own."""
    wire = f"${{{name}}}"
    return catalog.defaults(request.choices).get(key, wire) == wire


def _is_own(group: str, option: str) -> bool:
    """Whether an option is in a folder that --config-dir names."""
    return any((folder / group / f"{option}.yaml").is_file() for folder in validate.folders())


def _wires(cfg: DictConfig) -> dict[str, str]:
    """The keys that refer to other keys: `{"diffusion.betas": "schedule", "job.model": "model"}`.
    Each node comes after those that it refers to."""
    found = {}
    for part in ("diffusion", "pipeline", "features", "job"):
        for name, value in (to_dict(cfg[part], resolve=False) if cfg.get(part) else {}).items():
            if match := validate.REFERENCE.fullmatch(str(value)):
                found[f"{part}.{name}"] = match[1]
    return found


def _connect(config: dict[str, Any], wires: dict[str, str]) -> None:
    """Give the nodes that refer to other keys the values that these have now."""
    for key, path in wires.items():
        node, name = locate(config, key)
        if node is not None:
            node[name] = get_path(config, path)
