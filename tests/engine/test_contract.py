"""The contract that every family keeps to, in small; all of it: `python -m experiments.benchmarks.contract`."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxstab
from experiments.benchmarks import contract
from jaxstab.engine.lane import Arguments, Lane, keeping, trace

QUICK = (
    "users",
    "gain_table",
    "transformer",
    "printed_matrix",
    "precision",
    "sigmoid_gradient",
    "dropped_layer",
)
"""Quickly compiled: several subsets of their outputs are asked for here, of the others' one."""
DEAR = ("propagation", "training", "one_entry", "symmetry")


@pytest.mark.parametrize("name", QUICK + DEAR)
def test_a_lane_does_not_depend_on_what_else_is_asked_for(name):
    failed = [one for one in contract.check(name, most=3 if name in QUICK else 1) if not one.passed]
    assert failed == []


def test_every_family_of_the_experiments_is_a_subject():
    import ast
    from pathlib import Path

    found = set()
    for path in Path(contract.__file__).parent.parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                "jaxstab.family" in ast.unparse(d) for d in node.decorator_list
            ):
                found.add(f"experiments.{path.stem}:{node.name}")
    assert found <= {subject.family for subject in contract.SUBJECTS.values()}


def test_healthy_lanes_of_one_entry_are_ok_and_overflowing_ones_never():
    assert (contract.sweep("one_entry").status == 0).all()
    status = contract.sweep("overflow", ["correlation"]).status
    assert (status.sel(gain=1.0) == 1).all()


def test_a_fate_that_follows_the_kept_outputs_is_seen(monkeypatch):
    """The check fails on the fault that it is there for, and on a value that is off by a hundredth."""

    def forgetful(self, seed, hparams):
        kept = {name: value for name, value in real(self, seed, hparams).items() if name != "status"}
        return {**kept, "status": another.lane_status(kept).astype(jnp.int8)}

    whole = contract.sweep("users")
    assert contract.differences(whole.assign(path=whole.path * 1.01), whole) == ["path"]
    another = dataclasses.replace(contract.walk)  # one of which nothing has been traced
    monkeypatch.setattr(contract, "load", lambda name: another)
    real = Lane.__call__
    monkeypatch.setattr(Lane, "__call__", forgetful)
    failed = [one for one in contract.check("users") if not one.passed]
    assert "only count" in [one.what for one in failed]
    assert {one.said for one in failed} == {"status"}


SCRIPT = """
import functools, sys
import jax, jax.numpy as jnp, jaxstab
from jaxstab.engine.job import Job

def bent(x, slope=0.5):
    return jnp.where(x > 0, x, slope * x)

class Curve:
    def __call__(self, x):
        return jnp.tanh(2 * x)
    def __hash__(self):
        return 1
    def __eq__(self, other):
        return type(other) is Curve

def sweep(second=0.3):
    activation = {"gelu": jax.nn.gelu, "def": bent, "partial": functools.partial(bent, slope=0.2),
                  "lambda": lambda x: jnp.sin(second * x), "object": Curve(), "name": "tanh"}
    return jaxstab.propagate(seeds=2, depth=4, width=8, batch=2, activation=activation, store=sys.argv[1],
                             keep=["forward_rms"], progress=False)

ran = []
real = Job.run
def run(self, chunks, stop=lambda: False):
    ran.extend(chunks)
    return real(self, chunks, stop)
Job.run = run
first = sweep()
print(len(ran), float(first.forward_rms.sum()))
jaxstab.propagate(seeds=2, depth=4, width=8, batch=2,
                  activation=[jax.nn.gelu, bent, functools.partial(bent, slope=0.1)],
                  store=sys.argv[1] + "2", keep=["forward_rms"], progress=False)
try:
    sweep(second=0.4)
except jaxstab.UsageError as error:
    print(error)
"""


def test_another_process_resumes_every_kind_of_callable_and_refuses_another_program(tmp_path):
    said = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "s")], env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.splitlines())
    first, second = ([line.split() for line in lines[:1]] for lines in said)
    assert int(first[0][0]) == 6
    assert int(second[0][0]) == 0
    assert first[0][1] == second[0][1]
    for lines in said:  # a lambda under the same label that does something else
        assert "groups[3]: the program is another" in lines[1]
        assert len(lines) == 2
    for name in ("s", "s2"):
        text = (tmp_path / name / "manifest.json").read_text()
        assert "0x" not in text
    labels = jaxstab.open_store(tmp_path / "s2").activation.values.tolist()
    assert labels == ["gelu", "bent", "bent(slope=0.1)"]


def test_fewer_seeds_than_stored_are_read_from_the_store(tmp_path):
    call = lambda seeds: jaxstab.propagate(  # noqa: E731
        seeds=seeds, depth=3, width=8, batch=2, store=tmp_path, keep=["forward_rms"], progress=False
    )
    whole = call(6)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert call(4).seed.values.tolist() == [0, 1, 2, 3]
    part = call([5, 2])
    assert part.forward_rms.identical(whole.forward_rms.sel(seed=[5, 2]))
    assert before == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert call(8).sizes["seed"] == 8


def count_loops(keep: tuple[str, ...]) -> int:
    """Loops in the compiled program of one lane."""
    spec, hparams = jaxstab.propagation.configure({"depth": 6, "width": 8, "batch": 2})
    numbers = jax.tree.map(jnp.float32, hparams)
    columns = jax.tree.map(lambda x: x[None], numbers)
    lane = keeping(trace(jaxstab.propagation, spec, Arguments.of(columns, ())), keep)
    return jax.jit(lane).lower(jnp.uint32(0), numbers).compile().as_text().count(" while(")


def test_a_forward_sweep_pays_for_no_backward_pass():
    assert count_loops(("forward_rms",)) == count_loops(()) < count_loops(("backward_rms",))
