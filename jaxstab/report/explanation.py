"""What happens to a stack at initialization, why, and what would mend it: the facts, then the words that state them."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.errors import UsageError
from jaxstab.names import spell
from jaxstab.theory import fixed_points, gains
from jaxstab.theory.floats import FLOATS, range_of
from jaxstab.trials.prediction import has_digits, has_theory, infinite_width
from jaxstab.trials.propagation import propagation
from jaxstab.trials.scales import is_by_layer, sigmas
from jaxstab.trials.stack import HParams, Spec

KEPT = (-6.0, 3.0)
"""log10 of the range that gradients should stay in, [1e-6, 1e3], of the lecture notes."""
STEADY = 0.01
"""Decades a layer below which a rate is called none: ten over a thousand layers."""
SELDOM = 0.005
"""Share of networks that break below which a forecast is not worth a sentence."""
TENTHS = tuple(round(0.1 * i, 1) for i in range(1, 16))


@dataclasses.dataclass(frozen=True)
class Advice:
    """Parameters to set (`gain`, or `gain` and `sigma_b`, or `branch_scale`) and the log10 changes that they leave.

    `total_forward`, `total_backward`: over the stack's depth, as the width grows.
    """

    settings: Mapping[str, float]
    total_forward: float
    total_backward: float

    @property
    def worst(self) -> float:
        """Decades by which signal or gradient still change, whichever change more."""
        return max(abs(self.total_forward), abs(self.total_backward))

    def __str__(self) -> str:
        """One sentence's part."""
        set_to = " and ".join(f"{name}={value:.4g}" for name, value in self.settings.items())
        forward, backward = (
            f"{round(total, 2) + 0.0:+.2f}" for total in (self.total_forward, self.total_backward)
        )
        return f"{set_to} it would be {forward} decades of signal and {backward} of gradient"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Facts about one stack by mean-field theory, as the width grows; `str()` is their text.

    sigma_w, sigma_b: standard deviation of a weight times sqrt(width), and of a bias.
    rates_forward, rates_backward: [depth - 1], log10 of the factor on the rms from one layer to the next in the
        direction of travel: forward from layer l to l + 1, backward from layer l + 1 to l.
    rate_forward, rate_backward: their medians, decades a layer. total_forward, total_backward: their sums, decades
        over the stack.
    phase, chi, depth_scale: ordered, critical or chaotic; chi at the fixed point; 1/|ln chi| layers, over which a
        gradient changes by e. '' and NaN for kinds of stack that have no fixed point of their own.
    holds_forward, holds_backward: whether networks of the given width do what these say of infinitely wide ones
        (where not, `jaxstab.predict` is NaN).
    forecast: `jaxstab.predict`'s words on where the dtype ends.
    advice: what mends it, the simplest first; empty where nothing is to be mended, or nothing is known to.

    Where no theory is known all numbers are NaN.
    """

    settings: Mapping[str, Any]
    sigma_w: float
    sigma_b: float
    rates_forward: np.ndarray
    rates_backward: np.ndarray
    phase: str
    chi: float
    depth_scale: float
    holds_forward: bool
    holds_backward: bool
    forecast: Mapping[str, Any]
    advice: tuple[Advice, ...]
    sentences: tuple[str, ...]

    @property
    def rate_forward(self) -> float:
        """Decades a layer."""
        return _median(self.rates_forward)

    @property
    def rate_backward(self) -> float:
        """Decades a layer."""
        return _median(self.rates_backward)

    @property
    def total_forward(self) -> float:
        """Decades over the stack, from the first layer to the last."""
        return float(np.sum(self.rates_forward))

    @property
    def total_backward(self) -> float:
        """Decades over the stack, from the last layer to the first."""
        return float(np.sum(self.rates_backward))

    def record(self) -> dict[str, Any]:
        """The facts as JSON has them: None for what is not finite."""
        names = ("sigma_w", "sigma_b", "rate_forward", "rate_backward", "total_forward", "total_backward")
        names += ("phase", "chi", "depth_scale", "holds_forward", "holds_backward")
        facts = {name: _plain(getattr(self, name)) for name in names}
        facts["forecast"] = {name: _plain(value) for name, value in self.forecast.items()}
        facts["advice"] = [
            {
                **one.settings,
                "total_forward": _plain(one.total_forward),
                "total_backward": _plain(one.total_backward),
            }
            for one in self.advice
        ]
        return facts

    def text(self, measured: xr.Dataset | None = None) -> str:
        """The facts in sentences; with a measurement [seed] of the same stack, what became of it in its dtype."""
        spec, hparams = propagation.configure(self.settings)
        is_silent = measured is None and bool(_unsaid(spec, hparams))
        ends = [] if is_silent else _describe_ends(self.forecast, spec, measured)
        return " ".join([*self.sentences, *_describe_leaving(spec, hparams), *ends])

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{_cell(value)}</td></tr>"
            for name, value in self.record().items()
            if isinstance(value, (str, int, float)) and value != ""
        )
        return f"<p>{html.escape(self.text())}</p><table>{facts}</table>"


def _cell(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.4g}"


def explain(**settings: Any) -> Explanation:
    """What happens to the stack of these settings (those of `jaxstab.propagate`, one value each), and what mends it.

    Returns an `Explanation`: facts as fields, `str()` its text. Nothing is drawn: it is theory, as the width grows
    (Schoenholz et al. 2017) but for the forecast of where the dtype ends, which is of the given width.

    >>> told = explain(activation="relu", init="lecun_normal", depth=50)
    >>> print(told)  # doctest: +ELLIPSIS
    Each weight has standard deviation 1/sqrt(256), each bias 0. The signal shrinks by 7.38 decades over 50 layers, ...
    >>> told.phase, round(told.chi, 2), dict(told.advice[0].settings)
    ('ordered', 0.5, {'gain': 1.414213562373095})

    Raises UsageError for an unknown setting or a value that no stack has.
    """
    spec, hparams = propagation.configure(settings)
    assert propagation.predict is not None
    ends = ("first_", "break_", "lost_", "loss_scale")
    predicted = propagation.predict(spec, hparams)
    forecast = {n: x.item() for n, x in predicted.items() if n.startswith(ends)}
    holds = [not np.isnan(predicted[f"log10_{way}_rms"]).any() for way in ("forward", "backward")]
    if silent := _unsaid(spec, hparams, holds[0]):
        nothing = np.full(max(spec.depth - 1, 0), np.nan)
        unknown = (nothing, nothing, "", math.nan, math.nan, False, False)
        return Explanation(settings, math.nan, math.nan, *unknown, forecast, (), (silent,))
    sigma_w, sigma_b = map(float, sigmas(spec, hparams))
    forward, backward = _rates(spec, hparams)
    phase, chi, depth_scale = _phase(spec, hparams, sigma_w, sigma_b)
    known = (forward, backward, phase, chi, depth_scale, holds[0], holds[1])
    advice = _find_advice(spec, hparams, sigma_w, sigma_b)
    facts = Explanation(settings, sigma_w, sigma_b, *known, forecast, advice, ())
    return dataclasses.replace(facts, sentences=tuple(_sentences(facts, spec)))


def _unsaid(spec: Spec, hparams: HParams, holds: bool = False) -> str:
    """Why there is nothing to explain, `holds` what is told of the signal; "" where there is."""
    if not has_theory(spec, hparams):
        stack = f"kind={spell(spec.kind)}, init={spell(spec.init)}" + ", with dropout" * bool(hparams.dropout)
        if holds:
            what = "signal's size" if spec.kind == "batch_norm" else "tokens' size and likeness"
            return f"Of {stack} theory knows the {what} alone."
        return f"No theory is known for {stack}: what is measured is all there is to say."
    if spec.kind == "convolution" or is_by_layer(spec, hparams):
        what = "images" if spec.kind == "convolution" else "layers that differ in width or gain"
        return f"Of {what} theory is told layer by layer, by jaxstab.predict, and not in words."
    return ""


def _rates(spec: Any, hparams: Any) -> tuple[np.ndarray, np.ndarray]:
    """(forward, backward): log10 factors from layer to layer in the direction of travel, [depth - 1] each."""
    walked = infinite_width(spec, hparams)
    if spec.depth == 1 or not sigmas(spec, hparams)[0]:
        return np.zeros(spec.depth - 1), np.zeros(spec.depth - 1)  # no step, or all is zero from the first on
    return np.diff(walked["log10_forward_rms"]), -np.diff(walked["log10_backward_rms"])[::-1]


def _phase(spec: Any, hparams: Any, sigma_w: float, sigma_b: float) -> tuple[str, float, float]:
    """(phase, chi, depth scale in layers) of the fixed point; with dropout there is none."""
    if spec.kind not in ("plain", "recurrent") or hparams.dropout:
        return "", math.nan, math.nan
    point = fixed_points.fixed_point(spec.activation, sigma_w, sigma_b)
    scale = fixed_points.depth_scale_gradient(spec.activation, sigma_w, sigma_b)
    return str(fixed_points.phase(spec.activation, sigma_w, sigma_b)), float(point.chi), float(scale)


def _find_advice(spec: Any, hparams: Any, sigma_w: float, sigma_b: float) -> tuple[Advice, ...]:
    """Candidates that at least halve the decades lost, where these are enough to speak of; the simplest first."""

    def weigh(**numbers: float) -> Advice:
        forward, backward = _rates(spec, hparams._replace(**numbers))
        return Advice(numbers, float(np.sum(forward)), float(np.sum(backward)))

    now = weigh()
    if now.worst < max(STEADY * (spec.depth - 1), 0.5):
        return ()
    found = [weigh(**numbers) for numbers in _candidates(spec, hparams, sigma_w, sigma_b)]
    better = [one for one in found if one.worst < 0.5 * now.worst]
    if not better and spec.kind in ("plain", "recurrent"):
        better = [one for one in [weigh(gain=_scan(spec, hparams))] if one.worst < 0.5 * now.worst]
    return tuple(sorted(better, key=lambda one: (len(one.settings), one.worst)))


def _scan(spec: Any, hparams: Any) -> float:
    """The gain, of 61 from an eighth to eight times the weights' usual scale, that changes least."""
    tried = np.geomspace(0.125, 8, 61) * abs(hparams.gain) / max(float(sigmas(spec, hparams)[0]), 1e-30)
    walked = infinite_width.many(spec, hparams._replace(gain=tried, sigma_b=np.full(61, hparams.sigma_b)))
    changes = [
        walked[f"log10_{way}_rms"][:, -1] - walked[f"log10_{way}_rms"][:, 0]
        for way in ("forward", "backward")
    ]
    worst = np.max(np.abs(changes), axis=0)
    return float(tried[np.nanargmin(np.where(np.isfinite(worst), worst, np.inf))])


