"""Published simulations of dropout, residual stacks, blocks and batch norm, measured again.

`python -m experiments.benchmarks.facts [--only WORD] [--out FILE.md]`. Each line: what mean field says as the width
grows, a simulation with its standard error made with NumPy and PyTorch, jaxstab's own, and what `jaxstab.predict` says
at that width ("-": nothing). 1 if ours lies more than five standard errors (of both) from the simulation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import jaxstab
from experiments.benchmarks.published import Fact, facts
from experiments.benchmarks.stack_inputs import from_inputs
from jaxstab.errors import UsageError

HEADER = (
    "| section | case | quantity | formula | simulation | jaxstab | networks | predict | errors apart | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)
MOST_APART = 5.0


def measure(fact: Fact, runs: dict[str, Any]) -> tuple[float, float]:
    """(center, its standard error) of our networks; `runs` holds what was run already."""
    name = repr((fact.of_inputs, fact.seeds, sorted(fact.settings.items(), key=str)))
    if name not in runs:
        family = from_inputs if fact.of_inputs else jaxstab.propagation
        keep = None if fact.of_inputs else ["forward_rms", "backward_rms", "correlation"]
        space = jaxstab.grid(**fact.settings)
        runs[name] = jaxstab.sweep(family, space, fact.seeds, keep=keep, progress=False).astype(np.float64)
    sample = np.asarray(fact.value(runs[name]))
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    if fact.center == "median":
        low, high = np.quantile(sample, 0.5 + np.array([-0.5, 0.5]) / math.sqrt(sample.size))
        return float(np.median(sample)), float(high - low) / 2
    return float(sample.mean()), error


def predict(fact: Fact) -> float:
    """The same of theory, NaN where it has none."""
    if fact.of_inputs or not isinstance(fact.settings.get("kind", ""), str) or fact.center != "mean":
        return math.nan
    return float(fact.value(jaxstab.predict(**fact.settings)))


def apart(fact: Fact, ours: float, error: float) -> float:
    """Standard errors, of both together, between ours and the simulation."""
    return abs(ours - fact.simulated) / math.hypot(error, fact.error)


def lines(chosen: Sequence[Fact]) -> Iterator[tuple[str, float]]:
    """(a line of the Markdown table, standard errors apart) of each fact."""
    runs: dict[str, Any] = {}
    for fact in chosen:
        ours, error = measure(fact, runs)
        far, told = apart(fact, ours, error), predict(fact)
        verdict = "agree" if far <= MOST_APART else "DIFFER"
        said = "-" if math.isnan(told) else f"{told:.5g}"
        yield (
            f"| {fact.section} | {fact.case} | {fact.quantity} | {fact.formula:.5g} | {fact.simulated:.5g} +- "
            f"{fact.error:.2g} | {ours:.5g} +- {error:.2g} | {fact.seeds} | {said} | {far:.1f} | {verdict} |",
            far,
        )


def main(only: str = "", out: Path | None = None) -> int:
    """Print the table; 1 if a fact is not reproduced.

    Args:
        only: cases whose name holds this word; all of them by default.
        out: where to write it as well.
    """
    chosen = [fact for fact in facts() if only in fact.case]
    if not chosen:
        raise UsageError(f"only={only!r}: no case has that word.")
    print(HEADER, end="")
    rows, failed, began = [], 0, time.perf_counter()
    for row, far in lines(chosen):
        print(row, flush=True)
        rows.append(row)
        failed += not far <= MOST_APART
    closing = f"\n{len(rows)} facts, {failed} not reproduced, {time.perf_counter() - began:.0f} s."
    print(closing)
    if out is not None:
        out.write_text(HEADER + "\n".join(rows) + "\n" + closing + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
