"""Words of findings: numbers as people read them, with their interval over seeds, and lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import xarray as xr

from jaxstab.engine import summary
from jaxstab.report import figures

DATASETS = {"digits": "scikit-learn's digits", "fashion_mnist": "Fashion-MNIST"}
SPELLED = {
    "relu": "ReLU", "leaky_relu": "leaky ReLU", "gelu": "GELU", "elu": "ELU", "selu": "SELU", "silu": "SiLU",
    "mish": "Mish", "scaled_sigmoid": "4 sigmoid - 2",
}  # fmt: skip  # short words
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: Any, digits: int = 3) -> str:
    """`0.25`, `12,400`, `1.8×10²⁷`; "not finite" for what is not."""
    x = float(x)
    if not math.isfinite(x):
        return "not finite"
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        return f"{float(f'{x:.{digits - 1}e}'):,.15g}"
    return _scientific(f"{x:.{digits - 1}e}")


def short(x: Any) -> str:
    """`number` to two digits."""
    return number(x, 2)


def power(log10: Any, digits: int = 2) -> str:
    """10 ** log10 as a number, which no float need hold."""
    log10 = float(log10)
    if not -3 <= log10 < 5:
        whole = math.floor(log10) if math.isfinite(log10) else 0
        return (
            "0" if log10 == -math.inf
            else "not finite" if not math.isfinite(log10)
            else _scientific(f"{10 ** (log10 - whole):.{digits - 1}e}", whole)
        )  # fmt: skip  # a case a line
    return number(10**log10, digits)


def _scientific(written: str, more: int = 0) -> str:
    mantissa, exponent = written.split("e")
    raised = f"10{str(int(exponent) + more).translate(RAISED)}"
    return raised if float(mantissa) == 1 else f"{float(mantissa):g}×{raised}"


def percent(share: Any) -> str:
    """A share of 1 in percent: "all" and "none" are said as 100 and 0, and nothing is rounded to them."""
    share = float(share)
    if share in (0.0, 1.0) or 0.01 <= share <= 0.99:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %" if share < 0.5 else "more than 99 %"


def interval(
    values: xr.DataArray, spell: Callable[[Any], str] = number, dim: str = "seed", of: str = "seeds"
) -> str:
    """The median over seeds, of how many, and their central 95 %; how many diverged, where any did."""
    count, lost = values.sizes[dim], int(summary.is_diverged(values.values).sum())
    if not lost and spell(values.min()) == spell(values.max()):
        return f"{spell(values.min())} (all {count:,} {of})"
    return _spread(values, spell, dim, f" (95 % of {count:,} {of}: ", " to ", ")")


def bracketed(values: xr.DataArray, spell: Callable[[Any], str] = number, dim: str = "seed") -> str:
    """The median over seeds, and their central 95 % in brackets, which the sentence has to explain."""
    return _spread(values, spell, dim, " [", ", ", "]")


def _spread(
    values: xr.DataArray, spell: Callable[[Any], str], dim: str, begin: str, between: str, end: str
) -> str:
    low, median, high = (float(q) for q in figures.quantiles(values, dim=dim))
    count, lost = values.sizes[dim], int(summary.is_diverged(values.values).sum())
    if not math.isfinite(median):
        return f"{spell(median)} ({lost} of {count:,})"
    ends = between.join("infinity" if x == math.inf else spell(x) for x in (low, high))
    return f"{spell(median)}{begin}{ends}{f'; {lost} not finite' if lost else ''}{end}"


def middle(values: xr.DataArray, dim: str = "seed") -> float:
    """The median over seeds, in which a diverged seed counts."""
    return float(summary.quantiles(values, 0.5, dim))


def median(values: xr.DataArray, spell: Callable[[Any], str] = number, dim: str = "seed") -> str:
    """The median over seeds in words."""
    return spell(middle(values, dim))


def listed(words: Iterable[Any]) -> str:
    """`a`, `a and b`, `a, b and c`; "none" of nothing."""
    *first, last = [str(word) for word in words] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def called(name: Any) -> str:
    """An activation's name in a sentence."""
    return SPELLED.get(str(name), str(name))
