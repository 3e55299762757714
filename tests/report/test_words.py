"""Numbers in words: what is rounded how, and that nothing is said of numbers that are not there."""

from __future__ import annotations

import math

import pytest
import xarray as xr

from jaxstab.report import words


@pytest.mark.parametrize(
    ("x", "spelled"),
    [(0.2501, "0.25"), (12_400, "12,400"), (1.8e27, "1.8×10²⁷"), (1e-12, "10⁻¹²"), (0, "0"), (-3.0, "-3")]
    + [(x, "not finite") for x in (math.nan, math.inf, -math.inf)],
)
def test_a_number(x, spelled):
    assert words.number(x) == spelled


@pytest.mark.parametrize(
    ("log10", "spelled"),
    [
        (0.0, "1"),
        (1.2, "16"),
        (-400.0, "10⁻⁴⁰⁰"),
        (118.5, "3.2×10¹¹⁸"),
        (-math.inf, "0"),
        (math.nan, "not finite"),
    ],
)
def test_a_power_that_no_float_holds(log10, spelled):
    assert words.power(log10) == spelled


def test_a_power_is_its_number():
    for log10 in (-7.9999, -3.0, 4.9999, 27.2553):
        assert words.power(log10) == words.number(10**log10, 2)


def test_nothing_is_rounded_to_all_or_none():
    spelled = [words.percent(share) for share in (0.0, 0.001, 0.5, 0.999, 1.0)]
    assert spelled == ["0 %", "0.1 %", "50 %", "more than 99 %", "100 %"]


def test_lists():
    assert [words.listed("abc"[:n]) for n in range(4)] == ["none", "a", "a and b", "a, b and c"]


def test_an_interval_counts_seeds_that_diverged():
    values = xr.DataArray([1.0, 1.0, 2.0, 3.0], dims="seed")
    assert words.interval(values) == "1.5 (95 % of 4 seeds: 1 to 2.92)"
    assert words.interval(xr.ones_like(values)) == "1 (all 4 seeds)"
    assert words.bracketed(values) == "1.5 [1, 2.92]"
    lost = values.where(values < 3)
    assert words.interval(lost) == "1.5 (95 % of 4 seeds: 1 to infinity; 1 not finite)"
    assert words.bracketed(lost.where(lost < 2)) == "not finite (2 of 4)"
    assert words.bracketed(lost.where(lost < 1)) == "not finite (4 of 4)"
    assert words.median(xr.full_like(values, math.nan)) == "not finite"
