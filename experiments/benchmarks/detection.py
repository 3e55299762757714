"""`diagnose` on planted faults and on networks that are well: `python -m experiments.benchmarks.detection`.

A fault is named if the gravest finding that is about it stands at its layer or line; blamed elsewhere if a finding of
such a kind, as grave or graver, stands at another before it. A network that is well is diagnosed with all seeds
together and with each alone, and every finding of a warning or worse is false.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxstab
from experiments.benchmarks.faults import Fault, faults
from experiments.benchmarks.networks import cross_entropy, healthy
from jaxstab.compiler import compiler_options
from jaxstab.diagnosis.diagnosis import Diagnosis, findings_of
from jaxstab.diagnosis.evidence import Evidence, gather
from jaxstab.diagnosis.findings import GRAVITIES, Finding
from jaxstab.diagnosis.subject import is_array, subject_of

MOST = 4
"""Findings of a fault that are listed."""


def diagnose(fault: Fault, seeds: int) -> Diagnosis:
    """What is said of a fault."""
    settings: dict[str, Any] = {"loss": cross_entropy, "seeds": seeds, **fault.settings}
    return jaxstab.diagnose(fault.model, *fault.inputs, **settings)


def is_right(fault: Fault, finding: Finding) -> bool:
    """Whether the finding is at the fault's layer or line."""
    return finding.source == fault.where or bool(re.search(fault.where, finding.path))


def verdict(fault: Fault, findings: tuple[Finding, ...]) -> str:
    """ "named", "elsewhere", "missed", or what is wrong with its gravity or dtype."""
    kinds = fault.findings.split("|")
    about = [f for f in findings if f.kind in kinds and (not fault.dtype or f.dtype in ("", fault.dtype))]
    if not about:
        return "missed"
    if fault.dtype and not any(f.dtype == fault.dtype for f in about):
        return "missed"
    if not is_right(fault, about[0]):
        return "elsewhere"
    return "named" if GRAVITIES.index(about[0].gravity) <= GRAVITIES.index(fault.gravity) else "too mild"