def _candidates(spec: Any, hparams: Any, sigma_w: float, sigma_b: float) -> list[dict[str, float]]:
    """Numbers that are worth weighing."""
    if spec.kind == "residual":
        return [{"branch_scale": 1 / math.sqrt(spec.depth)}]
    if spec.kind not in ("plain", "recurrent") or not sigma_w or hparams.dropout:
        return []
    per_gain = sigma_w / abs(hparams.gain)
    own_bias = float(
        sigmas(spec, hparams._replace(sigma_b=0.0))[1]
    )  # of the initialization, which no setting removes
    found = []
    critical = _critical(spec.activation, sigma_b)
    if critical is not None:
        found.append({"gain": critical / per_gain})
    else:
        kept = _or_none(gains.gain, spec.activation)
        found += [] if kept is None else [{"gain": kept / per_gain}]
        pair = None if own_bias else _critical_pair(spec.activation)
        found += [] if pair is None else [{"gain": pair[0] / per_gain, "sigma_b": pair[1]}]
    return found


def _critical(activation: Any, sigma_b: float) -> float | None:
    """The critical sigma_w at this sigma_b, if there is one."""
    pair = _or_none(gains.critical_initialization, activation, sigma_b)
    return None if pair is None else pair[0]


@functools.lru_cache(maxsize=64)
def _critical_pair(activation: Any) -> tuple[float, float] | None:
    """(sigma_w, sigma_b) of the smallest sigma_b up to 1.5, to 0.001, that has a critical sigma_w; None for none."""
    if _critical(activation, 0.0) is not None:
        return _critical(activation, 0.0), 0.0  # type: ignore[return-value]
    high = next((b for b in TENTHS if _critical(activation, b) is not None), None)
    if high is None:
        return None
    low = high - 0.1
    while high - low > 1.5e-3:
        middle = round((low + high) / 2, 3)
        low, high = (low, middle) if _critical(activation, middle) is not None else (middle, high)
    return _critical(activation, high), high  # type: ignore[return-value]


