"""The chapter's experiments, small: they run, draw and claim, say what stands in for what, and their facts hold."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from samples import assert_law, assert_mean_matches
from scipy import stats
from telling import assert_tells, run_small

from experiments import (
    dropout,
    learning_rate,
    mlp,
    polynomial,
    regularized_backprop,
    symmetry,
    trainability,
    weight_decay,
)
from experiments.__main__ import NAMES
from jaxstab.data import datasets, fashion_mnist, fashion_mnist_tfds
from jaxstab.data.images import DataError
from jaxstab.report import substitute
from jaxstab.report.claims import VERDICTS
from jaxstab.report.runner import SCALES
from jaxstab.trials.training import FLAGS

MODULES = {
    m.__name__.rsplit(".", 1)[-1]: m
    for m in (
        dropout,
        learning_rate,
        mlp,
        polynomial,
        regularized_backprop,
        symmetry,
        trainability,
        weight_decay,
    )
}


def nothing_to_be_had(*args):
    raise DataError("Fashion-MNIST cannot be had: no answer from nowhere (a test). Do this or that.")


@pytest.fixture(scope="module")
def offline():
    """No folder, no network: what a substitution is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(fashion_mnist.FOLDER, raising=False)
        patch.setattr(fashion_mnist_tfds, "read", nothing_to_be_had)
        substitute._choose.cache_clear()
        yield
    substitute._choose.cache_clear()


@pytest.fixture(scope="module")
def result(offline, tmp_path_factory):
    """name -> (what stands in the report, data.nc, findings, labels of figures), each experiment run once."""
    out, done = tmp_path_factory.mktemp("results"), {}

    def get(name):
        if name not in done:
            entry, *told = run_small(MODULES[name], out)
            done[name] = entry, xr.load_dataset(out / name / "data.nc", engine="scipy"), *told
        return done[name]

    return get


@pytest.mark.parametrize("name", MODULES)
def test_an_experiment_leaves_figures_data_and_claims(result, name):
    entry, data, *_ = result(name)
    assert name in NAMES
    assert entry.question.endswith("?")
    assert "\n" not in entry.question
    assert all(path.stat().st_size > 5_000 for path in entry.figures)
    assert data.sizes
    assert set(MODULES[name].SCALES) == set(SCALES)
    assert all(
        c.experiment == name and c.verdict in VERDICTS and c.quantity and c.source for c in entry.claims
    )
    assert all(c.seeds >= 2 for c in entry.claims)
    assert len({c.quantity for c in entry.claims}) == len(entry.claims) > 0


@pytest.mark.parametrize("name", MODULES)
def test_an_experiment_tells_what_it_found(result, name):
    assert_tells(*result(name)[2:])


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_substituted_data_are_announced(result, name):
    entry, data, *_ = result(name)
    assert any("Substituted data" in note and "digits" in note for note in entry.notes)
    assert any("no answer from nowhere" in note for note in entry.notes)
    assert data.attrs["notes"].splitlines() == list(entry.notes)


def test_nothing_stands_in_for_a_folder_that_was_named(offline, monkeypatch):
    with pytest.raises(DataError):
        substitute.images_or_digits("somewhere")
    monkeypatch.setenv(fashion_mnist.FOLDER, "somewhere")
    with pytest.raises(DataError):
        substitute.images_or_digits()


def test_so_many_updates():
    digits = substitute.Chosen("digits", datasets.load("digits"), ())
    assert digits.epochs_of(2350, 256) == 392
    assert digits.epochs_of(6, 256) == 1


def test_polynomials_find_the_true_weights(result):
    _, data, *_ = result("polynomial")
    names = list(data.configuration.values.astype(str))
    normal = data.weights[names.index("normal")]
    low, median, high = np.quantile(normal[:, :4], [0.1, 0.5, 0.9], axis=0)
    truth = np.array([5, 1.2, -3.4, 5.6])
    np.testing.assert_allclose(median[:3], truth[:3], atol=0.05)
    assert np.all((low <= truth) & (truth <= high) | (abs(median - truth) < 0.05))
    assert np.isnan(normal[:, 4:]).all()
    line = data.weights[names.index("underfitting"), :, :2]
    assert_mean_matches(line, np.array([3.3, 4.0]))
    with pytest.raises(AssertionError):
        assert_mean_matches(line, np.array([5.0, 1.2]))


def test_underfitting_is_worst_and_overfitting_tests_worse_than_it_trains(result):
    _, data, *_ = result("polynomial")
    names = list(data.configuration.values.astype(str))
    last = {n: data.isel(configuration=names.index(n)).sel(epoch=400).median("seed") for n in names}
    assert last["underfitting"].train_loss > 10 * last["normal"].train_loss
    assert last["overfitting"].test_loss > last["overfitting"].train_loss


