"""Every variable that theory returns, held against measurement; and silence where networks do something else."""

from __future__ import annotations

import numpy as np
import pytest
from samples import assert_mean_matches

import jaxstab
from jaxstab.trials import prediction
from jaxstab.trials.outputs import predicted as rows_of_theory
from jaxstab.trials.propagation import OUTPUTS, propagation

DEPTH, WIDTH, SEEDS = 4, 128, 40
SIGMA_B = (0.0, 0.3)
GAINS = {"linear": 0.9, "relu": 1.3, "tanh": 1.4, "gelu": 1.6}
SQUARES = ("forward_std", "forward_rms", "backward_rms", "weight_gradient_rms")
MEANS = ("forward_mean", "zero_fraction", "saturated_fraction", "correlation")
LOGARITHMS = ("log10_forward_rms", "log10_backward_rms")
CASES = [
    *(("plain", activation, 4) for activation in ("linear", "relu", "gelu")),
    ("residual", "relu", 4),
    ("normalized", "tanh", 4),
    ("residual", "tanh", 1),
    ("recurrent", "tanh", 1),
]


def averages(data, name):
    """What of a variable has a mean over networks that theory knows: squares of sizes, the rest as it is."""
    values = data[name].values.astype(np.float64)
    if name in SQUARES:
        return values**2
    return 10 ** (2 * values) if name in LOGARITHMS else values


def assert_prediction_holds(measured, predicted, name):
    """Within five standard errors of the sample and, relative to the variable's size, 1.5 depth/width."""
    sample, theory = averages(measured, name), averages(predicted, name)
    assert np.isfinite(theory).all(), name
    scale = predicted.forward_rms.values if name == "forward_mean" else np.maximum(theory, 0.01)
    mean = sample.mean(axis=1)
    near = np.abs(mean - theory) <= 1.5 * DEPTH / WIDTH * scale
    moves = sample.std(axis=1) > 0
    assert near[~moves].all(), name
    if (moves & ~near).any():
        assert_mean_matches(np.moveaxis(sample, 1, 0)[:, moves & ~near], theory[moves & ~near])


@pytest.mark.parametrize(("kind", "activation", "batch"), CASES)
def test_every_variable_by_layer_is_what_is_measured(kind, activation, batch):
    settings = {"kind": kind, "activation": activation, "gain": GAINS[activation], "sigma_b": SIGMA_B}
    settings |= {"branch_scale": 0.3, "depth": DEPTH, "width": WIDTH, "batch": batch, "init": "lecun_normal"}
    names = [name for name in (*SQUARES, *MEANS, *LOGARITHMS) if batch > 1 or name != "correlation"]
    measured = jaxstab.propagate(seeds=SEEDS, keep=names, **settings)
    predicted = jaxstab.predict(**settings)
    for name in names:
        assert_prediction_holds(measured, predicted, name)
    for name in SQUARES[1:]:  # 20 % of any size is seen
        with pytest.raises(AssertionError):
            assert_prediction_holds(measured, predicted.assign({name: 1.2 * predicted[name]}), name)


def test_no_variable_is_without_a_measurement():
    """The lists here are all that theory says by layer, and what it says is what the table of outputs announces."""
    assert {*SQUARES, *MEANS, *LOGARITHMS} == set(prediction.VARIABLES)
    announced = set(rows_of_theory(OUTPUTS)) - {"forward_profile"}  # of images alone
    for settings in ({}, {"kind": "lstm"}):
        assert set(jaxstab.predict(depth=3, **settings).data_vars) == announced


