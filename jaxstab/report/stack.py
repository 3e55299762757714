"""A stack in a terminal: measurement beside theory by layer, and what happens to it in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from jaxstab.engine.label import count_name
from jaxstab.engine.space import Space
from jaxstab.names import spell
from jaxstab.report import figures
from jaxstab.report.explanation import explain

SHOWN = ("log10_forward_rms", "log10_backward_rms")
DRAWN = 6
"""Configurations that a picture holds: as many as the style has colours."""


def show(
    space: Space,
    measured: xr.Dataset | None,
    predicted: xr.Dataset,
    plot: Path | None,
    as_json: bool,
    say: Callable[[str], None],
) -> int:
    """Say a table and a paragraph for each configuration (or one JSON object), and draw the picture."""
    flat = [_flatten(data, space) for data in (measured, predicted)]
    configurations = list(space.configurations())
    if plot is not None:
        draw(flat[0], flat[1], configurations, plot)  # type: ignore[arg-type]
    explained = [explain(**settings) for settings in configurations]
    if as_json:
        rows = [
            {
                "settings": {k: _plain(v) for k, v in s.items()},
                "explanation": one.text(pick(flat, i)[0]),
                "facts": one.record(),
                "layers": rows_of(*pick(flat, i)),
            }
            for i, (s, one) in enumerate(zip(configurations, explained, strict=True))
        ]
        say(json.dumps({"configurations": rows}, allow_nan=False))
        return 0
    for i, (settings, one) in enumerate(zip(configurations, explained, strict=True)):
        say(
            ("" if i == 0 else "\n")
            + (", ".join(f"{k}={_plain(v)}" for k, v in settings.items()) or "defaults")
        )
        say(table(rows_of(*pick(flat, i))))
        say("\n" + one.text(pick(flat, i)[0]))
    if plot is not None:
        say(f"\npicture: {plot}")
    return 0


def pick(flat: list[xr.Dataset | None], number: int) -> tuple[xr.Dataset | None, xr.Dataset]:
    """One configuration's measurement (if any) and prediction."""
    one = [None if data is None else data.isel(every=number) for data in flat]
    return one[0], one[1]  # type: ignore[return-value]


def rows_of(measured: xr.Dataset | None, predicted: xr.Dataset) -> list[dict[str, Any]]:
    """Some layers' rms forward and backward in powers of ten: median and 95 % of seeds, and theory."""
    # of this configuration: NaN may be padding, or what theory cannot say
    depth = int(predicted.coords.get(count_name("layer"), predicted.sizes["layer"]))
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

    def written(x: float | None) -> str:
        return "-" if x is None else f"{x:.2f}"

    lines = [f"{'layer':>6} {'log10 rms forward':>28} {'theory':>8} {'log10 rms gradient':>28} {'theory':>8}"]
    for row in rows:
        line = f"{row['layer']:>6}"
        for name in SHOWN:
            middle = (
                f"{written(row[name])} [{written(row[name + '_low'])}, {written(row[name + '_high'])}]"
                if name in row
                else ""
            )
            line += f" {middle:>28} {written(row[name + '_theory']):>8}"
        lines.append(line)
    return "\n".join(lines)


def draw(
    measured: xr.Dataset | None, predicted: xr.Dataset, configurations: list[dict[str, Any]], path: Path
) -> None:
    """Forward and backward rms by layer, theory dashed."""
    with figures.style():
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
        for panel, name in zip(panels, SHOWN, strict=True):
            for i, settings in enumerate(configurations[:DRAWN]):
                varying = {
                    k: v for k, v in settings.items() if len({_plain(c[k]) for c in configurations}) > 1
                }
                label = ", ".join(f"{k}={_plain(v)}" for k, v in varying.items()) or None
                if measured is not None:
                    figures.band(panel, measured[name].isel(every=i), label=label)
                figures.theory(panel, predicted.layer, predicted[name].isel(every=i))
            what = "signal" if "forward" in name else "gradient"
            panel.set(xlabel="layer", ylabel=f"log10 of the {what}'s rms", title=what.capitalize())
        seeds = [] if measured is None else [figures.of_seeds(measured.sizes["seed"])]
        if len(configurations) > 1 and measured is not None:
            panels[0].legend()
        figures.note(figure, *seeds, "dashes: theory")
        figures.save(figure, path)


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
    return spell(value) if callable(value) else value