def _sentences(facts: Explanation, spec: Any) -> list[str]:
    text = [
        f"Each weight has standard deviation {facts.sigma_w:.4g}/sqrt({spec.width}), each bias {facts.sigma_b:.4g}."
    ]
    if not facts.sigma_w:
        return [*text, "Nothing passes from layer to layer: every weight is zero."]
    if spec.depth > 1:
        strays = f" This is of infinitely wide networks; those of width {spec.width} {{}}."
        forward = "" if facts.holds_forward else strays.format("stray from it")
        stray = "have a larger one" if spec.kind == "residual" else "stray from it"
        backward = "" if facts.holds_backward else strays.format(stray)
        text.append(_describe("The signal", facts.rates_forward, spec.depth) + forward)
        text.append(_describe("The gradient", facts.rates_backward, spec.depth) + backward + _fate(facts))
    if facts.phase:
        chi = f"{facts.chi:.4f}" if facts.chi < 100 else f"{facts.chi:.4g}"
        scale = f", depth scale {facts.depth_scale:.3g} layers" if facts.depth_scale < 1e6 else ""
        text.append(f"The fixed point is {facts.phase} (chi = {chi}{scale}).")
    elif spec.kind == "plain" and "dropout" in facts.settings:
        text.append("Masks keep inputs apart: with dropout there is no critical line.")
    return text + _describe_advice(facts, spec)


