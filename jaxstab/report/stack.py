"""A stack in a terminal: measurement beside theory by layer, and what happens to it in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine.space import Space
from jaxstab.errors import UsageError
from jaxstab.report import figures
from jaxstab.theory import gains, meanfield
from jaxstab.trials.prediction import has_theory, sigmas
from jaxstab.trials.propagation import propagation

KEPT_GRADIENT = (-6.0, 3.0)
"""log10 of the range that gradients should stay in, [1e-6, 1e3], of the lecture notes."""
SHOWN = ("log10_forward_rms", "log10_backward_rms")


def show(
    space: Space, measured: xr.Dataset | None, predicted: xr.Dataset, plot: Path | None, as_json: bool,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    """Say a table and a paragraph for each configuration (or one JSON object), and draw the picture."""
    flat = [_flatten(data, space) for data in (measured, predicted)]
    configurations = list(space.configurations())
    if plot is not None:
        draw(flat[0], flat[1], configurations, plot)  # type: ignore[arg-type]
    texts = [explain(settings) for settings in configurations]
    if as_json:
        rows = [
            {
                "settings": {k: _plain(v) for k, v in s.items()},
                "explanation": text,
                "layers": rows_of(*pick(flat, i)),
            }
            for i, (s, text) in enumerate(zip(configurations, texts, strict=True))
        ]
        say(json.dumps({"configurations": rows}, allow_nan=False))
        return 0
    for i, (settings, text) in enumerate(zip(configurations, texts, strict=True)):
        say(
            ("" if i == 0 else "\n")
            + (", ".join(f"{k}={_plain(v)}" for k, v in settings.items()) or "defaults")
        )
        say(table(rows_of(*pick(flat, i))))
        say("\n" + text)
    if plot is not None:
        say(f"\npicture: {plot}")
    return 0


def pick(flat: list[xr.Dataset | None], number: int) -> tuple[xr.Dataset | None, xr.Dataset]:
    """One configuration's measurement (if any) and prediction."""
    one = [None if data is None else data.isel(every=number) for data in flat]
    return one[0], one[1]  # type: ignore[return-value]