def test_intervals_cover_their_share():
    settings = {
        "activation": "relu",
        "gain": 1.3,
        "depth": 12,
        "width": 32,
        "batch": 1,
        "init": "lecun_normal",
    }
    seeds, predicted = 1000, jaxstab.predict(**settings)
    names = ["forward_rms", "backward_rms", *LOGARITHMS]
    measured = jaxstab.propagate(seeds=seeds, sampler="conditioned", keep=names, **settings)
    for name in names:
        low, high = predicted[f"{name}_low"].values, predicted[f"{name}_high"].values
        values = measured[name].values
        for below, share in ((values < low, 0.025), (values < high, 0.975)):
            assert np.all(np.abs(below.mean(axis=0) - share) < 5 * np.sqrt(0.025 * 0.975 / seeds))
        assert np.all(np.abs((values < low + 0.1 * np.abs(high - low)).mean(axis=0) - 0.025) > 0.01)


def test_broken_layers_are_what_is_measured():
    """float16: a ReLU stack that overflows in some networks, a linear one that dies out in all."""
    settings = {
        "activation": "relu",
        "gain": 2.2,
        "depth": 22,
        "width": 64,
        "batch": 4,
        "init": "lecun_normal",
    }
    seeds, predicted = 300, jaxstab.predict(dtype="float16", **settings)
    measured = jaxstab.propagate(seeds=seeds, dtype="float16", keep=["first_bad_layer_forward"], **settings)
    layers = measured.first_bad_layer_forward.values
    share = float(predicted.break_fraction_forward)
    assert 0.02 < share < 0.98
    assert abs((layers > 0).mean() - share) < 5 * np.sqrt(share * (1 - share) / seeds) + 0.05
    low, high = (float(predicted[f"first_bad_layer_forward_{end}"]) for end in ("low", "high"))
    inside = (layers[layers > 0] >= low) & (layers[layers > 0] <= high)
    assert inside.mean() > 0.9
    lost = {"activation": "linear", "gain": 0.1, "depth": 12, "width": 64, "batch": 4, "dtype": "float16"}
    measured = jaxstab.propagate(seeds=16, init="lecun_normal", keep=["first_lost_layer_forward"], **lost)
    predicted = jaxstab.predict(init="lecun_normal", **lost)
    assert float(predicted.lost_fraction_forward) == pytest.approx(1.0, abs=0.01)
    assert abs(float(predicted.first_lost_layer_forward) - np.median(measured.first_lost_layer_forward)) <= 1


def test_a_loss_scale_keeps_measured_gradients_inside_the_format():
    settings = {
        "activation": "tanh",
        "gain": 0.9,
        "depth": 60,
        "width": 128,
        "batch": 4,
        "init": "lecun_normal",
    }
    predicted = jaxstab.predict(dtype="float16", **settings)
    log10 = jaxstab.propagate(seeds=8, keep=["log10_backward_rms"], **settings).log10_backward_rms
    scaled = 10.0 ** (log10.mean("seed").values + np.log10(float(predicted.loss_scale)))
    limits = np.finfo(np.float16)
    assert scaled.min() > float(limits.smallest_normal)
    assert scaled.max() * 4 < float(limits.max)  # 4 standard deviations: the largest of 512 entries
    assert str(predicted.loss_scale_reason.values) == ""
    none = jaxstab.predict(dtype="float16", **(settings | {"gain": 0.5}))
    assert np.isnan(none.loss_scale)
    assert "no single loss scale" in str(none.loss_scale_reason.values)


def test_a_residual_gradient_beyond_mean_field_is_not_predicted():
    """Means that add up: measured, more than five times (1 + s^2)^15. A branch of mean 0 has no such excess."""
    settings = {
        "kind": "residual",
        "init": "lecun_normal",
        "gain": np.sqrt(2),
        "depth": 16,
        "width": 64,
        "batch": 2,
    }
    of_relu = jaxstab.predict(activation="relu", **settings)
    assert np.isnan(of_relu.backward_rms[:-2]).all()
    assert np.isnan(of_relu.weight_gradient_rms[:-2]).all()
    assert np.isfinite(of_relu.forward_rms).all()
    spec, hparams = propagation.configure({"activation": "relu", **settings})
    assert prediction.infinite_width(spec, hparams)["backward_rms"][0] ** 2 == pytest.approx(2.0**15)
    measured = jaxstab.propagate(seeds=100, activation="relu", keep=["backward_rms"], **settings)
    assert np.mean(measured.backward_rms.values[:, 0].astype(np.float64) ** 2) > 5 * 2.0**15
    assert np.isfinite(jaxstab.predict(activation="tanh", **settings).backward_rms).all()


