"""Numbers as they are told: what cannot be measured is absent, for JSON has no NaN. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORST_LABELS = 50
"""Labels of a status: those with the lowest scores."""


def finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def finite_mean(values: NDArray[np.float64]) -> float | None:
    """Mean of the values that are numbers; None when none is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
