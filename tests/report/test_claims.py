"""Claims: percentiles, verdicts, and seeds that diverged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import xarray as xr

from jaxstab.report import figures
from jaxstab.report.claims import as_table, make_claim, median_interval, percentile_of
from jaxstab.report.record import Record, environment, write_netcdf, write_scoreboard

SAMPLE = np.arange(1000) / 10


def claim(sample=SAMPLE, published=50.0, **more):
    return make_claim("stack", "std", sample, published=published, source="notes", **more)


@pytest.mark.parametrize(
    ("published", "verdict"),
    [
        (50.0, "consistent"),
        (0.6, "consistent"),
        (0.3, "inconsistent"),
        (99.3, "consistent"),
        (99.7, "inconsistent"),
        (None, "not comparable"),
    ],
)
def test_the_verdict_follows_from_the_percentile(published, verdict):
    assert claim(published=published).verdict == verdict


def test_percentile_counts_ties_half():
    assert percentile_of(2.0, np.array([1.0, 2.0, 3.0])) == 50.0
    assert percentile_of(2.4, np.array([1.0, 2.0, 3.0]), resolution=0.5) == 50.0
    assert percentile_of(0.0, SAMPLE) < 0.1


def test_another_experiment_of_the_source_is_not_comparable():
    made = claim(incomparable="its bias starts at N(0, 1)")
    assert made.verdict == "not comparable"
    assert made.percentile == pytest.approx(50.0, abs=0.1)
    assert "bias" in made.note


def test_a_diverged_seed_counts_as_infinite_and_is_counted():
    made = claim(np.array([1.0, 2.0, np.nan, np.inf, np.nan]), published=1.5)
    assert made.diverged == 3
    assert math.isinf(made.median)
    assert made.percentile == 20.0
    assert made.record()["median"] is None
    json.dumps(made.record(), allow_nan=False)


def test_an_interval_of_the_median_covers_it_as_often_as_it_says():
    samples = np.random.default_rng(0).lognormal(size=(2000, 40))
    low, high = np.array([median_interval(sample) for sample in samples]).T
    covered = np.mean((low <= 1) & (high >= 1))
    assert 0.985 < covered < 1  # 99 %, with 2000 samples to tell; 95 % would be seen
    assert median_interval(np.array([3.0, 1.0, 2.0])) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("theory", "prediction"),
    [
        (50.0, "as predicted"),
        (48.0, "as predicted"),  # standard error of the median of 1000 uniform numbers from 0 to 100: 1.6
        (40.0, "within the spread"),
        (99.6, "not as predicted"),
        (-5.0, "not as predicted"),
    ],
)
def test_theory_is_held_against_the_median_and_then_the_spread(theory, prediction):
    made = claim(published=None, theory=theory)
    assert made.prediction == made.word == prediction
    assert made.verdict == "not comparable"


def test_theory_agrees_but_for_rounding():
    assert claim(1 + 1e-7, None, theory=1.0).prediction == "as predicted"
    assert claim(1 + 1e-4, None, theory=1.0).prediction == "not as predicted"
    assert claim(1e-7, None, theory=0.0).prediction == "as predicted"
    assert claim(1e-12, None, theory=1e-9).prediction == "not as predicted"


def test_theory_may_decline_or_say_that_nothing_is_left():
    assert claim(published=None, theory=np.nan).word == "measured"
    assert claim(published=None, theory=np.nan).theory is None
    assert claim(published=None, theory=np.inf).prediction == "not as predicted"
    assert claim(np.array([np.nan, np.inf, 1.0]), None, theory=np.inf).prediction == "as predicted"


def test_a_reader_is_told_the_verdict_or_how_theory_fares_or_neither():
    assert claim().word == "consistent"
    assert claim(theory=-5.0).word == "consistent"
    assert claim(incomparable="a bound").word == "not comparable"
    assert claim(published=None).word == "measured"


def test_medians_in_figures_forget_no_diverged_lane():
    values = xr.DataArray([[1.0, 2.0, np.nan, np.nan, np.inf]], dims=("layer", "seed"))
    low, median, _ = figures.quantiles(values)
    assert float(low[0]) == pytest.approx(1.1)  # a tenth of the way between the two finite ones
    assert math.isinf(float(median[0]))
    assert figures.diverged(values) == " (3 of 5 seeds diverged)"
    assert figures.diverged(values.isel(seed=[0, 1])) == ""


def test_the_scoreboard_is_written_whole(tmp_path):
    about = environment()
    claims = [claim(), claim(published=None, theory=50.0)]
    write_scoreboard(claims, tmp_path / "scoreboard.json", about)
    board = json.loads((tmp_path / "scoreboard.json").read_text())
    assert set(board) == {"environment", "claims"}
    wanted = {"experiment", "quantity", "published", "source", "median", "low", "high", "level"}
    assert wanted | {"percentile", "theory", "seeds", "verdict"} <= set(board["claims"][0])
    assert "as predicted" in as_table(claims)
    assert "not comparable" not in as_table(claims)
    assert "not comparable: a bound" in as_table([claim(incomparable="a bound")])


def test_netcdf_is_read_by_xarray_with_scipy_alone(tmp_path):
    data = xr.Dataset(
        {
            "flag": ("x", [True, False]),
            "big": ("x", np.array([1, 2**40])),
            "value": ("x", np.float32([1.5, np.nan])),
        },
        {"name": ("x", ["a", "b"]), "count": 3},
    )
    write_netcdf(Record(data, ("substituted",)), tmp_path / "data.nc")
    read = xr.load_dataset(tmp_path / "data.nc", engine="scipy")
    assert read.flag.values.tolist() == [1, 0]
    assert read.big.values.tolist() == [1, 2**40]
    assert read.name.values.astype(str).tolist() == ["a", "b"]
    assert read.attrs["notes"] == "substituted"