def _describe(what: str, rates: np.ndarray, depth: int) -> str:
    """Total and rate of one direction."""
    total, rate, over = float(np.sum(rates)), _median(rates), f"over {depth} layers"
    if math.isnan(total):
        return f"{what} is not known {over}."
    if abs(total) < 0.05:
        return f"{what} keeps its rms {over} (a factor of {10.0**total:.3g})."
    is_early = abs(rate) < STEADY and abs(float(np.sum(rates[: -(-len(rates) // 2)]))) > 0.9 * abs(total)
    pace = "nearly all of it in the first half of its way" if is_early else f"{abs(rate):.2g} a layer"
    return f"{what} {'grows' if total > 0 else 'shrinks'} by {abs(total):.2f} decades {over}, {pace}."


def _fate(facts: Explanation) -> str:
    """The verdict on the gradient: of the total, and of the rate where the total is not yet out of range."""
    total, rate = facts.total_backward, facts.rate_backward
    if math.isnan(total):
        return ""
    if not KEPT[0] <= total <= KEPT[1]:
        return f" It {'vanishes' if total < 0 else 'explodes'}: outside [1e-6, 1e3]."
    if not facts.holds_backward:
        return ""  # what infinitely wide networks would keep is no verdict on these
    if abs(rate) < STEADY:
        return " That is within [1e-6, 1e3]."
    if abs(_median(facts.rates_backward[: -(-len(facts.rates_backward) // 4)]) - rate) > 0.2 * abs(rate):
        return " That is within [1e-6, 1e3] at this depth; its rate changes from layer to layer."
    layers = math.ceil((KEPT[0] if rate < 0 else KEPT[1]) / rate) + 1
    return f" That is within [1e-6, 1e3] at this depth; at this rate that ends at about {layers} layers."


def _describe_advice(facts: Explanation, spec: Any) -> list[str]:
    if facts.advice:
        return [f"With {'; with '.join(str(one) for one in facts.advice)}."]
    changes = max(abs(facts.total_forward), abs(facts.total_backward))
    if facts.phase == "critical":
        strays = not (facts.holds_forward and facts.holds_backward)
        return ["No gain is better, but wider layers are." if strays else "The gain is right as it is."]
    if not changes > max(STEADY * spec.depth, 0.5):
        return ["Nothing needs mending at this depth."]
    if spec.kind in ("normalized", "rms_norm"):
        return ["No gain changes that: every layer normalizes what the last one passed on."]
    if spec.kind == "residual":
        return ["A residual stack has no critical gain; a smaller branch_scale lowers its rate."]
    return ["No gain was found that mends it, with these biases or with larger ones up to 1.5."]


def _describe_ends(forecast: Mapping[str, Any], spec: Any, measured: xr.Dataset | None) -> list[str]:
    """Where the dtype ends: what was measured, the forecast beside it; the forecast alone where nothing was."""
    found = []
    for direction, subject in (("forward", "signal"), ("backward", "gradient")):
        for what, share_name, verb in (("bad", "break", "not finite"), ("lost", "lost", "all zero")):
            name = f"first_{what}_layer_{direction}"
            share = float(forecast[f"{share_name}_fraction_{direction}"])
            ends = [float(forecast[name + end]) for end in ("_low", "", "_high")]
            theory = (
                _spell_ends(share, ends) if share > SELDOM else "none" if share <= SELDOM else "not known"
            )
            if measured is None and math.isnan(share):
                return [f"Where {spec.dtype} ends is not known for such a stack."]
            if measured is None:
                found += [f"Forecast for {spec.dtype}: {subject} {verb} {theory}."] if share > SELDOM else []
                continue
            layers = measured[name].values
            broken = np.sort(layers[layers > 0])
            if broken.size:
                spread = np.quantile(broken, (0.025, 0.5, 0.975), method="nearest").tolist()
                there = _spell_ends(broken.size / layers.size, spread, f"{layers.size} ")
            else:
                there = f"in none of {layers.size} networks"
            if broken.size or share > 0.5:
                found.append(f"Measured in {spec.dtype}: {subject} {verb} {there} (forecast: {theory}).")
    return found


def _describe_leaving(spec: Any, hparams: Any) -> list[str]:
    """From which layer on theory is silent on a narrow format, because few of its numbers are left there."""
    if spec.dtype in FLOATS or propagation.predict is None:
        return []
    forecast, limits, found = propagation.predict(spec, hparams), range_of(spec.dtype), []
    for way, subject, first in (("forward", "signal", 0), ("backward", "gradient", -1)):
        log10 = forecast[f"log10_{way}_rms"]
        leaves = np.isfinite(log10) & ~has_digits(spec, log10)
        if leaves.any():
            layer = np.flatnonzero(leaves)[first] + 1
            found.append(f"the {subject} from layer {layer} {'down' if first else 'on'}")
    ends = f"{limits.smallest_normal:.3g} to {limits.largest:.3g}"
    return (
        [f"Too near the ends of {spec.dtype}'s normal numbers, {ends}: {' and '.join(found)}."]
        if found
        else []
    )


def _spell_ends(share: float, ends: list[float], count: str = "") -> str:
    """Networks that end, and the layers where they do: 2.5 %, median and 97.5 % among them."""
    low, middle, high = ends
    who = f"in all {count}networks" if share == 1 else f"in {_percent(share)} of {count}networks"
    if low == high:
        return f"{who} from layer {low:.0f}"
    return f"{who} from layer {low:.0f} to {high:.0f}" + (
        f", the median one {middle:.0f}" if middle > 0 else ""
    )


def _percent(share: float) -> str:
    return (
        f"{100 * share:.0f} %"
        if 0.01 <= share <= 0.99
        else f"{100 * share:.2g} %"
        if share < 0.5
        else "more than 99 %"
    )


def _median(rates: np.ndarray) -> float:
    return float(np.median(rates)) if len(rates) else 0.0


def _or_none(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except UsageError:
        return None


def _plain(value: Any) -> Any:
    if callable(value):
        return spell(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