@pytest.mark.parametrize(
    ("settings", "name", "first"),
    [
        ({"activation": "relu", "gain": np.sqrt(2), "width": 16}, "log10_forward_rms", False),
        # an unstable fixed point
        ({"activation": "gelu", "gain": 1.5335, "width": 16}, "log10_forward_rms", False),
        ({"activation": "tanh", "gain": 1.5, "width": 8}, "log10_backward_rms", True),
        ({"activation": "linear", "kind": "recurrent", "width": 64}, "log10_forward_rms", False),
    ],
)
def test_where_typical_networks_leave_mean_field_it_is_silent(settings, name, first):
    """At 60 layers mean field errs by more than a factor of 2; where it speaks, by less than 2.5 (64 networks)."""
    settings = {"init": "lecun_normal", "depth": 60, "batch": 1, **settings}
    predicted = jaxstab.predict(**settings)[name].values
    spec, hparams = propagation.configure(settings)
    limit = prediction.infinite_width(spec, hparams)[name]
    typical = np.median(jaxstab.propagate(seeds=64, keep=[name], **settings)[name].values, axis=0)
    end = 0 if first else -1
    assert np.isnan(predicted[end])
    assert abs(typical[end] - limit[end]) > np.log10(2)
    speaks = np.isfinite(predicted)
    assert speaks.any()
    np.testing.assert_array_equal(predicted[speaks], limit[speaks])
    assert np.all(np.abs(typical - limit)[speaks] < np.log10(2.5))


def test_orthogonal_layers_keep_lengths_at_any_depth():
    settings = {"activation": "linear", "init": "orthogonal", "depth": 60, "width": 8, "batch": 2}
    predicted = jaxstab.predict(**settings)
    measured = jaxstab.propagate(seeds=64, keep=["forward_rms"], **settings)
    assert_mean_matches(
        measured.forward_rms.values[:, -1].astype(np.float64) ** 2, float(predicted.forward_rms[-1]) ** 2
    )


@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_few_units_are_no_average(width):
    predicted = jaxstab.predict(activation="tanh", width=width, depth=3, batch=2)
    assert all(np.isnan(predicted[name]).all() for name in prediction.VARIABLES)
    exact = jaxstab.predict(activation="linear", width=width, depth=3, batch=1)
    assert np.isfinite(exact.log10_forward_rms_low).all()


