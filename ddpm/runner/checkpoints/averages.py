"""The weights that `job.weights` asks for in a checkpoint: stored, or rebuilt from snapshots."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.ema.profiles import LONGEST, Profile, combination, exponent
from ddpm.errors import InputError
from ddpm.runner.checkpoints import snapshots

Weights = dict[str, Tensor]

WORST, NOTED = 0.1, 0.02  # errors of a profile above which it is refused, and logged

logger = logging.getLogger(__name__)


class Recipe(NamedTuple):
    """Stored averages and their factors, whose sum is an average of another length.

    Args:
        parts: (snapshot, or None for the checkpoint itself, length, factor).
        error: of the combined profile, relative to the wanted one, in the L2 norm.
        snapshots: how many there are.
    """

    parts: list[tuple[Path | None, str, float]]
    error: float
    snapshots: int


def find(state: dict[str, Any], weights: str, file: Path) -> Weights:
    """The weights of a checkpoint that `weights` names: "ema", "model", or an average by its length
    as "ema:0.05". With ema=power that may be any length, by the snapshots in the run's folder.

    Raises:
        InputError: the checkpoint has no such weights, and they cannot be rebuilt.
    """
    if weights in state:
        return state[weights]
    if not weights.startswith("ema:"):
        held = "ema" if "ema" in state else "model"
        hint = "leave it out" if held == "ema" else "use job.weights=model"
        raise InputError(
            f"job.weights={weights}: checkpoint={file} holds only the {held} weights; {hint}."
        )
    if (name := _tracked(state, weights)) is not None:
        return state.get("averages", {}).get(name, state["ema"])
    recipe = find_recipe(state, weights, file)
    if recipe.error > NOTED:
        logger.warning("%s: %s", weights, _origin(recipe))
    return _mixed(state, recipe, file)


def origin(state: dict[str, Any], weights: str, file: Path) -> str:
    """Where an average comes from, in words."""
    if _tracked(state, weights) is not None:
        return "tracked during the run"
    return _origin(find_recipe(state, weights, file))


def lengths(state: dict[str, Any]) -> list[str]:
    """The lengths of the averages that a checkpoint or an export holds: of "ema", then the others.
    The average of ema=simple has none."""
    if "average" in state:  # of an export
        return [state["average"].removeprefix("ema:")]
    if "averages" not in state:
        return []
    settings = state["hparams"]["ema"]
    first = (settings.get("sigma_rel") or settings["decays"])[0]
    return [str(first), *state["averages"]]


def find_recipe(state: dict[str, Any], weights: str, file: Path) -> Recipe:
    """How an average that was not tracked is made after the steps of a checkpoint.

    Raises:
        InputError: the run did not train with ema=power, or its snapshots do not give that length.
    """
    key, step, own = f"job.weights={weights}: checkpoint={file}", state["step"], lengths(state)
    if "averages" not in state or state["hparams"]["choices"].get("ema") != "power":
        held = ", ".join(f"ema:{length}" for length in own) or "one average, ema"
        raise InputError(
            f"{key} holds {held}; other lengths come from the folder of a run of ema=power."
        )
    wanted = float(weights.removeprefix("ema:"))
    if not 0 < wanted < LONGEST:
        raise InputError(f"{key}: a length of ema=power is above 0 and below {LONGEST:.3f}.")
    stored: list[tuple[Path | None, int, str]] = [(None, step, name) for name in own]
    found = list(snapshots.beside(file, state["run_id"], step))
    stored += [(s.file, s.step, name) for s in found for name in s.lengths]
    profiles = [Profile(t, exponent(float(name))) for _, t, name in stored]
    factors, error = combination(profiles, Profile(step, exponent(wanted)))
    if error > WORST:
        raise InputError(
            f"{key} and its {len(found)} snapshots give that length only with an error of "
            f"{100 * error:.0f} %. A length between {' and '.join(own)} is nearer; a larger "
            "ema.snapshots stores more."
        )
    parts = [(place, name, x) for (place, _, name), x in zip(stored, factors, strict=True)]
    return Recipe(parts, error, len(found))


def _tracked(state: dict[str, Any], weights: str) -> str | None:
    """The name of the stored average of this length; None: there is none."""
    wanted = float(weights.removeprefix("ema:"))
    return next((name for name in lengths(state) if float(name) == wanted), None)


def _origin(recipe: Recipe) -> str:
    return f"from {recipe.snapshots} snapshots, with an error of {100 * recipe.error:.2g} %"


def _mixed(state: dict[str, Any], recipe: Recipe, file: Path) -> Weights:
    """The sum of the parts, summed in float32."""
    total: Weights = {}
    own = {lengths(state)[0]: state["ema"]} | state["averages"]
    place: Path | None = None
    for source, name, factor in recipe.parts:  # those of one file follow each other
        if source is not None and source != place:
            own, place = snapshots.read(source), source
        _add(total, own[name], factor, file)
    return {key: total[key].to(value.dtype) for key, value in state["ema"].items()}


def _add(total: Weights, weights: Weights, factor: float, file: Path) -> None:
    if total and {k: v.shape for k, v in total.items()} != {k: v.shape for k, v in weights.items()}:
        raise InputError(f"checkpoint={file}: its snapshots are of another network.")
    for key, value in weights.items():
        if not value.is_floating_point():
            total.setdefault(key, value)  # a counter: that of the checkpoint, which comes first
        elif key in total:
            total[key].add_(value.to(torch.float32), alpha=factor)
        else:
            total[key] = value.to(torch.float32) * factor
