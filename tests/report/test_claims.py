"""Claims: percentiles, verdicts, and seeds that diverged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import xarray as xr

from jaxstab.report import figures
from jaxstab.report.claims import as_table, make_claim, percentile_of
from jaxstab.report.page import write_report
from jaxstab.report.record import Entry, Record, environment, write_netcdf, write_scoreboard

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


def test_medians_in_figures_forget_no_diverged_lane():
    values = xr.DataArray([[1.0, 2.0, np.nan, np.nan, np.inf]], dims=("layer", "seed"))
    low, median, _ = figures.quantiles(values)
    assert float(low[0]) == pytest.approx(1.1)  # a tenth of the way between the two finite ones
    assert math.isinf(float(median[0]))
    assert figures.diverged(values) == " (3 of 5 seeds diverged)"
    assert figures.diverged(values.isel(seed=[0, 1])) == ""


def test_scoreboard_report_and_data_are_written_whole(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    about = environment()
    claims = [claim(), claim(published=None)]
    write_scoreboard(claims, tmp_path / "scoreboard.json", about)
    board = json.loads((tmp_path / "scoreboard.json").read_text())
    assert set(board) == {"environment", "claims"}
    wanted = {"experiment", "quantity", "published", "source", "median", "low", "high", "level"}
    assert wanted | {"percentile", "theory", "seeds", "verdict"} <= set(board["claims"][0])
    entry = Entry("stack", "Is <it> stable?", "text", (picture,), tuple(claims), ("digits instead",), 1.0)
    write_report([entry], tmp_path / "report.html", about)
    page = (tmp_path / "report.html").read_text()
    assert "Is &lt;it&gt; stable?" in page
    assert "digits instead" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert not list(tmp_path.glob(".*"))
    assert "consistent" in as_table(claims)


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