def real_run(fault: Fault) -> str:
    """What one step in the fault's dtype gives in truth, all parameters and inputs cast to it."""
    known = {"loss": cross_entropy, "variables": None, "rngs": None, **fault.settings}
    subject = subject_of(fault.model, fault.inputs, known["variables"], known["rngs"], None)
    params, rest = subject.draw(0)
    dtype = fault.dtype or "float32"

    def cast(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: x.astype(dtype) if is_array(x) and jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    def loss_of(params: Any) -> Any:
        return known["loss"](subject.call(params, cast(rest), jax.random.key(1), cast(subject.inputs)))

    exactly = {**compiler_options(jax.default_backend(), is_small=True), "xla_allow_excess_precision": False}
    step = jax.jit(jax.value_and_grad(loss_of), compiler_options=exactly)
    loss, gradients = step(cast(params))
    leaves = [np.asarray(g, np.float32) for g in jax.tree.leaves(gradients)]
    if not np.isfinite(loss):
        return f"the loss is {loss}"
    if not all(np.all(np.isfinite(g)) for g in leaves):
        return "a gradient is not finite"
    silent = sum(not np.any(g) for g in leaves)
    return f"{silent} of {len(leaves)} gradients are 0" if silent else "finite"


def short(finding: Finding) -> str:
    """A finding in a cell of a table."""
    line = Path(finding.source).name.rsplit(":", 1)[-1]
    return f"{finding.kind}{f' [{finding.dtype}]' if finding.dtype else ''} at {finding.path}:{line}"


def found_faults(seeds: int, only: str, counts: Counter) -> Iterator[str]:
    """Lines of the table of faults."""
    yield "| fault | network | verdict | one step in truth | said first | besides | s |"
    yield "|---|---|---|---|---|---|---|"
    for fault in faults():
        if only not in f"{fault.network}: {fault.name}":
            continue
        began = time.perf_counter()
        findings = diagnose(fault, seeds).findings
        verdict_ = verdict(fault, findings)
        counts[verdict_] += 1
        took = time.perf_counter() - began
        said = [short(f) for f in findings]
        besides = "; ".join(said[1:MOST]) + (f" and {len(said) - MOST} more" if len(said) > MOST else "")
        yield (
            f"| {fault.name} | {fault.network} | {verdict_ if verdict_ == 'named' else verdict_.upper()} |"
            f" {real_run(fault)} | {said[0] if said else ''} | {besides} | {took:.0f} |"
        )


def alone(diagnosed: Any, seed: int) -> Any:
    """The evidence of one seed."""
    one = slice(seed, seed + 1)
    runs = {
        name: dataclasses.replace(
            run,
            seen=dataclasses.replace(run.seen, values=tuple(v[one] for v in run.seen.values)),
            exact=[x[one] for x in run.exact],
            outputs=[x[one] for x in run.outputs],
        )
        for name, run in diagnosed.rehearsals.items()
    }
    calls = dataclasses.replace(diagnosed.calls, values=tuple(v[one] for v in diagnosed.calls.values))
    return dataclasses.replace(
        diagnosed, calls=calls, rehearsals=runs, gradients=[g[one] for g in diagnosed.gradients]
    )


def evidence_of(model: Any, x: Any, seeds: int) -> Evidence:
    """A network that is well, run forward and backward in both halves."""
    subject = subject_of(model, (x,), None, None, None)
    return gather(subject, cross_entropy, seeds, ("bfloat16", "float16"))


def false_findings(seeds: int, only: str, counts: Counter) -> Iterator[str]:
    """Lines of the table of what is said of networks that are well."""
    yield "| network that is well | all seeds together | grave | warnings | of runs of one seed | s |"
    yield "|---|---|---|---|---|---|"
    for name, (model, x) in healthy().items():
        if only not in name:
            continue
        began = time.perf_counter()
        evidence = evidence_of(model, x, seeds)
        together = [short(f) for f in findings_of(evidence) if f.gravity != "note"]
        each = [findings_of(alone(evidence, seed)) for seed in range(seeds)]
        grave, warned = (sum(any(f.gravity == g for f in one) for one in each) for g in GRAVITIES[:2])
        counts.update({"false grave": grave, "false warning": warned, "runs": seeds})
        kinds = Counter(short(f) for one in each for f in one if f.gravity != "note")
        listed = "; ".join(f"{n} x {said}" for said, n in kinds.most_common(3))
        yield (
            f"| {name} | {'; '.join(together) or 'nothing'} | {grave} of {seeds} | {warned} of {seeds} | {listed} |"
            f" {time.perf_counter() - began:.0f} |"
        )


def main(
    seeds: int = 20,
    draws: int = 2,
    only: str = "",
    parts: tuple[str, ...] = ("faults", "healthy"),
    out: Path | None = None,
) -> int:
    """Print both tables; 1 if more than one fault was missed, any was blamed elsewhere, or two were falsely grave.

    Args:
        seeds: of each network that is well.
        draws: seeds of each fault.
        only: part of a name, to run those alone.
        parts: "faults", "healthy" or both.
        out: where to write the tables as well.
    """
    counts: Counter = Counter()
    lines = [f"{jax.devices()[0].platform}, jax {jax.__version__}."]
    tables = {
        "faults": ("Planted faults", found_faults(draws, only, counts)),
        "healthy": ("Networks that are well", false_findings(seeds, only, counts)),
    }
    for title, rows in (tables[part] for part in parts):
        lines += ["", f"**{title}**", ""]
        print(f"\n{title}")
        for line in rows:
            lines.append(line)
            print(line, flush=True)
    lines += ["", ", ".join(f"{name}: {count}" for name, count in counts.items())]
    print(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    return int(
        counts["missed"] > 1 or counts["elsewhere"] + counts["too mild"] > 0 or counts["false grave"] > 1
    )


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
