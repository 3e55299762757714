"""`observe` and `diagnose` on models of others: `python -m experiments.benchmarks.diagnose --checkouts DIR`.

DIR holds a checkout of each repository in a folder of its name, with the commit in a file COMMIT or in git. Each
model takes one training step, the loss and its gradients, with `jaxstab.observe` around it and without; then
`jaxstab.diagnose` says what it finds in it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import jaxstab
from experiments.benchmarks.foreign import FACTORIES, LICENCES, Subject, make
from jaxstab.diagnosis.findings import GRAVITIES

SEEDS = 2
AS_WRITTEN = {"xla_allow_excess_precision": False}
"""Without it XLA leaves roundings to halves out, and which hangs on what else reads a value."""
COLUMNS = (
    "model", "repository", "commit", "licence", "dtype", "parameters", "same bits", "forward", "backward",
    "no gradient", "doubled", "compile x", "step x", "step", *GRAVITIES, "diagnose",
)  # fmt: skip  # the heads of a table
HEADER = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS) + "\n"
INTRO = """`jaxstab.observe` and `jaxstab.diagnose` on models of public repositories as they stand, one training step
each: observation leaves every bit of the loss and of the gradients as it was (both compiled with
xla_allow_excess_precision off, so that roundings to bfloat16 are where the program has them); below the table is
what `diagnose` finds, with {seeds} seeds where there is something to draw, in float32, bfloat16 and float16. Its
seconds are those of the whole call with all compilation.
`python -m experiments.benchmarks.diagnose --checkouts DIR --out FILE`, jax {jax}, CPU, {cores} cores.

