"""Training runs in a terminal: how each configuration ended, and its curves over the epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.report import figures

DRAWN = 6
"""Configurations that a picture holds: as many as the style has colours."""
SHOWN = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


def show(data: xr.Dataset, plot: Path | None, as_json: bool, say: Callable[[str], None]) -> int:
    """Say the last epoch's medians and intervals for each configuration (or one JSON object); draw the curves."""
    axes = [str(d) for d in data.status.dims if d != "seed"]
    flat = data.stack(every=axes, create_index=False) if axes else data.expand_dims("every")
    rows = [_row(flat.isel(every=i), axes) for i in range(flat.sizes["every"])]
    if plot is not None:
        draw(flat, rows, plot)
    if as_json:
        say(json.dumps({"configurations": rows, "seeds": data.sizes["seed"]}, allow_nan=False))
        return 0
    for row in rows:
        settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items()) or "defaults"
        numbers = "  ".join(f"{name} {_spell(row[name])}" for name in SHOWN)
        ended = ", ".join(f"{n} {flag}" for flag, n in row["status"].items() if n)
        say(f"{settings}\n  {numbers}\n  {ended}")
    if plot is not None:
        say(f"\npicture: {plot}")
    return 0


def _row(one: xr.Dataset, axes: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"settings": {a: one[a].item() for a in axes}}
    for name in SHOWN:
        ends = [float(q) for q in figures.quantiles(one[name].isel(epoch=-1))]
        row[name] = [x if math.isfinite(x) else None for x in ends]
    flags = zip(one.status.attrs["flag_meanings"].split(), one.status.attrs["flag_values"], strict=True)
    row["status"] = {flag: int((one.status == value).sum()) for flag, value in flags}
    return row


def _spell(ends: list[float | None]) -> str:
    low, median, high = ("-" if x is None else f"{x:.3f}" for x in ends)
    return f"{median} [{low}, {high}]"


def draw(flat: xr.Dataset, rows: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy over the epochs, training dotted, bands over seeds."""
    varying = {k for k in rows[0]["settings"] if len({str(row["settings"][k]) for row in rows}) > 1}
    with figures.style():
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
        for panel, what in zip(panels, ("loss", "accuracy"), strict=True):
            for i, row in enumerate(rows[:DRAWN]):
                one, colour = flat.isel(every=i), f"C{i}"
                label = ", ".join(f"{k}={v}" for k, v in row["settings"].items() if k in varying) or None
                figures.band(panel, one[f"test_{what}"], x="epoch", color=colour, label=label)
                figures.band(panel, one[f"train_{what}"], x="epoch", color=colour, linestyle=":")
            panel.xaxis.get_major_locator().set_params(integer=True)
            unit = " [nat]" if what == "loss" else ""
            panel.set(
                xlabel="epoch",
                ylabel=f"{what}{unit}",
                title=f"{what.capitalize()}: test, and training (dotted)",
            )
        panels[0].set_ylim(0, min(np.nanmax(flat.test_loss.isel(epoch=0)), panels[0].get_ylim()[1]) * 1.1)
        if varying:
            panels[1].legend(loc="lower right")
        figures.note(figure, figures.of_seeds(flat.sizes["seed"]))
        figures.save(figure, path)
