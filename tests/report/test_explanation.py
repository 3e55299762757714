"""What is said of a stack: the facts against independent arithmetic, then the words against the facts.

`python tests/report/test_explanation.py` writes golden.json anew; what changed in it is to be read line by line.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import special

import jaxstab

GOLDEN = Path(__file__).with_name("golden.json")
CONFIGURATIONS = [
    {"activation": "tanh", "init": "lecun_normal", "gain": 0.3, "depth": 10},
    {"activation": "gelu", "init": "lecun_normal", "depth": 50},
    {"activation": "relu", "init": "normal", "depth": 30, "dtype": "float16"},
    {
        "activation": "relu",
        "init": "kaiming_normal",
        "gain": 1.15,
        "depth": 100,
        "width": 64,
        "dtype": "float16",
    },
    {"activation": "relu", "init": "kaiming_normal", "sigma_b": 0.5, "gain": 0.3, "depth": 20},
    {"activation": "sigmoid", "depth": 20},
    {"activation": "softplus", "depth": 40},
    {"kind": "residual", "activation": "relu", "init": "kaiming_normal", "depth": 50},
    {"kind": "normalized", "activation": "tanh", "depth": 100},
    {"kind": "lstm", "depth": 8},
    {"activation": "tanh", "init": "lecun_normal", "gain": 3.0, "depth": 30},
    {"activation": "linear", "gain": 0.0, "depth": 5},
]
Z = np.linspace(-12, 12, 240_001)
DENSITY = np.exp(-(Z**2) / 2) / math.sqrt(2 * math.pi) * (Z[1] - Z[0])
FUNCTIONS = {
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "gelu": (
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    ),
}


def by_hand(name: str, sigma_w: float, sigma_b: float, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """log10 rms by layer, forward and backward, by the maps of Schoenholz et al. 2017 on a plain grid."""
    phi, slope = FUNCTIONS[name]
    square, forward, factors = 1.0, [], []
    for _ in range(depth):
        q = sigma_w**2 * square + sigma_b**2
        square = np.sum(DENSITY * phi(math.sqrt(q) * Z) ** 2)
        factors.append(sigma_w**2 * np.sum(DENSITY * slope(math.sqrt(q) * Z) ** 2))
        forward.append(math.log10(square) / 2)
    # a gradient of rms 1 with respect to the last layer's output, through that layer and the others
    backward = [sum(math.log10(f) / 2 for f in factors[layer:]) for layer in range(1, depth + 1)]
    return np.array(forward), np.array(backward)


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b", "depth"),
    [("tanh", 0.3, 0.0, 10), ("tanh", 1.5, 0.2, 20), ("gelu", 1.0, 0.0, 30), ("gelu", 1.408, 0.418, 50)],
)
def test_rates_and_totals_are_those_of_the_maps(name, sigma_w, sigma_b, depth):
    told = jaxstab.explain(activation=name, init="lecun_normal", gain=sigma_w, sigma_b=sigma_b, depth=depth)
    forward, backward = by_hand(name, sigma_w, sigma_b, depth)
    np.testing.assert_allclose(told.rates_forward, np.diff(forward), atol=1e-6)
    np.testing.assert_allclose(told.rates_backward, -np.diff(backward)[::-1], atol=1e-6)
    assert told.total_forward == pytest.approx(forward[-1] - forward[0], abs=1e-5)
    assert told.total_backward == pytest.approx(backward[0] - backward[-1], abs=1e-5)
    assert told.rate_backward == pytest.approx(np.median(-np.diff(backward)), abs=1e-6)
    assert (told.sigma_w, told.sigma_b) == (pytest.approx(sigma_w), pytest.approx(sigma_b))


def test_gelu_is_told_the_gain_and_the_pair():
    told = jaxstab.explain(activation="gelu", init="lecun_normal", depth=50)
    assert [sorted(one.settings) for one in told.advice] == [["gain"], ["gain", "sigma_b"]]
    gain, pair = told.advice
    assert gain.settings["gain"] == pytest.approx(1.5335, abs=1e-4)
    assert gain.worst < 2
    assert pair.settings["sigma_b"] == pytest.approx(0.418, abs=5e-3)
    forward, backward = by_hand("gelu", pair.settings["gain"], pair.settings["sigma_b"], 50)
    assert pair.total_forward == pytest.approx(forward[-1] - forward[0], abs=1e-4)
    assert pair.total_backward == pytest.approx(backward[0] - backward[-1], abs=1e-4)
    for one in told.advice:
        assert jaxstab.explain(
            activation="gelu", init="lecun_normal", depth=50, **one.settings
        ).total_backward == (pytest.approx(one.total_backward, abs=1e-9))


@pytest.mark.parametrize("settings", CONFIGURATIONS, ids=lambda s: "-".join(map(str, s.values())))
def test_advice_leaves_what_it_says_and_at_most_half(settings):
    told = jaxstab.explain(**settings)
    for one in told.advice:
        again = jaxstab.explain(**settings | dict(one.settings))
        assert again.total_forward == pytest.approx(one.total_forward, abs=1e-9)
        assert again.total_backward == pytest.approx(one.total_backward, abs=1e-9)
        assert one.worst < 0.5 * max(abs(told.total_forward), abs(told.total_backward))


def test_the_verdict_speaks_of_the_rate_and_of_the_total():
    told = jaxstab.explain(activation="tanh", init="lecun_normal", gain=0.3, depth=10)
    text = str(told)
    assert "The gradient shrinks by 4.71 decades over 10 layers, 0.52 a layer." in text
    left = int(re.search(r"ends at about (\d+) layers", text)[1])
    assert (
        jaxstab.explain(activation="tanh", init="lecun_normal", gain=0.3, depth=left - 1).total_backward > -6
    )
    assert jaxstab.explain(activation="tanh", init="lecun_normal", gain=0.3, depth=left).total_backward < -6
    for total, words in ((-14.56, "vanishes"), (3.9, "explodes")):
        which = (
            {"activation": "gelu", "depth": 50}
            if total < 0
            else {"activation": "tanh", "gain": 3.0, "depth": 30}
        )
        told = jaxstab.explain(init="lecun_normal", **which)
        assert told.total_backward == pytest.approx(total, abs=0.01)
        assert words in str(told)


def test_where_a_narrow_format_has_no_digits_left_is_said():
    axes = {"activation": "relu", "init": "lecun_normal", "depth": 30, "dtype": "float8_e4m3fn"}
    said = str(jaxstab.explain(**axes))
    assert (
        "float8_e4m3fn's normal numbers, 0.0156 to 448: the signal from layer 13 on and the gradient from"
        in said
    )
    assert "normal numbers" not in str(jaxstab.explain(**axes | {"init": "kaiming_normal"}))
    assert "normal numbers" not in str(jaxstab.explain(**axes | {"dtype": "bfloat16"}))


def test_what_was_measured_is_said_with_the_forecast_beside():
    settings = {"activation": "relu", "init": "normal", "depth": 30, "dtype": "float16"}
    measured = jaxstab.propagate(seeds=4, **settings)
    told = jaxstab.explain(**settings)
    assert "Forecast for float16: signal not finite in all networks from layer 4." in str(told)
    assert measured.first_bad_layer_forward.values.tolist() == [4, 4, 4, 4]
    said = told.text(measured)
    assert (
        "Measured in float16: signal not finite in all 4 networks from layer 4 (forecast: in all networks"
        in said
    )
    assert "Forecast for" not in said
    # a measurement that the forecast did not see, and one that half of the networks show
    calm = jaxstab.explain(activation="tanh", depth=30, dtype="float16")
    half = measured.assign(first_bad_layer_forward=("seed", [0, 9, 11, 0]))
    words = "signal not finite in 50 % of 4 networks from layer 9 to 11, the median one"
    assert words in calm.text(half)
    assert "(forecast: none)" in calm.text(half)
    none = measured.assign(first_bad_layer_forward=("seed", [0, 0, 0, 0]))
    assert "signal not finite in none of 4 networks (forecast: in all networks" in told.text(none)


def test_the_record_is_json_and_holds_the_facts():
    for settings in CONFIGURATIONS:
        told = jaxstab.explain(**settings)
        record = json.loads(json.dumps(told.record(), allow_nan=False))
        assert record["total_backward"] == (
            told.total_backward if math.isfinite(told.total_backward) else None
        )
        assert len(record["advice"]) == len(told.advice)


def test_what_is_little_for_its_depth_gets_no_advice():
    """Less than a hundredth of a decade a layer, or less than half a decade in all, is left as it is."""
    for gain, depth in ((1.4, 100), (1.42, 100), (1.36, 100), (1.3, 10)):
        told = jaxstab.explain(activation="relu", init="lecun_normal", gain=gain, depth=depth)
        worst = max(abs(told.total_forward), abs(told.total_backward))
        assert bool(told.advice) == (worst >= max(0.01 * (depth - 1), 0.5)), (gain, worst)
    told = jaxstab.explain(activation="relu", init="lecun_normal", gain=1.392, depth=100)
    assert 0.5 < abs(told.total_backward) < 0.99
    assert told.advice == ()


def test_wrong_settings_get_one_line():
    for settings, words in (
        ({"widht": 3}, "'widht'.*'width'"),
        ({"gain": [1.0, 2.0]}, "gain="),
        ({"activation": "hard_tanh"}, "jax.nn.hard_tanh"),
    ):
        with pytest.raises(jaxstab.UsageError, match=words):
            jaxstab.explain(**settings)


def test_no_word_of_the_ten_is_other_than_it_was_and_each_states_its_facts():
    for golden in json.loads(GOLDEN.read_text()):
        told = jaxstab.explain(**golden["settings"])
        assert str(told) == golden["text"], golden["settings"]
        record = told.record()
        for name, value in golden["facts"].items():
            assert record[name] == (
                value if value is None or isinstance(value, str) else pytest.approx(value, abs=2e-3)
            )
        if told.sigma_w > 0:
            assert f"{abs(told.total_backward):.2f} decades" in str(
                told
            ) or "The gradient keeps its rms" in str(told)


def main() -> None:
    """Write the golden file."""
    facts = ("rate_forward", "rate_backward", "total_forward", "total_backward", "phase", "chi")
    golden = []
    for settings in CONFIGURATIONS:
        told = jaxstab.explain(**settings)
        rounded = {
            n: round(v, 4) if isinstance(v, float) else v for n, v in told.record().items() if n in facts
        }
        golden.append({"settings": settings, "facts": rounded, "text": str(told)})
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