def test_one_configuration_and_many_are_the_same():
    axes = {"activation": ["relu", "tanh"], "gain": [0.8, 1.0, 1.5], "sigma_b": [0.0, 0.2], "depth": [3, 6]}
    many = jaxstab.predict(**axes, width=64, batch=2)
    for settings in jaxstab.grid(**axes, width=64, batch=2).configurations():
        one = propagation.predict(*propagation.configure(settings))
        found = many.sel({name: settings[name] for name in axes})
        for name, value in one.items():
            got = found[name].values
            got = got[: settings["depth"]] if np.ndim(value) else got
            if np.asarray(value).dtype.kind == "U":
                assert str(got) == str(value)
            else:
                np.testing.assert_allclose(got, value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_users_theory_is_of_one_configuration():
    @jaxstab.family(
        dims={"loss": ("step",)}, predict=lambda spec, hparams: {"loss": hparams.rate ** np.arange(spec.n)}
    )
    def decay(key, *, n: int = 3, rate: float = 0.5):
        return {"loss": rate ** np.arange(n)}

    predicted = jaxstab.predict(family=decay, rate=[0.5, 0.1], n=[2, 3])
    np.testing.assert_allclose(predicted.loss.sel(rate=0.1, n=3), [1, 0.1, 0.01])
    assert np.isnan(predicted.loss.sel(rate=0.5, n=2)[-1])


def test_a_configuration_is_told_the_same_in_any_company():
    settings = {"kind": "residual", "depth": 4, "width": 64, "activation": "relu", "init": "kaiming_normal"}
    several = jaxstab.predict(skip_scale=[0.5, 1.0, 0.7], **settings)
    for skip in (0.5, 1.0, 0.7):
        alone = jaxstab.predict(skip_scale=skip, **settings)
        for name in ("forward_rms", "backward_rms", "break_fraction_forward"):
            np.testing.assert_array_equal(several[name].sel(skip_scale=skip), alone[name])


def test_where_no_theory_is_known_there_is_none():
    settings = {"depth": 4, "width": 64}
    for unknown in ({"kind": "lstm"}, {"kind": "attention", "tokens": 3}):
        assert np.isnan(jaxstab.predict(**settings | unknown).forward_rms).all()
    pre_ln = jaxstab.predict(kind="pre_ln", **settings | {"depth": 40})
    assert np.isfinite(pre_ln.forward_rms.sel(layer=32)).all()
    assert np.isnan(pre_ln.forward_rms.sel(layer=33)).all()
    assert np.isnan(pre_ln.break_fraction_forward)
    said = str(jaxstab.explain(kind="recurrent", dropout=0.1, **settings))
    assert "kind=recurrent, init=xavier_normal, with dropout" in said


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_batch_norm_is_measured_as_predicted(activation):
    settings = {"kind": "batch_norm", "activation": activation, "depth": 4, "width": 256, "batch": 8}
    told = jaxstab.predict(gain=[0.5, 3.0], sigma_b=0.3, **settings)
    found = jaxstab.propagate(
        16, gain=[0.5, 3.0], sigma_b=0.3, keep=["forward_mean", "forward_rms"], **settings
    )
    for name in ("forward_mean", "forward_rms"):
        error = 5 * found[name].std("seed", ddof=1) / 4 + 0.005  # the drift of a finite width
        assert (abs(found[name].mean("seed") - told[name]) < error).all()
        assert not (abs(found[name].mean("seed") - told[name] - 0.05) < error).any()
    assert np.isnan(told.backward_rms).all()
    said = str(jaxstab.explain(**settings))
    assert "theory knows the signal's size alone" in said


def test_batch_norm_has_no_prediction_where_its_layers_lean_or_its_norm_divides_nothing():
    settings = {"kind": "batch_norm", "activation": "relu", "depth": 12, "width": 64, "batch": 16}
    told = jaxstab.predict(**settings)
    assert np.isfinite(told.forward_mean).values.tolist() == [True] * 8 + [False] * 4
    assert np.isfinite(told.forward_rms).all()
    one_small = jaxstab.predict(gain={"small": (0.01, *[1.0] * 11)}, **settings).forward_rms
    assert np.isfinite(one_small).values.ravel().tolist() == [False] + [True] * 11
    for unknown in ({"gain": 0.01}, {"batch": 1}, {"init": "constant"}, {"dropout": 0.1}):
        assert np.isnan(jaxstab.predict(**settings | unknown).forward_rms).all()


MEASURED = {
    "two matrices": {
        "kind": "residual",
        "branch_matrices": 2,
        "gain": 1.5,
        "branch_scale": 0.5,
        "skip_scale": 0.9,
    },
    "dropout": {"dropout": 0.3, "gain": 1.4, "sigma_b": 0.2},
    "dropout of a branch": {"kind": "residual", "activation": "relu", "dropout": 0.3, "branch_scale": 0.3},
    "pre_ln": {"kind": "pre_ln", "activation": "gelu", "gain": 1.4},
    "rms_norm": {"kind": "rms_norm", "activation": "gelu", "gain": 1.3, "sigma_b": 0.2},
    "post_ln": {"kind": "post_ln", "activation": "relu", "gain": 1.3, "sigma_b": 0.1},
}


@pytest.mark.parametrize("name", MEASURED)
def test_theory_of_blocks_and_of_dropout_is_what_is_measured(name):
    """Within five standard errors and what width 384 leaves, 4 L / n; and not where it is off by a tenth."""
    settings = {"depth": 6, "width": 384, "batch": 2, "init": "xavier_normal"} | MEASURED[name]
    names = ["forward_rms", "backward_rms", "weight_gradient_rms", "correlation"]
    data = jaxstab.propagate(48, keep=names, sampler="conditioned", progress=False, **settings)
    told = jaxstab.predict(**settings)
    for variable in names:
        found = data[variable].values.astype(np.float64) ** (1 if variable == "correlation" else 2)
        wanted = told[variable].values ** (1 if variable == "correlation" else 2)
        error = 5 * found.std(0, ddof=1) / np.sqrt(len(found)) + 0.02 * np.abs(wanted) + 0.005
        assert (np.abs(found.mean(0) - wanted) < error).all(), (variable, found.mean(0), wanted)
        if variable != "correlation":
            assert not (np.abs(found.mean(0) - 1.25 * wanted) < error).all()


ATTENTION = {
    "alone": {"kind": "attention", "depth": 3, "gain": 2.0, "qk_scale": 0.1},
    "skip": {"kind": "residual_attention", "depth": 5, "qk_scale": 0.5, "skip_scale": 0.9},
    "before, a norm": {"kind": "pre_ln", "sublayers": "attention", "depth": 5, "qk_scale": 0.5, "gain": 1.2},
    "behind, a norm": {
        "kind": "post_ln",
        "sublayers": "attention",
        "depth": 5,
        "qk_scale": 0.4,
        "branch_scale": 0.7,
    },
    "heads": {"kind": "residual_attention", "depth": 5, "branch_scale": 0.5, "heads": 4, "qk_scale": 0.4},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_tokens_are_as_large_and_as_alike_as_theory_says(name):
    """Within five standard errors and a twentieth of the value; and not where it is off by a half."""
    settings = {"tokens": 64, "width": 256, "batch": 1, "init": "lecun_normal"} | ATTENTION[name]
    told = jaxstab.predict(**settings)
    data = jaxstab.propagate(24, keep=["forward_rms", "correlation"], progress=False, **settings)
    for variable, power in (("forward_rms", 2), ("correlation", 1)):
        found, wanted = data[variable].values.astype(np.float64) ** power, told[variable].values ** power
        assert np.isfinite(wanted).all()
        error = 5 * found.std(0, ddof=1) / np.sqrt(len(found)) + 0.05 * wanted
        assert (np.abs(found.mean(0) - wanted) < error).all(), (variable, found.mean(0), wanted)
        assert not (np.abs(found.mean(0) - 1.5 * wanted) < error).all()
    np.testing.assert_allclose(told.log10_forward_rms, np.log10(told.forward_rms))
    assert np.isnan(told.backward_rms).all()


def test_of_attention_only_what_holds_is_said():
    settings = {"kind": "residual_attention", "depth": 12, "width": 64, "init": "lecun_normal"}
    assert np.isnan(jaxstab.predict(tokens=64, **settings).correlation[1:]).all()
    grown = jaxstab.predict(
        tokens=8, qk_scale=0.2, **settings
    ).correlation.values  # logits grow with the signal
    assert np.isfinite(grown[0])
    assert np.isnan(grown[-1])
    single = jaxstab.predict(tokens=1, qk_scale=0.0, **settings)
    assert np.isnan(single.correlation).all()
    np.testing.assert_allclose(single.forward_rms**2, 2.0 ** np.arange(1, 13))
    for unknown in ({"dropout": 0.1}, {"init": "constant"}, {"kind": "pre_ln", "sublayers": "alternate"}):
        assert np.isnan(
            jaxstab.predict(**settings | {"tokens": 64, "qk_scale": 0.0} | unknown).forward_rms
        ).all()
    known = {**settings, "depth": 3, "tokens": 64, "width": 512, "qk_scale": 0.1}
    assert "theory knows the tokens' size and likeness alone" in str(jaxstab.explain(**known))
