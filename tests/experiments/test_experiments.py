"""The main job, small: every experiment runs, draws, claims; bad words are refused; facts hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from samples import assert_law
from telling import assert_tells, run_small

from experiments import (
    backprop,
    deep_stack,
    depth_scaling,
    gain_table,
    initialization,
    matrix_product,
    phase_diagram,
    precision,
    remedies,
    sigmoid_gradient,
    transformer,
    vanishing,
)
from experiments.__main__ import NAMES
from jaxstab import theory as theories
from jaxstab.report.record import Record
from jaxstab.report.runner import SCALES
from jaxstab.theory import finite_width

ROOT = Path(__file__).parent.parent.parent
MODULES = {
    m.__name__.rsplit(".", 1)[-1]: m
    for m in (
        backprop,
        deep_stack,
        depth_scaling,
        gain_table,
        initialization,
        matrix_product,
        phase_diagram,
        precision,
        remedies,
        sigmoid_gradient,
        transformer,
        vanishing,
    )
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    entries, told = {}, {}
    for name, module in MODULES.items():
        entries[name], *told[name] = run_small(module, out)
    return out, entries, told


def data_of(results, name: str) -> xr.Dataset:
    return xr.load_dataset(results[0] / name / "data.nc", engine="scipy")


@pytest.mark.parametrize("name", MODULES)
def test_an_experiment_leaves_figures_data_and_claims(results, name):
    entry = results[1][name]
    assert entry.question.endswith("?")
    assert entry.claims
    assert all(path.stat().st_size > 5_000 for path in entry.figures)
    assert data_of(results, name).sizes
    assert set(MODULES[name].SCALES) == set(SCALES)


@pytest.mark.parametrize("name", MODULES)
def test_an_experiment_tells_what_it_found(results, name):
    assert_tells(*results[2][name])


def test_findings_follow_the_numbers(results):
    data = data_of(results, "remedies")
    data["remedy"] = data.remedy.astype(str)
    for share, words in ((1.0, "in all 4 networks with"), (0.0, "in none with")):
        changed = data.assign(share_kept=0 * data.share_kept + share, growth=np.nan * data.growth)
        found = remedies.findings(Record(changed))
        assert f"everywhere {words} “plain, small weights”" in found
        assert "in some" not in found
        assert "not finite (4 of 4) (batch 8)" in found


def test_the_sigmoid_gradient_is_a_quarter_at_most(results):
    data = data_of(results, "sigmoid_gradient")
    names = list(data.activation.values.astype(str))
    gradient = data.gradient.values[names.index("sigmoid")]
    sigmoid = 1 / (1 + np.exp(-data.x.values.astype(np.float64)))
    np.testing.assert_allclose(gradient, sigmoid * (1 - sigmoid), atol=1e-7)
    assert gradient.max() == pytest.approx(0.25, abs=1e-6)


def test_gradients_by_hand_are_those_of_jax(results):
    data = data_of(results, "backprop")
    np.testing.assert_allclose(data.by_hand, data.by_grad, rtol=1e-6)
    np.testing.assert_array_equal(data.vjp_of_scalar, data.vjp_of_vector)
    assert round(float(data.loss), 4) == 0.4999
    y1 = 1 / (1 + np.exp(-np.array([1.0, 2.0])))
    y2 = 1 / (1 + np.exp(-np.array([[3.0, 4.0], [5.0, 6.0]]) @ y1))
    np.testing.assert_allclose(float(data.loss), np.mean((y2 - [1, 0]) ** 2), rtol=1e-6)


def test_the_graphs_of_the_notes_bear_their_numbers(results):
    data = data_of(results, "backprop")

    def written(graph: str, what: str) -> dict[str, str]:
        labels, lines = (data[f"{name}_in_{graph}"].values.astype(str) for name in ("label", what))
        return dict(zip(labels, lines, strict=True))

    assert written("e", "values").items() >= {"a": "2", "b": "1", "mul": "6"}.items()
    assert written("e", "gradients").items() >= {"a": "2", "b": "5", "mul": "1"}.items()
    assert written("network", "values")["div"] == "0.4999"
    (first, second) = data.by_grad.values[:2]
    assert written("network", "gradients")["weights['W1']"] == f"[[{first:.4g}], [{second:.4g}]]"
    assert all(data.attrs[f"graph_of_{name}"].startswith("digraph {") for name in ("e", "network"))
    assert len(results[1]["backprop"].figures) == 3


def test_the_network_of_the_notes_in_onnx(results, monkeypatch):
    pytest.importorskip("jax2onnx", reason="the extra `onnx` is not installed")
    (note,) = results[1]["backprop"].notes
    assert "MatMul, Sigmoid, MatMul, Sigmoid" in note
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert "pip install 'jaxstab[onnx]'" in backprop.say_onnx()


def test_entries_of_a_product_follow_the_lyapunov_law(results):
    entries = data_of(results, "matrix_product").log10_entry.values
    probability = np.linspace(0.0005, 0.9995, 400)
    quantiles = [finite_width.log10_entry_quantile(p, 4, 101) for p in probability]
    law = partial(np.interp, xp=quantiles, fp=probability)
    assert_law(entries, law)
    with pytest.raises(AssertionError):
        assert_law(entries + 0.8, law)


def test_both_printed_products_have_a_percentile(results):
    claims = [c for c in results[1]["matrix_product"].claims if c.published is not None]
    assert {c.source for c in claims} == {"notes on 4.8", "chapter 4"}
    assert all(50 < c.percentile < 100 for c in claims)


def test_the_deep_stack_of_unit_weights_ends_where_float32_ends(results):
    data = data_of(results, "deep_stack")
    std = data.forward_std.values[0]  # [seed, layer]
    assert set(data.first_bad_layer_forward.values[0]) == {32}
    np.testing.assert_allclose(std[:, 0], 16, rtol=0.05)
    assert np.isfinite(std[:, :31]).all()
    np.testing.assert_allclose(np.log10(std[:, 30]), data.log10_forward_rms.values[0][:, 30], atol=0.01)


def test_xavier_settles_at_the_mean_field_rms(results):
    data = data_of(results, "deep_stack")
    late = 10 ** data.log10_forward_rms.values[4][:, 20:]  # [seed, layer]
    assert late.mean() == pytest.approx(0.651347, rel=0.005)


def test_the_measured_boundary_of_chaos_is_theorys(results):
    data = data_of(results, "phase_diagram")
    assert phase_diagram.rows_within_a_step(data) >= 0.95
    assert phase_diagram.rows_within_a_step(data.assign(critical=data.critical + 0.5)) < 0.5


def test_dtypes_break_where_it_was_forecast(results):
    data = data_of(results, "precision")
    for name in precision.BREAKS:
        distance = np.abs(data[name].median("seed") - data[f"{name}_theory"])
        assert float(distance.max()) <= 3, name
    edges = {name: data[f"edge_{name}"].values.tolist() for name in ("largest", "smallest_normal")}
    assert edges["largest"] == [2.0**15, 2.0**127, 2.0**127]
    assert edges["smallest_normal"] == [2.0**-14, 2.0**-126, 2.0**-126]


def test_remedies_keep_gradients_where_they_are_said_to(results):
    kept = data_of(results, "remedies").share_kept
    kept = dict(zip(kept.remedy.values.astype(str), kept.values, strict=True))
    assert kept["residual"] == kept["plain, critical"] == kept["LSTM, small weights, bias ln 99"] == 1
    assert kept["plain, small weights"] == kept["plain, large weights"] == kept["RNN, small weights"] == 0


def test_batch_norm_lets_gradients_grow_as_theory_says(results):
    """Within five standard errors and a tenth, at width 32; a growth by a third more is seen."""
    growth = data_of(results, "remedies").growth
    theory = theories.batch_norm_growth(growth.batch.values)
    error = 5 * growth.std("seed", ddof=1).values / np.sqrt(growth.sizes["seed"]) + 0.1
    distance = growth.mean("seed").values - theory
    assert np.all(np.abs(distance) < error)
    assert not np.all(np.abs(distance - theory / 3) < error)


def test_a_branch_that_shrinks_with_depth_has_a_limit(results):
    """Factors on the mean square: (1 + L^-2a)^L with two matrices; with one, means of ReLU add up."""
    data = data_of(results, "depth_scaling").isel(depth=-1)
    depth = int(data.depth)
    factors = 10 ** data.signal.mean("seed")
    for exponent in (0.0, 0.5, 1.0):
        squares = (
            10.0 ** data.signal.sel(matrices=2, exponent=exponent).values
        )  # whose mean is exact at any width
        error = squares.std(ddof=1) / np.sqrt(squares.size)
        wanted = (1 + depth ** (-2 * exponent)) ** depth
        assert abs(squares.mean() - wanted) < 5 * error
        assert abs(squares.mean() - 3 * wanted) > 5 * error
    assert float(factors.sel(matrices=1, exponent=0.5)) > 5 * float(factors.sel(matrices=2, exponent=0.5))
    theory = data.signal_theory.sel(matrices=1)
    assert float(theory.sel(exponent=0.5)) == pytest.approx(np.log10(29.25), abs=1e-3)
    assert float(theory.sel(exponent=1.0)) == pytest.approx(np.log10(1.4049), abs=1e-4)


def test_a_transformer_at_initialization_is_as_theory_says(results):
    """Signal, gradient, cosines of tokens and entropies, to five standard errors and what theory neglects."""
    data = data_of(results, "transformer")

    def is_near(sample: xr.DataArray, theory: xr.DataArray, allowed: float) -> bool:
        error = 5 * sample.std("seed", ddof=1) / np.sqrt(sample.sizes["seed"]) + allowed * theory
        return bool(((abs(sample.mean("seed") - theory) <= error) | theory.isnull()).all())

    for name in ("signal", "gradient"):
        squares, theory = 10.0 ** data[name], 10.0 ** data[f"{name}_theory"]
        assert is_near(squares, theory, 0.02), name
        assert not is_near(squares, 1.3 * theory, 0.02), name
    for name, wrong in (("cosine", 1.5), ("entropy", 1.1)):
        theory = data[f"{name}_theory"]
        assert int(theory.notnull().sum()) >= 6
        assert is_near(data[name], theory, 0.05), name
        assert not is_near(data[name], wrong * theory, 0.05), name
    behind = data.cosine.median("seed").isel(layer=-1).values  # alone, with a skip, with a small branch
    assert 0.999 < behind[0] <= 1
    assert behind[1] > 5 * behind[2]


def test_an_unequal_layer_keeps_one_variance_at_a_time(results):
    data = data_of(results, "initialization")
    forward, backward = (data[f"{way}_var"].median("seed") for way in ("forward", "backward"))
    modes = data["mode"].values.astype(str).tolist()
    assert float(np.abs(forward[modes.index("fan_in")] - 1).max()) < 0.15
    assert float(np.abs(backward[modes.index("fan_out")] - 1).max()) < 0.15
    assert float(forward[modes.index("fan_out")].min()) > 4
    assert float(backward[modes.index("fan_in")].max()) < 0.25


def test_a_sigmoid_leaves_less_than_a_quarter(results):
    data = data_of(results, "vanishing")
    sigmoid = data.activation.values.astype(str).tolist().index("sigmoid")
    factor = data.factor.isel(activation=sigmoid, layer=slice(0, -2))
    assert 0.15 < float(factor.min()) < float(factor.max()) < 0.26


def run_main(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
        check=False,
    )


def test_the_main_job_ends_with_the_scoreboard_and_the_report(tmp_path):
    done = run_main("sigmoid_gradient", "backprop", "--scale", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "largest derivative of the sigmoid" in done.stdout
    assert done.stdout.rstrip().endswith(str(tmp_path / "report.html"))
    claims = json.loads((tmp_path / "scoreboard.json").read_text())["claims"]
    assert {c["experiment"] for c in claims} == {"sigmoid_gradient", "backprop"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deep_stak"], ["'deep_stak'", "'deep_stack'"]),
        (["backprop", "--seeds", "0"], ["--seeds 0"]),
        (["--scale", "huge"], ["huge", "smoke"]),
        (["--sceds", "3"], ["--sceds"]),
    ],
)
def test_wrong_words_end_with_two(arguments, words):
    done = run_main(*arguments)
    assert done.returncode == 2
    assert all(word in done.stderr + done.stdout for word in words)
    assert "Traceback" not in done.stderr


def test_the_list_names_every_experiment():
    done = run_main("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*NAMES]
