"""A measured distribution over seeds beside a published number and beside theory: percentile, verdict, prediction."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from jaxstab.engine import summary

VERDICTS = ("consistent", "inconsistent", "not comparable")
CENTRAL = 99.0
"""A published number is consistent inside this central percentage of the seeds; a median's interval is as sure."""
PREDICTIONS = ("as predicted", "within the spread", "not as predicted")
ROUNDING = 1e-6
"""Relative; absolute for a theory of 0. Numbers closer than that agree but for float32's rounding."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A row of a table: what was measured, beside what was printed and what theory says.

    `low` and `high` bound the central `level` of the seeds; `percentile` (0 to 100) is where the published
    number falls among them, from which the `verdict` follows; `prediction` is how theory fares (`hold_theory`), ""
    where there is none. A seed that diverged stands at the bad end (`jaxstab.quantiles`). Numbers that do not
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
    prediction: str = ""
    note: str = ""

    @property
    def word(self) -> str:
        """What a reader is told: the verdict on a published number, else how theory fares, else just "measured"."""
        return self.verdict if self.published is not None else self.prediction or "measured"

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
        theory: the number that theory predicts for the median, if any; NaN where it declines.
        level: of the interval [low, high].
        incomparable: the reason why the source's number is of something else; "" where it is not.
    """
    values = np.asarray(sample, np.float64).ravel()
    diverged = summary.is_diverged(values)
    values = np.where(diverged, getattr(sample, "attrs", {}).get("diverged_counts_as", math.inf), values)
    predicted = None if theory is None or np.isnan(theory) else float(theory)
    ends = ((1 - level) / 2, 0.5, (1 + level) / 2)
    low, median, high = summary.quantiles(xr.DataArray(values, dims="seed"), ends).values.tolist()
    percentile, verdict = None, "not comparable"
    if published is not None:
        percentile = percentile_of(published, values, resolution)
        inside = (100 - CENTRAL) / 2 <= percentile <= (100 + CENTRAL) / 2
        verdict = "not comparable" if incomparable else "consistent" if inside else "inconsistent"
    return Claim(
        experiment=experiment, quantity=quantity, published=published, source=source, median=median, low=low,
        high=high, level=level, percentile=percentile, theory=predicted, seeds=values.size,
        diverged=int(diverged.sum()), verdict=verdict, note=incomparable,
        prediction="" if predicted is None else hold_theory(predicted, values),
    )  # fmt: skip  # many short words


def percentile_of(published: float, values: np.ndarray, resolution: float = 0.0) -> float:
    """Percentage of `values` below `published`, those within `resolution` of it counted half (mid-rank)."""
    below = np.count_nonzero(values < published - resolution)
    tied = np.count_nonzero(np.abs(values - published) <= resolution)
    return 100.0 * (below + 0.5 * tied) / values.size


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The order statistics that bracket the true median in 99 % of samples, whatever the law; fewer than 8: all.

    The k-th smallest exceeds the median when fewer than k of n values lie below it: Binomial(n, 1/2).
    """
    k = max(int(stats.binom.ppf((1 - CENTRAL / 100) / 2, values.size, 0.5)), 1)
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[-k])


def hold_theory(theory: float, values: np.ndarray) -> str:
    """How a predicted median fares: one of `PREDICTIONS`.

    "as predicted": these seeds cannot tell it from their median (inside `median_interval`, or equal but for rounding);
    "within the spread": they can, but it lies inside their central 99 %; "not as predicted": outside of both.
    """
    rounding = ROUNDING * (abs(theory) or 1) if math.isfinite(theory) else 0.0
    tail = (1 - CENTRAL / 100) / 2
    central = summary.quantiles(xr.DataArray(values, dims="seed"), (tail, 1 - tail)).values
    for word, (low, high) in zip(PREDICTIONS, (median_interval(values), central), strict=False):
        if low - rounding <= theory <= high + rounding:
            return word
    return PREDICTIONS[-1]


def as_table(claims: list[Claim]) -> str:
    """The claims for a terminal."""
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
            "verdict": f"{c.word}: {c.note}" if c.note else c.word,
        }
        for c in claims
    ]
    return pd.DataFrame(rows).to_string(index=False)


def _spell(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"
