"""A published number beside its distribution over seeds: percentile, theory, verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine import summary

VERDICTS = ("consistent", "inconsistent", "not comparable")
CENTRAL = 99.0
"""A published number is consistent inside this central percentage of the seeds."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the scoreboard.

    `low` and `high` bound the central `level` of the seeds; `percentile` (0 to 100) is where the published
    number falls among them. A seed that diverged stands at the bad end (`jaxstab.quantiles`). Numbers that do not
    exist are None.
    """

    experiment: str
    quantity: str
    published: float | None
    source: str
    median: float
    low: float
    high: float
    level: float
    percentile: float | None
    theory: float | None
    seeds: int
    diverged: int
    verdict: str
    note: str = ""

    def record(self) -> dict[str, Any]:
        """The claim as JSON has it: no infinities and no NaN."""
        fields = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def make_claim(
    experiment: str,
    quantity: str,
    sample: Any,
    published: float | None = None,
    *,
    source: str,
    resolution: float = 0.0,
    theory: Any = None,
    level: float = 0.95,
    incomparable: str = "",
) -> Claim:
    """Hold a published number against a sample of one value a seed.

    Args:
        experiment: the experiment's name.
        quantity: what was measured, with its unit.
        sample: [seed], or one number where nothing is random. NaN and +inf are diverged seeds and count as
            +inf, or as a DataArray's attribute `diverged_counts_as` says (-inf for an accuracy).
        published: the printed number; None where the source gives none.
        source: where it is printed.
        resolution: half of the last printed digit's unit; values that close to it cannot be told from it.
        theory: the number that theory predicts for the median, if any.
        level: of the interval [low, high].
        incomparable: the reason why the source's number is of something else; "" where it is not.
    """
    values = np.asarray(sample, np.float64).ravel()
    diverged = summary.is_diverged(values)
    values = np.where(diverged, getattr(sample, "attrs", {}).get("diverged_counts_as", math.inf), values)
    ends = ((1 - level) / 2, 0.5, (1 + level) / 2)
    low, median, high = summary.quantiles(xr.DataArray(values, dims="seed"), ends).values.tolist()
    percentile, verdict = None, "not comparable"
    if published is not None:
        percentile = percentile_of(published, values, resolution)
        inside = (100 - CENTRAL) / 2 <= percentile <= (100 + CENTRAL) / 2
        verdict = "not comparable" if incomparable else "consistent" if inside else "inconsistent"
    return Claim(
        experiment=experiment, quantity=quantity, published=published, source=source, median=median, low=low,
        high=high, level=level, percentile=percentile, theory=None if theory is None else float(theory),
        seeds=values.size, diverged=int(diverged.sum()), verdict=verdict, note=incomparable,
    )  # fmt: skip  # many short words


def percentile_of(published: float, values: np.ndarray, resolution: float = 0.0) -> float:
    """Percentage of `values` below `published`, those within `resolution` of it counted half (mid-rank)."""
    below = np.count_nonzero(values < published - resolution)
    tied = np.count_nonzero(np.abs(values - published) <= resolution)
    return 100.0 * (below + 0.5 * tied) / values.size


def as_table(claims: list[Claim]) -> str:
    """The scoreboard for a terminal."""
    import pandas as pd

    rows = [
        {
            "experiment": c.experiment,
            "quantity": c.quantity,
            "published": _spell(c.published),
            "median": _spell(c.median),
            f"{c.level:.0%} of seeds": f"[{_spell(c.low)}, {_spell(c.high)}]",
            "percentile": "-" if c.percentile is None else f"{c.percentile:.1f}",
            "theory": _spell(c.theory),
            "seeds": c.seeds,
            "verdict": c.verdict,
        }
        for c in claims
    ]
    return pd.DataFrame(rows).to_string(index=False)


def _spell(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"
