"""Smoothing of loss curves."""

from collections.abc import Sequence

import numpy as np


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred moving average over a twentieth of the values, narrower towards both ends."""
    half = max(1, len(values) // 40)
    i = np.arange(len(values))
    reach = np.minimum(half, np.minimum(i, i[::-1]))
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)
