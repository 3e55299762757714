"""The roots of monotonic functions, elementwise, where rounding may leave no change of sign between two ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize.elementwise import find_root


def root_between(
    f: Callable[..., np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    args: Sequence[np.ndarray] = (),
    error: float = 1e-11,
) -> np.ndarray:
    """Where f(x, *args) changes sign between low and high, to an absolute error or rounding; of their common shape.

    Where both ends have one sign, as at an end that is itself the root up to rounding, the end with the smaller |f|;
    NaN where f is.
    """
    found = find_root(f, (low, high), args=tuple(args), tolerances={"xatol": error})
    at_low, at_high = np.abs(found.f_bracket)
    nearest = np.where(at_low <= at_high, *found.bracket)
    return np.where(found.success, found.x, np.where(found.status == -1, nearest, np.nan))