def rows_of(measured: xr.Dataset | None, predicted: xr.Dataset) -> list[dict[str, Any]]:
    """Some layers' rms forward and backward in powers of ten: median and 95 % of seeds, and theory."""
    depth = int(np.isfinite(predicted[SHOWN[0]]).sum()) or predicted.sizes["layer"]
    if measured is not None:
        depth = int((~np.isnan(measured[SHOWN[0]].transpose("seed", "layer").values)).any(axis=0).sum())
    layers = sorted({1, 2, 5, *range(10, depth, max(10, depth // 50 * 10)), depth} & set(range(1, depth + 1)))
    rows = []
    for layer in layers:
        row: dict[str, Any] = {"layer": layer}
        for name in SHOWN:
            if measured is not None:
                low, median, high = (_finite(q) for q in figures.quantiles(measured[name].sel(layer=layer)))
                row |= {f"{name}": median, f"{name}_low": low, f"{name}_high": high}
            row[f"{name}_theory"] = _finite(predicted[name].sel(layer=layer))
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns."""
    spell = lambda x: "-" if x is None else f"{x:.2f}"  # noqa: E731
    lines = [f"{'layer':>6} {'log10 rms forward':>28} {'theory':>8} {'log10 rms gradient':>28} {'theory':>8}"]
    for row in rows:
        line = f"{row['layer']:>6}"
        for name in SHOWN:
            middle = (
                f"{spell(row[name])} [{spell(row[name + '_low'])}, {spell(row[name + '_high'])}]"
                if name in row
                else ""
            )
            line += f" {middle:>28} {spell(row[name + '_theory']):>8}"
        lines.append(line)
    return "\n".join(lines)


def explain(settings: dict[str, Any]) -> str:
    """What happens to a stack, why, and which gain would mend it, by mean-field theory."""
    spec, hparams = propagation.configure(settings)
    if not has_theory(spec):
        return f"No theory is known for kind={spec.kind}, init={spec.init}: what is measured is all there is to say."
    assert propagation.predict is not None
    predicted = propagation.predict(spec, hparams)
    sigma_w, sigma_b = sigmas(spec, hparams)
    text = [f"Each weight has standard deviation {sigma_w:.4g}/sqrt({spec.width}), each bias {sigma_b:.4g}."]
    forward, backward = predicted["log10_forward_rms"], predicted["log10_backward_rms"]
    text.append(_describe_forward(forward))
    total = float(backward[0])
    fate = (
        "vanishes"
        if total < KEPT_GRADIENT[0]
        else "explodes"
        if total > KEPT_GRADIENT[1]
        else "stays in [1e-6, 1e3]"
    )
    text.append(f"Over {spec.depth} layers the gradient changes by 10^{total:+.2f}: it {fate}.")
    if spec.kind in ("plain", "recurrent"):
        text.append(_describe_phase(spec, hparams, sigma_w, sigma_b))
    else:
        text.append(f"(A {spec.kind} stack has no critical gain of its own: each layer multiplies it by "
                    f"10^{float(backward[0] - backward[min(1, spec.depth - 1)]):+.4f} at the bottom.)")  # fmt: skip
    ends = [
        f"{direction} {'overflows' if what == 'bad' else 'is all zero'} in layer {int(predicted[name])}"
        for direction in ("forward", "backward") for what in ("bad", "lost")
        if predicted[name := f"first_{what}_layer_{direction}"] > 0
    ]  # fmt: skip
    if ends:
        text.append(f"In {spec.dtype} " + ", ".join(ends) + ".")
    return " ".join(text)


def _describe_forward(log10_rms: np.ndarray) -> str:
    last, step = float(log10_rms[-1]), float(log10_rms[-1] - log10_rms[max(len(log10_rms) - 2, 0)])
    if abs(step) < 1e-3:
        return f"The signal settles at an rms of {10.0**last:.4g}."
    return f"The signal {'grows' if step > 0 else 'shrinks'} by 10^{step:+.3f} a layer, to an rms of 10^{last:.2f}."


def _describe_phase(spec: Any, hparams: Any, sigma_w: float, sigma_b: float) -> str:
    point = meanfield.fixed_point(spec.activation, sigma_w, sigma_b)
    phase, scale = (
        f(spec.activation, sigma_w, sigma_b) for f in (meanfield.phase, meanfield.depth_scale_gradient)
    )
    found = f"chi = {float(point.chi):.4f}: {phase}"
    if float(scale) < 1e6:
        found += f", with a depth scale of {float(scale):.3g} layers"
    if phase == "critical":
        return f"{found}. The gain is right as it is."
    try:
        critical, _ = gains.critical_initialization(spec.activation, sigma_b)
    except UsageError as error:
        return f"{found}. No gain makes it critical ({error})"
    mended = hparams.gain * critical / sigma_w if sigma_w else math.nan
    return f"{found}. gain={mended:.4g} would make it critical (chi = 1)."


def draw(
    measured: xr.Dataset | None, predicted: xr.Dataset, configurations: list[dict[str, Any]], path: Path
) -> None:
    """Forward and backward rms by layer, theory dashed."""
    with figures.style():
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(9, 3.5))
        for panel, name in zip(panels, SHOWN, strict=True):
            for i, settings in enumerate(configurations[:8]):
                varying = {
                    k: v for k, v in settings.items() if len({_plain(c[k]) for c in configurations}) > 1
                }
                label = ", ".join(f"{k}={_plain(v)}" for k, v in varying.items()) or None
                if measured is not None:
                    figures.band(panel, measured[name].isel(every=i), label=label)
                figures.theory(panel, predicted.layer, predicted[name].isel(every=i))
            panel.set(
                xlabel="layer", title="log10 rms " + ("forward" if "forward" in name else "of the gradient")
            )
        if len(configurations) > 1 and measured is not None:
            panels[0].legend()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"--plot {path}: cannot be written ({error}).") from None
        finally:
            plt.close(figure)


def _flatten(data: xr.Dataset | None, space: Space) -> xr.Dataset | None:
    """Configurations along one dimension, `every`."""
    if data is None:
        return None
    names = [d.name for d in space.dimensions]
    if not names:
        return data.expand_dims("every")
    return data.stack(every=names, create_index=False).transpose("every", ...)


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    return getattr(value, "__name__", str(value)) if callable(value) else value
