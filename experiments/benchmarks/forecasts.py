"""Where float16 ends, forecast and measured: `python -m experiments.benchmarks.forecasts [--out FILE.md]`.

A forecast is a law over networks, so that what is compared is the share of networks that break, with the standard
error of a share of so many, the median layer of those that do, and how many of them the forecast's 95 % hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

import jaxstab
from jaxstab.nets import initializers
from jaxstab.theory import breaking, trajectory

HEADER = (
    "| activation | init x gain | stack | what | measured | forecast | errors apart | medians | 95 % | covered |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


class Case(NamedTuple):
    """One configuration of plain or residual stacks; the width is 64."""

    activation: str
    init: str
    gain: float
    depth: int
    kind: str = "plain"
    batch: int = 4
    width: int = 64
    dtype: str = "float16"


CASES = (
    *(Case(phi, "normal", 1.0, 14) for phi in ("linear", "relu", "leaky_relu", "tanh", "gelu", "elu")),
    Case("linear", "kaiming_normal", 0.86, 55),
    Case("relu", "kaiming_normal", 1.2, 55),
    Case("leaky_relu", "kaiming_normal", 1.2, 55),
    Case("tanh", "kaiming_normal", 2.0, 60),
    Case("gelu", "kaiming_normal", 1.2, 60),
    Case("elu", "kaiming_normal", 1.2, 60),
    Case("linear", "orthogonal", 1.2, 60),
    Case("relu", "orthogonal", 1.7, 55),
    Case("relu", "kaiming_uniform", 1.2, 55),
    Case("relu", "kaiming_normal", 0.7, 50),
    Case("linear", "kaiming_normal", 0.5, 55),
    Case("relu", "kaiming_normal", 1.0, 20, width=8, batch=1),
    Case("silu", "kaiming_normal", 1.25, 60),
    Case("mish", "kaiming_normal", 1.2, 60),
    Case("relu", "kaiming_normal", 1.15, 80, width=128, batch=8),
    Case("gelu", "kaiming_normal", 1.3, 40, width=32, batch=2),
    Case("linear", "kaiming_normal", 1.0, 30, kind="residual"),
    Case("relu", "kaiming_normal", 1.0, 30, kind="residual"),
)


class Line(NamedTuple):
    """One outcome of one case: shares, their standard error, medians, the forecast's interval, its coverage."""

    what: str
    measured: float
    forecast: float
    error: float
    medians: tuple[float, float]
    interval: tuple[float, float]
    covered: float

    @property
    def apart(self) -> float:
        """Standard errors between the shares."""
        return abs(self.measured - self.forecast) / self.error


def foretell(case: Case) -> dict[str, np.ndarray]:
    """The forecast of one case, arrays [1]."""
    sigma_w = initializers.weight_std(case.init, case.width, case.width) * math.sqrt(case.width) * case.gain
    walked = trajectory(case.activation, case.depth, np.array([sigma_w]), kind=case.kind)
    weights = "orthogonal" if case.init == "orthogonal" else "gaussian"
    return breaking.forecast(
        case.activation,
        kind=case.kind,
        width=case.width,
        depth=case.depth,
        batch=case.batch,
        sigma_w=np.array([sigma_w]),
        sigma_b=np.zeros(1),
        branch_scale=np.ones(1),
        dtype=case.dtype,
        log10_forward_rms=walked.log_square / math.log(100),
        log10_backward_rms=walked.log_gradient / math.log(100),
        weights=weights,
    )


def measure(case: Case, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """What networks do, arrays [seed]."""
    names = [f"first_{what}_layer_{way}" for way in ("forward", "backward") for what in ("bad", "lost")]
    found: Any = jaxstab.propagate(seeds=seeds, keep=names, **case._asdict())
    return {name: np.asarray(found[name].values, np.float64) for name in names}


def compare(measured: dict[str, np.ndarray], told: dict[str, np.ndarray]) -> Iterator[Line]:
    """Line by line what was measured [seed] and foretold [1]."""
    for name, layers in measured.items():
        share = name.replace("first_bad_layer", "break_fraction").replace("first_lost_layer", "lost_fraction")
        forecast, broken = float(told[share][0]), layers[layers > 0]
        count = layers.size
        guess = (forecast * count + 1) / (count + 2)  # a share of 0 or 1 has an error too
        low, high = float(told[f"{name}_low"][0]), float(told[f"{name}_high"][0])
        median = float(np.quantile(broken, 0.5, method="inverted_cdf")) if 2 * broken.size >= count else 0.0
        covered = float(np.mean((broken >= low) & (broken <= high))) if broken.size else math.nan
        what, error = (
            name.removeprefix("first_").replace("_layer_", " "),
            math.sqrt(guess * (1 - guess) / count),
        )
        medians = (median, float(told[name][0]))
        yield Line(what, broken.size / count, forecast, error, medians, (low, high), covered)


def row(case: Case, line: Line) -> str:
    """A line of the Markdown table."""
    stack = f"{case.kind} {case.depth} x {case.width} x {case.batch}"
    return (
        f"| {case.activation} | {case.init} x {case.gain:g} | {stack} | {line.what} | {line.measured:.3f} "
        f"| {line.forecast:.3f} | {line.apart:.1f} | {line.medians[0]:.0f}, {line.medians[1]:.0f} "
        f"| {line.interval[0]:.0f} to {line.interval[1]:.0f} | {line.covered:.2f} |"
    )


def main(seeds: int = 200, first: int = 10_000, out: Path | None = None) -> int:
    """Print the table; 1 if a share is five standard errors off.

    Args:
        seeds: networks measured for each case.
        first: the first of their seeds; those from 0 on served to find the law.
        out: where to write it as well.
    """
    print(HEADER, end="")
    rows, worst, began = [], 0.0, time.perf_counter()
    for case in CASES:
        for line in compare(measure(case, first + np.arange(seeds)), foretell(case)):
            if line.measured == 0 and line.forecast == 0:
                continue
            rows.append(row(case, line))
            print(rows[-1], flush=True)
            worst = max(worst, line.apart) if math.isfinite(line.forecast) else worst
    seconds = time.perf_counter() - began
    closing = (
        f"\n{seeds} networks a case, seeds from {first}, {seconds:.0f} s; at most {worst:.1f} errors apart."
    )
    print(closing)
    if out is not None:
        out.write_text(HEADER + "\n".join(rows) + "\n" + closing + "\n")
    return 0 if worst < 5 else 1


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