def test_what_no_example_speaks_of_keeps_its_law(result):
    _, data, *_ = result("weight_decay")
    ways = list(data.way.values.astype(str))
    for way in ways:
        norm = data.w_norm[ways.index(way), :, :, -1]
        assert_law(norm.sel(decay=0), stats.chi(180).cdf)
        with pytest.raises(AssertionError):
            assert_law(norm.sel(decay=0), stats.chi(200).cdf, least_p=1e-2)
        factor = (1 - 0.003 * 3) ** 400
        assert 0.95 < float(norm.sel(decay=3).median()) / (factor * stats.chi(180).median()) < 1.3


def test_both_ways_are_one_where_loss_bias_and_draw_are_matched(result):
    assert float(result("weight_decay")[1].matched_difference.max()) < 1e-6
    assert float(result("mlp")[1].matched_difference.max()) < 1e-6


def test_l1_clears_weights_and_l2_spreads_them(result):
    _, data, *_ = result("weight_decay")
    share = dict(
        zip(data.penalty.values.astype(str), data.near_zero[..., -1].mean("few_seeds").values, strict=True)
    )
    assert share["L1"] > 0.5 > 0.1 > share["L2"]


def test_equal_units_stay_equal_but_for_dropout_and_rounding(result):
    _, data, *_ = result("symmetry")
    runs, dtypes = (list(data[name].values.astype(str)) for name in ("configuration", "dtype"))

    def at(run, dtype, units):
        return data.sel(units=units).isel(configuration=runs.index(run), dtype=dtypes.index(dtype))

    for run in ("SGD", "SGD + L2"):
        for dtype, epsilon in (("float32", 1e-6), ("float64", 1e-14)):
            assert float(at(run, dtype, 3).distance.isel(epoch=0).max()) < epsilon
    for dtype in dtypes:
        assert (at("SGD + dropout", dtype, 3).distinct == 3).all()
    real = [at("SGD + dropout", dtype, 3).distance.isel(epoch=0).values for dtype in dtypes]
    np.testing.assert_allclose(*real, rtol=1e-4)
    ulp = [float(at("SGD + one ulp", dtype, 3).distance.isel(epoch=0).max()) for dtype in dtypes]
    assert 0 < 1e6 * ulp[1] < ulp[0] < 1e-6


def test_permuted_units_are_the_same_function(result):
    _, data, *_ = result("symmetry")
    change = dict(
        zip(
            data.dtype.values.astype(str),
            data.change_by_permutation.max(data.change_by_permutation.dims[1:]).values,
            strict=True,
        )
    )
    assert change["float32"] < 1e-6
    assert change["float64"] < 1e-14


def test_the_derivation_by_hand_is_exact(result):
    _, data, *_ = result("regularized_backprop")
    for number, dtype in enumerate(data.dtype.values.astype(str)):
        for weight in ("W1", "W2"):
            assert float(data[f"difference_{weight}"][number].max()) < 4 * np.finfo(dtype).eps
            # without the penalty's term it would be off by this much
            assert float(data[f"share_{weight}"][number].sel(decay=10).min()) > 0.5


def test_the_dropout_layer_is_exact_at_its_ends_and_keeps_the_mean(result):
    _, data, *_ = result("dropout")
    dropped, x = data.dropped, dropout.X
    np.testing.assert_array_equal(dropped.sel(p=0.0), np.broadcast_to(x, (dropped.sizes["layer_seed"], 2, 8)))
    assert (dropped.sel(p=1.0) == 0).all()
    assert set(np.unique(dropped.sel(p=0.5) / np.where(x == 0, 1, x))) == {0.0, 2.0}
    mean = dropped.sel(p=0.5).mean(("row", "column"))
    assert_mean_matches(mean, x.mean())
    with pytest.raises(AssertionError):
        assert_mean_matches(mean, 1.5 * x.mean())


def test_an_area_under_the_curve_is_a_chance():
    entropy, wrong = np.array([0.1, 0.2, 0.9, 0.3]), np.array([0, 0, 1, 1])
    assert dropout.area_under_curve(entropy, wrong) == 1.0
    assert dropout.area_under_curve(-entropy, wrong) == 0.0
    assert np.isnan(dropout.area_under_curve(entropy, np.zeros(4)))


@pytest.mark.parametrize("name", ["learning_rate", "trainability"])
def test_runs_end_in_every_way_and_are_told_apart(result, name):
    _, data, *_ = result(name)
    ends = {FLAGS[int(flag)] for flag in np.unique(data.status)}
    assert {"ok", "untrained"} <= ends
    assert ends & {"diverged", "nonfinite"}
    # the largest of rates fails everywhere, the smallest nowhere
    rates = data.status.transpose("learning_rate", ...)
    assert not np.isin(rates[0], [FLAGS.index("diverged"), FLAGS.index("nonfinite")]).any()
    assert np.isin(rates[-1], [FLAGS.index("diverged"), FLAGS.index("nonfinite")]).all()


def test_the_critical_line_is_theory_s(result):
    _, data, *_ = result("trainability")
    np.testing.assert_allclose(data.critical_sigma_w, [np.sqrt(2)], rtol=1e-6)
    assert result("learning_rate")[1].attrs["critical"] == pytest.approx(1.0)
