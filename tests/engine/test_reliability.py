"""What may be done to a sweep without changing a bit: cutting, sharding, neighbours, memory, growth, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from families import descent

import jaxstab
from jaxstab.engine import identity
from jaxstab.engine.job import Job
from jaxstab.engine.program import Program, make_program
from jaxstab.engine.store import Store

SPACE = jaxstab.grid(steps=[200], learning_rate=[0.05, 0.5, 3.0])
SEEDS = 220  # two chunks of 512 lanes at tile 2


def run(**keywords):
    return jaxstab.sweep(descent, SPACE, SEEDS, tile=2, **keywords)


@pytest.fixture(scope="module")
def whole():
    return run()


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_change_no_bit_of_a_training(whole, devices):
    same(run(devices=devices), whole)


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_tiles_in_flight_change_no_bit_of_a_training(whole, tiles):
    job = Job(descent, SPACE, SEEDS, None, 1, 2)
    (group,) = job.groups
    program = make_program(group.lane, group.cut.tile, max(2, tiles), job.devices)
    for first in range(0, 60, tiles * 2):
        lanes = np.arange(first, min(first + tiles * 2, 60))
        numbers = jax.tree.map(lambda x, own=lanes % 3: x[own], group.hparams)
        results = program.start((lanes // 3).astype(np.uint32), numbers, ())
        found = program.collect(results, len(lanes))["loss"]
        np.testing.assert_array_equal(found, whole.loss.values[0, lanes % 3, lanes // 3])


@pytest.mark.parametrize("percent", [0, 1, 50, 99])
def test_lanes_of_nan_change_no_bit_of_the_others(percent):
    rates = np.geomspace(0.01, 3.0, 200)
    bad = np.random.default_rng(percent).permutation(200) < 2 * percent
    healthy = jaxstab.sweep(descent, jaxstab.zipped(learning_rate=rates), seeds=1)
    mixed = jaxstab.sweep(descent, jaxstab.zipped(learning_rate=np.where(bad, np.nan, rates)), seeds=1)
    np.testing.assert_array_equal(mixed.loss.values[~bad], healthy.loss.values[~bad])
    assert (mixed.status.values[bad] == 1).all()


class Exhausted:
    """Results of a program whose memory ran out while it was running."""

    def block_until_ready(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize("where", ["start", "wait"])
def test_memory_that_runs_out_at_any_attempt_changes_no_bit(whole, where, monkeypatch):
    real, calls, failing = Program.start, [], 0
    while failing <= len(calls):
        failing += 1
        calls.clear()

        def start(self, *arguments, failing=failing):
            calls.append(self.capacity)
            if len(calls) != failing:
                return real(self, *arguments)
            if where == "start":
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return {"loss": Exhausted()}

        monkeypatch.setattr(Program, "start", start)
        same(run(), whole)
    assert failing > 2


def test_memory_that_stays_short_halves_the_tiles_until_they_fit(whole, monkeypatch):
    real, capacities = Program.start, []

    def start(self, *arguments):
        capacities.append(self.capacity)
        if self.capacity > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(self, *arguments)

    monkeypatch.setattr(Program, "start", start)
    same(run(), whole)
    assert max(capacities) > 8
    assert min(capacities) == 8


def test_memory_that_never_suffices_is_one_line_and_other_failures_are_raised(monkeypatch):
    def fail(words):
        def start(self, *arguments):
            raise jax.errors.JaxRuntimeError(words)

        return start

    monkeypatch.setattr(Program, "start", fail("RESOURCE_EXHAUSTED: Out of memory"))
    with pytest.raises(jaxstab.UsageError, match=r"tile of 2 lanes does not fit.*tile=1 would"):
        run()
    monkeypatch.setattr(Program, "start", fail("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run()


def test_memory_is_looked_at_once_and_not_before_every_chunk(monkeypatch, whole):
    calls, real = [], Program.memory
    monkeypatch.setattr(Program, "memory", lambda *arguments: calls.append(1) or real(*arguments))
    same(run(), whole)
    assert len(calls) == 1


def test_no_chunk_begins_before_the_last_has_ended_or_after_a_stop():
    job = Job(descent, SPACE, SEEDS, None, None, 2)
    running = job.run(job.chunks(), stop=lambda: bool(seen))
    seen: list[int] = []
    for chunk, _ in running:
        seen.append(chunk.number)
    assert seen == [0, 1]  # the second had begun while the first was dealt with
    assert list(job.run(job.chunks(), stop=lambda: True)) == []


def test_a_grown_sweep_leaves_the_files_of_one_that_was_never_smaller(tmp_path):
    for folder, counts in (("grown", [100, SEEDS]), ("whole", [SEEDS])):
        for seeds in counts:
            jaxstab.sweep(descent, SPACE, seeds, tile=2, store=tmp_path / folder)
    grown, whole = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.suffix in (".npz", ".json")}
        for name in ("grown", "whole")
    )
    assert grown == whole


def test_a_thread_may_run_a_stored_sweep(tmp_path, whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(store=tmp_path)))
    thread.start()
    thread.join()
    same(found[0], whole)


def test_a_signal_in_the_last_chunk_is_not_forgotten(tmp_path, whole, monkeypatch):
    real = Store.write_chunk

    def write(self, group, number, *arguments):
        real(self, group, number, *arguments)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Store, "write_chunk", write)
    with pytest.raises(SystemExit) as caught:
        run(store=tmp_path)
    assert caught.value.code == 75
    assert "0 chunks left" in str(caught.value)
    same(run(store=tmp_path), whole)


def test_x64_keeps_hyperparameters_float32_and_seeds_uint32():
    seen = []

    @jaxstab.family
    def look(key, *, x: float = 1.0):
        seen.append((x.dtype, jax.random.key_data(key).dtype))
        return {"y": x * jax.random.normal(key, (), "float32")}

    single = jaxstab.sweep(look, jaxstab.grid(x=[0.5, 2.0]), seeds=[0, 2**31 - 1])
    with jax.enable_x64(True):
        double = jaxstab.sweep(look, jaxstab.grid(x=[0.5, 2.0]), seeds=[0, 2**31 - 1], devices=3)
    assert set(seen) == {(np.dtype("float32"), np.dtype("uint32"))}
    same(single, double)


def test_the_size_of_the_pool_is_read_as_xla_reads_it(monkeypatch):
    monkeypatch.setenv("NPROC", "64")
    assert identity.thread_pool() == 64
    monkeypatch.setenv("NPROC", "many")
    assert identity.thread_pool() >= 8


INSIDE = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import jaxstab
from families import descent
fsync, replace, files = os.fsync, os.replace, [0]

def fsync_or_die(descriptor):
    files[0] += not os.path.isdir(f"/proc/self/fd/{{descriptor}}")
    if files[0] == 3 and sys.argv[2] == "write":
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

def replace_or_die(source, target):
    if files[0] == 3 and sys.argv[2] == "rename":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.fsync, os.replace = fsync_or_die, replace_or_die
jaxstab.sweep(descent, jaxstab.grid(steps=[200], learning_rate=[0.05, 0.5, 3.0]), {seeds}, tile=2, store=sys.argv[1])
"""


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_kill_inside_a_write_leaves_good_chunks_and_a_store_that_resumes(tmp_path, whole, moment):
    script = INSIDE.format(folder=str(Path(__file__).parent), seeds=SEEDS)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), moment], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(tmp_path.glob("*.npz"))) == 1
    assert len(list(tmp_path.glob(".0-*"))) == 1
    opened = jaxstab.open_store(tmp_path)
    done = opened.status.values >= 0
    np.testing.assert_array_equal(opened.loss.values[done], whole.loss.values[done])
    assert 0 < done.sum() < done.size
    same(run(store=tmp_path), whole)
    assert not list(tmp_path.glob(".*"))
