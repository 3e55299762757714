"""Summaries over seeds that forget no lane."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from jaxstab.engine.label import count_name
from jaxstab.errors import UsageError

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)


def quantiles(
    values: Labelled,
    q: Any = (0.025, 0.5, 0.975),
    dim: str = "seed",
    diverged: float | None = None,
) -> Labelled:
    """Quantiles over seeds in which a lane that diverged counts: one that is NaN or infinite stands at the bad end.

    Args:
        values: an array (or a Dataset, of whose variables those that have `dim` are taken, but for `status`).
        q: one probability or several; several make a first dimension `quantile`, as with xarray's own.
        dim: what is summarized.
        diverged: where a lane stands that is NaN or infinite: +inf, or -inf for what is good when large. None for
            what the variable's attribute `diverged_counts_as` says, and +inf where it says nothing.

    Values of -inf stay what they are (the logarithm of 0). Two things stay NaN: the padding behind a configuration
    with fewer layers than another (told by the coordinate `layer_count`), and a statistic that is undefined by
    definition (attribute `undefined`: the correlation of a single input, say) where it is NaN for every seed.
    Between two finite neighbours quantiles are interpolated linearly; beside an infinite one the nearer of the two
    is taken, and the infinite one if both are as near.

    >>> loss = xr.DataArray([0.1, 0.2, math.nan], dims="seed")
    >>> float(quantiles(loss, 0.5)), float(loss.median("seed"))  # xarray's own forgets the run that diverged
    (0.2, 0.15000000000000002)

    Errors: UsageError for a dimension that is not there and a probability outside [0, 1].
    """
    if isinstance(values, xr.Dataset):
        taken = [name for name, one in values.data_vars.items() if dim in one.dims and name != "status"]
        if not taken:
            raise UsageError(
                f"no variable has a dimension {dim!r}. Choices: {', '.join(map(str, values.dims))}."
            )
        return values[taken].map(quantiles, q=q, dim=dim, diverged=diverged)
    if dim not in values.dims:
        raise UsageError(f"there is no dimension {dim!r}. Choices: {', '.join(map(str, values.dims))}.")
    probabilities = np.atleast_1d(np.asarray(q, np.float64))
    if probabilities.ndim > 1 or not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise UsageError(f"q={q!r}: probabilities between 0 and 1 are wanted.")
    end = values.attrs.get("diverged_counts_as", math.inf) if diverged is None else diverged
    ordered = values.transpose(..., dim)
    lanes = ordered.values.astype(np.float64)
    left_out = np.broadcast_to(_is_padding(ordered), lanes.shape)
    if "undefined" in values.attrs:
        left_out = left_out | np.isnan(lanes).all(axis=-1, keepdims=True)
    counted = np.where(is_diverged(lanes), end, lanes)
    picks = _quantiles(np.where(left_out, np.nan, counted), probabilities)
    like = ordered.isel({dim: 0}, drop=True)
    found = xr.concat([like.copy(data=pick) for pick in picks], xr.Variable("quantile", probabilities))
    found.attrs = dict(values.attrs)
    return found if np.ndim(q) else found.isel(quantile=0)


def is_diverged(values: np.ndarray) -> np.ndarray:
    """Where a number is NaN or +inf; -inf is the logarithm of 0."""
    return ~(np.isfinite(values) | (values == -np.inf))


def _is_padding(values: xr.DataArray) -> np.ndarray:
    """Where a layer (or an epoch) is beyond its configuration's own: broadcasts against the array."""
    padding = np.zeros((1,) * values.ndim, bool)
    for along in map(str, values.coords):
        if count_name(along) in values.coords:
            beyond = values[along] > values[count_name(along)]
            # as wide as the array, in the order of its dimensions
            padding = padding | (beyond | xr.zeros_like(values, bool)).transpose(*values.dims).values
    return padding


def _quantiles(lanes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """[probability, ...] of lanes [..., lane], those that are NaN left out; NaN where all are."""
    ordered = np.sort(lanes, axis=-1)  # NaN last
    present = np.sum(~np.isnan(lanes), axis=-1, keepdims=True)
    place = probabilities * np.maximum(present - 1, 0)  # [..., probability]
    below = np.floor(place).astype(int)
    share = place - below
    low, high = (
        np.take_along_axis(ordered, np.minimum(i, lanes.shape[-1] - 1), axis=-1)
        for i in (below, np.ceil(place).astype(int))
    )
    with np.errstate(invalid="ignore"):
        between = low + share * (high - low)
    nearer = np.where((share > 0.5) | ((share == 0.5) & np.isinf(high)), high, low)
    found = np.where(np.isfinite(low) & np.isfinite(high), between, nearer)
    return np.moveaxis(np.where(present > 0, found, np.nan), -1, 0)
