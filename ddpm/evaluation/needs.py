"""Check that metrics get the input that they need, before anything is drawn."""

from collections.abc import Mapping

from ddpm.data.base import ImageData
from ddpm.errors import InputError
from ddpm.features.base import Features
from ddpm.metrics.base import Metric


def needs_of(metrics: dict[str, Metric]) -> frozenset[str]:
    """Everything that any of these metrics needs."""
    return frozenset().union(*(metric.needs for metric in metrics.values()))


def check_needs(
    metrics: dict[str, Metric],
    features: Features,
    data: ImageData,
    n: int,
    *,
    has_network: bool,
    real: Mapping[str, int],
) -> None:
    """Check that the input exists that the metrics need.

    Args:
        n: number of samples.
        real: numbers of the real pictures: train, and held_out if there are any.

    Raises:
        InputError: names the metric, and what is missing.
    """
    for name, metric in metrics.items():
        if data.dtype != "uint8" and (name == "bound" or metric.needs - {"network", "held_out"}):
            raise InputError(
                f"metric={name}: is for pictures of 8 bits, and these have data.value_range="
                f"{list(data.value_range or ())}. Choose metric=[loss]."
            )
    if needs_of(metrics) & {"features", "classes"}:
        features.check_channels(data.channels)
    for name, metric in metrics.items():
        if "network" in metric.needs and not has_network:
            raise InputError(f"metric={name}: measures a network; it needs checkpoint=<run>.")
        if "held_out" in metric.needs and "held_out" not in real:
            raise InputError(
                f"metric={name}: needs held-out pictures, and these data have none "
                "(data.holdout=0, or the split is not train). Leave this metric out."
            )
        if "classes" in metric.needs and features.num_classes is None:
            raise InputError(
                f"metric={name}: needs features with classes, and features={features.name} has "
                "none. Choose others, or leave this metric out."
            )
        if n < metric.least:
            raise InputError(
                f"metric={name}: needs at least {metric.least} samples, and there are {n}. "
                "Give more pictures, or leave this metric out."
            )
        _check_real(name, metric, real)


def _check_real(name: str, metric: Metric, real: Mapping[str, int]) -> None:
    """Check that there are enough pictures of the split, or of each of both that exists."""
    roles = metric.compares_with
    for role in sorted(roles if len(roles) == 1 else roles & real.keys()):
        count = real.get(role, 0)
        if count < metric.least:
            other = "train" if role == "held_out" else "held_out"
            choose = f", or set metric.{name}.reference={other}"
            raise InputError(
                f"metric={name}: needs at least {metric.least} {role} pictures, and there are "
                f"{count}. Leave this metric out{choose if hasattr(metric, 'reference') else ''}."
            )