"""


@dataclasses.dataclass(frozen=True)
class Observed:
    """What observation of one subject showed; `strange` are calls with no path, or twice in one direction."""

    dtypes: str
    parameters: int
    is_same: bool
    forward: list[str]
    backward: list[str]
    without_gradient: list[str]
    strange: list[str]
    compile_ratio: float
    step_ratio: float
    seconds: float


def program(subject: Subject) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    """(forward pass, training step, their arguments): functions of the parameters and everything else."""
    call, parameters, rest = taken_apart(subject)

    def step(parameters: Any, rest: Any) -> Any:
        def scalar(parameters: Any) -> Any:
            output, updates = call(parameters, rest)
            return subject.loss(output), (output, updates)

        return jax.value_and_grad(scalar, has_aux=True)(parameters)

    return call, step, (parameters, rest)


def taken_apart(subject: Subject) -> tuple[Callable[..., Any], Any, Any]:
    """call(parameters, rest) -> (output, what else changed), the parameters, and the rest, arrays both."""
    model, inputs, kwargs = subject.model, subject.inputs, dict(subject.apply_kwargs)
    if isinstance(model, nn.Module):
        return linen_apart(subject, model)
    if isinstance(model, nnx.Module):
        graph, parameters, others = nnx.split(model, nnx.Param, ...)

        def call_nnx(parameters: Any, rest: Any) -> Any:
            others, inputs, rngs = rest
            merged: Any = nnx.merge(graph, parameters, others, copy=True)
            streams: Any = {"rngs": nnx.Rngs(**rngs)} if rngs else {}
            output = merged(*inputs, **kwargs, **streams)
            return output, nnx.state(merged, nnx.Not(nnx.Param))

        return call_nnx, parameters, (others, inputs, dict(subject.rngs))
    if isinstance(model, eqx.Module):
        parameters, others = eqx.partition(model, eqx.is_inexact_array)

        def call_equinox(parameters: Any, rest: Any) -> Any:
            whole: Any = eqx.combine(parameters, others)
            return whole(*rest[0], **rest[1]), ()

        return call_equinox, parameters, (inputs, kwargs)
    return lambda parameters, rest: (model(parameters, *rest), ()), subject.variables, inputs


def linen_apart(subject: Subject, model: nn.Module) -> tuple[Callable[..., Any], Any, Any]:
    others = {name: value for name, value in subject.variables.items() if name != "params"}

    def call(parameters: Any, rest: Any) -> Any:
        others, inputs, rngs = rest
        variables = {"params": parameters, **others}
        output: Any = model.apply(variables, *inputs, rngs=rngs, **subject.apply_kwargs)
        return output if "mutable" in subject.apply_kwargs else (output, ())

    return call, subject.variables["params"], (others, subject.inputs, dict(subject.rngs))


def compiled(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], float]:
    """The compiled function of the arrays among `args`, and the seconds that tracing and compiling it took."""
    arrays, rest = eqx.partition(args, eqx.is_array)
    jax.clear_caches()
    began = time.perf_counter()
    run = (
        jax.jit(lambda arrays: f(*eqx.combine(arrays, rest)), compiler_options=AS_WRITTEN)
        .lower(arrays)
        .compile()
    )
    return functools.partial(run, arrays), time.perf_counter() - began


def are_same(wanted: Any, found: Any) -> bool:
    """Whether two pytrees are the same to the bit; keys count by their data."""
    leaves, others = jax.tree.leaves(wanted), jax.tree.leaves(found)
    return jax.tree.structure(wanted) == jax.tree.structure(found) and all(map(same_bits, leaves, others))


def same_bits(a: Any, b: Any) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def race(runs: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each, taking turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]


def check(subject: Subject, rounds: int) -> Observed:
    """Hold the observed training step, and the forward pass alone, against the plain ones."""
    forward, step, args = program(subject)
    plain, before = compiled(step, args)
    observed, after = compiled(jaxstab.observe(step), args)
    output, seen = observed()
    alone, _ = compiled(forward, args)
    seen_alone, _ = compiled(jaxstab.observe(forward), args)
    is_same = are_same(plain(), output) and are_same(alone(), seen_alone()[0])
    seconds = race([plain, observed], rounds)
    sites = {way: [s for s in seen.sites if s.direction == way] for way in ("forward", "backward")}
    names = {way: [label(s) for s in found] for way, found in sites.items()}
    floats = [label(s) for s in sites["forward"] if "float" in s.dtype]
    strange = [name for way in names.values() for name in {*way} if way.count(name) > 1 or not name[0]]
    leaves = [leaf for leaf in jax.tree.leaves(args[0]) if eqx.is_array(leaf)]
    return Observed(
        ", ".join(sorted({s.dtype for s in seen.sites})),
        sum(leaf.size for leaf in leaves),
        is_same,
        names["forward"],
        names["backward"],
        sorted({*floats} - {*names["backward"]}),
        sorted(strange),
        after / before,
        seconds[1] / seconds[0],
        seconds[0],
    )


def diagnosed(subject: Subject) -> tuple[jaxstab.Diagnosis, float]:
    """What `jaxstab.diagnose` says of a subject, and the seconds that it took."""
    model, inputs, rngs = subject.model, subject.inputs, dict(subject.rngs) or None
    if isinstance(model, nnx.Module) and rngs:
        model, *first = as_function(model)
        inputs = (*first, *inputs)
    elif not isinstance(model, (nn.Module, nnx.Module, eqx.Module)):
        inputs = (subject.variables, *inputs)
    jax.clear_caches()
    began = time.perf_counter()
    kwargs = dict(subject.apply_kwargs)
    found = jaxstab.diagnose(model, *inputs, loss=subject.loss, rngs=rngs, seeds=SEEDS, apply_kwargs=kwargs)
    return found, time.perf_counter() - began


def as_function(model: nnx.Module) -> tuple[Callable[..., Any], Any, Any]:
    """An NNX module whose call takes rngs, which no other argument may hold: a function, and its first inputs."""
    graph, parameters, others = nnx.split(model, nnx.Param, ...)

    def call(parameters: Any, others: Any, *inputs: Any, rngs: Any) -> Any:
        merged: Any = nnx.merge(graph, parameters, others, copy=True)
        return merged(*inputs, rngs=nnx.Rngs(**rngs))

    return call, parameters, others


def label(site: Any) -> str:
    """Path, output and branch of a site."""
    return site.path + "".join(f" {part}" for part in (site.output, site.branch) if part)


def row(subject: Subject, found: Observed, said: jaxstab.Diagnosis, seconds: float) -> str:
    """A line of the Markdown table."""
    name = f"{subject.name} ({subject.note})" if subject.note else subject.name
    counts = [sum(f.gravity == gravity for f in said.findings) for gravity in GRAVITIES]
    cells = (
        name, subject.repository, subject.commit[:10], LICENCES[subject.repository], found.dtypes,
        f"{found.parameters:,}", "yes" if found.is_same else "NO", len(found.forward), len(found.backward),
        len(found.without_gradient), len(found.strange), f"{found.compile_ratio:.2f}",
        f"{found.step_ratio:.2f}", f"{1000 * found.seconds:.1f} ms", *counts, f"{seconds:.0f} s",
    )  # fmt: skip  # under the heads of the table
    return "| " + " | ".join(map(str, cells)) + " |"


def details(subject: Subject, said: jaxstab.Diagnosis) -> str:
    """Every finding of a model, one a line of a Markdown list."""
    lines = [f"**{subject.name}** ({subject.repository})\n"]
    for f in said.findings:
        where = f" ({Path(f.source).name})" if f.source else ""
        kind = f"{f.kind} in {f.dtype}" if f.dtype else f.kind
        lines.append(f"- {f.gravity}: {kind}, `{f.path or 'the program'}`{where}: {f.evidence}")
    return "\n".join([*lines, *([] if said.findings else ["- nothing found"])])


def text(rows: list[str], findings: list[str]) -> str:
    """The Markdown file."""
    intro = INTRO.format(seeds=SEEDS, jax=jax.__version__, cores=os.cpu_count())
    return intro + HEADER + "\n".join(rows) + "\n\n" + "\n\n".join(findings) + "\n"


def explain(found: Observed, paths: int) -> None:
    """Some of the paths, and all that is odd."""
    if not paths:
        return
    print("\n".join(f"    {name}" for name in found.forward[:paths]))
    for what, names in (("no gradient", found.without_gradient), ("strange", found.strange)):
        if names:
            print(f"    {what}: {', '.join(names)}")


def main(
    checkouts: Path, only: tuple[str, ...] = (), rounds: int = 15, paths: int = 0, out: Path | None = None
) -> int:
    """Print the table and the findings; 1 if a bit differed or a model could not be observed or diagnosed.

    Args:
        checkouts: the folder with the repositories.
        only: names of models, or parts of them; all without.
        rounds: timed steps of each, in turn.
        paths: how many of the paths, and all odd ones, to print above each line.
        out: where to write the table and the findings as well, anew after each model.
    """
    rows, findings, is_good = [], [], True
    for name, (repository, _) in FACTORIES.items():
        if only and not any(part in f"{repository} {name}" for part in only):
            continue
        try:
            subject = make(name, checkouts)
            found = check(subject, rounds)
            said, seconds = diagnosed(subject)
        except FileNotFoundError as error:
            rows.append(f"| {name} | {repository} | not there: {error} |")
        except Exception as error:
            traceback.print_exc()
            rows.append(f"| {name} | {repository} | {type(error).__name__}: {str(error).splitlines()[0]} |")
            is_good = False
        else:
            rows.append(row(subject, found, said, seconds))
            findings.append(details(subject, said))
            is_good &= found.is_same
            explain(found, paths)
            print(said, flush=True)
        print(rows[-1], flush=True)
        if out is not None:
            out.write_text(text(rows, findings))
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
