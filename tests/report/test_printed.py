"""Numbers that are printed, recomputed from raw outputs in another way."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import integrate, special

import jaxstab
from jaxstab import cli
from jaxstab.report import stack
from jaxstab.report.claims import make_claim

SETTINGS = {"activation": "tanh", "depth": 12, "width": 16, "batch": 4, "gain": [0.5, 2.0]}
WORDS = [
    "--activation",
    "tanh",
    "--depth",
    "12",
    "--width",
    "16",
    "--batch",
    "4",
    "--gain",
    "0.5",
    "2.0",
    "--seeds",
    "9",
]


def run(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words])
    assert ended.value.code == 0
    return capsys.readouterr().out


def three(values) -> list[float]:
    """2.5 %, 50 % and 97.5 % of finite values, by hand."""
    ordered = sorted(map(float, values))
    found = []
    for q in (0.025, 0.5, 0.975):
        place = q * (len(ordered) - 1)
        below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
        found.append(below + (place - math.floor(place)) * (above - below))
    return found


def rms_by_hand(data, gain: float, name: str, layer: int) -> list[float]:
    """log10 of the float32 rms of every seed: another output of the same networks."""
    return np.log10(data[name].sel(gain=gain, layer=layer).values.astype(np.float64)).tolist()


def test_the_table_of_propagate_is_that_of_the_raw_outputs(capsys):
    told = json.loads(run(capsys, "propagate", *WORDS, "--json"))["configurations"]
    data = jaxstab.propagate(seeds=9, **SETTINGS)
    theory = jaxstab.predict(**SETTINGS)
    for one in told:
        gain = one["settings"]["gain"]
        assert [row["layer"] for row in one["layers"]] == [1, 2, 5, 10, 12]
        for row in one["layers"]:
            for way in ("forward", "backward"):
                name = f"log10_{way}_rms"
                expected = three(rms_by_hand(data, gain, f"{way}_rms", row["layer"]))
                got = [row[f"{name}_low"], row[name], row[f"{name}_high"]]
                assert got == pytest.approx(expected, abs=2e-6)
                at = theory[f"{way}_rms"].sel(gain=gain, layer=row["layer"]).item()
                said = row[f"{name}_theory"]
                assert said == pytest.approx(math.log10(at), abs=1e-9) if said is not None else math.isnan(at)


def test_the_text_of_propagate_holds_the_numbers_of_its_json(capsys):
    told = json.loads(run(capsys, "propagate", *WORDS, "--json"))["configurations"]
    lines = run(capsys, "propagate", *WORDS).splitlines()
    for one in told:
        start = next(i for i, line in enumerate(lines) if f"gain={one['settings']['gain']}" in line)
        for row, line in zip(one["layers"], lines[start + 2 :], strict=False):
            wanted = [str(row["layer"])]
            for name in ("log10_forward_rms", "log10_backward_rms"):
                wanted += [f"{row[name]:.2f}", f"[{row[name + '_low']:.2f},", f"{row[name + '_high']:.2f}]"]
                theory = row[f"{name}_theory"]
                wanted += ["-" if theory is None else f"{theory:.2f}"]
            assert line.split() == wanted


def test_the_numbers_of_train_are_those_of_the_raw_outputs(capsys):
    words = ["--hidden", "8", "--epochs", "2", "--learning-rate", "0.1", "1e30", "--seeds", "5", "--json"]
    told = json.loads(run(capsys, "train", *words))["configurations"]
    data = jaxstab.train(seeds=5, hidden=8, epochs=2, learning_rate=[0.1, 1e30])
    for one in told:
        last = data.sel(learning_rate=one["settings"]["learning_rate"]).isel(epoch=-1)
        flags = last.status.attrs["flag_meanings"].split()
        counts = dict.fromkeys(flags, 0)
        for value in last.status.values:
            counts[flags[list(last.status.attrs["flag_values"]).index(value)]] += 1
        assert one["status"] == counts
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            if np.isfinite(last[name]).all():
                assert one[name] == pytest.approx(three(last[name].values), rel=1e-6)
            else:
                assert not np.isfinite(last[name]).any()
                assert one[name] == [None, None, None]


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "sigmoid"])
def test_the_gains_are_integrals(capsys, name):
    told = json.loads(run(capsys, "gain", name, "--json"))[name]

    def density(x):
        return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def mean(f):
        return integrate.quad(lambda x: f(x) * density(x), -12, 12, points=[0.0], epsabs=1e-13)[0]

    phi, slope = {
        "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
        "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
        "gelu": (lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * density(x)),
        "sigmoid": (special.expit, lambda x: special.expit(x) * special.expit(-x)),
    }[name]
    assert told["forward"] == pytest.approx(mean(lambda x: phi(x) ** 2) ** -0.5, rel=1e-8)
    assert told["backward"] == pytest.approx(mean(lambda x: slope(x) ** 2) ** -0.5, rel=1e-8)
    assert told["std"] == pytest.approx((mean(lambda x: phi(x) ** 2) - mean(phi) ** 2) ** -0.5, rel=1e-8)


def test_the_counts_of_sweep_are_those_of_the_statuses(capsys):
    axes = ["depth=40", "width=16", "batch=2", "activation=linear", "init=normal", "gain=0.1,1,10"]
    words = ["sweep", "propagation", "--grid", *axes, "--seeds", "3", "--keep", "correlation", "--json"]
    told = json.loads(run(capsys, *words))
    data = jaxstab.propagate(
        seeds=3, depth=40, width=16, batch=2, activation="linear", init="normal", gain=[0.1, 1.0, 10.0]
    )
    overflows = ~np.isfinite(data.forward_rms).all("layer")
    is_lost = (data.forward_rms == 0).any("layer")
    expected = {"nonfinite": int(overflows.sum()), "vanished": int((is_lost & ~overflows).sum())}
    assert told["lanes"] == 9
    assert {name: told["status"][name] for name in expected} == expected
    assert told["status"]["ok"] == 9 - sum(expected.values())
    assert expected["nonfinite"] > 0


def test_a_claims_numbers_are_recomputed():
    sample = np.random.default_rng(3).normal(size=200)
    made = make_claim("e", "q", sample, published=0.4, source="s", resolution=0.05, theory=0.0)
    assert [made.low, made.median, made.high] == pytest.approx(three(sample))
    below = sum(x < 0.35 for x in sample)
    tied = sum(0.35 <= x <= 0.45 for x in sample)
    assert made.percentile == pytest.approx((below + tied / 2) / 2)
    assert (made.seeds, made.diverged) == (200, 0)


def test_a_diverged_accuracy_stands_at_the_bad_end_of_a_claim():
    data = jaxstab.train(seeds=4, hidden=4, epochs=1, learning_rate=1e30, batch_size=512)
    accuracy = data.test_accuracy.isel(epoch=-1)
    made = make_claim("e", "accuracy", accuracy, published=None, source="s")
    assert made.low == -math.inf
    assert made.diverged == int(np.isnan(accuracy).sum()) > 0


def test_a_deep_table_shows_some_fifty_layers_and_the_ends():
    predicted = jaxstab.predict(depth=1000, width=16, batch=1, activation="linear")
    layers = [row["layer"] for row in stack.rows_of(None, predicted)]
    assert layers == [1, 2, 5, *range(10, 1000, 200), 1000]


def test_a_picture_is_said_only_where_one_was_drawn(capsys, tmp_path):
    path = tmp_path / "a.png"
    words = ["predict", "--depth", "3", "--width", "8"]
    assert "picture" not in run(capsys, *words)
    assert f"picture: {path}" in run(capsys, *words, "--plot", str(path))
    assert path.stat().st_size > 1000
