"""What jaxstab itself costs: the engine, a second grid, a second core, the command's first word."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxstab
from experiments import polynomial as polynomials
from experiments import weight_decay as decays
from experiments.benchmarks.race import Contest, Contestant
from experiments.benchmarks.setting import Setting
from experiments.benchmarks.subject import regression
from jaxstab.compiler import compiler_options
from jaxstab.engine.job import Job
from jaxstab.engine.lane import keeping
from jaxstab.engine.store import Store
from jaxstab.nets.weights import SAMPLERS
from jaxstab.trials import training

SPACE = jaxstab.grid(steps=[2000], learning_rate=[0.05, 0.5, 1.0, 3.0])


def engine(setting: Setting) -> Iterator[Contest]:
    """A bare jitted call of the same tiles, the engine, the engine with a store (two chunks)."""
    job = Job(regression, SPACE, 3, None, None, None)
    cut = job.groups[0].cut
    lanes = 2 * cut.tile * cut.tiles_per_chunk
    seeds = lanes // len(SPACE)
    with tempfile.TemporaryDirectory() as scratch:
        stores = iter(range(10**6))
        run = partial(jaxstab.sweep, regression, SPACE, seeds, progress=False)
        contestants = {
            "bare jitted call": Contestant(make_bare(job, seeds), lanes),
            "engine": Contestant(run, lanes, is_ours=True),
            "engine and store": Contestant(
                lambda: run(store=Path(scratch) / str(next(stores))), lanes, is_ours=True
            ),
        }
        targets = {"engine": (0.95, ""), "engine and store": (0.98, "engine")}
        share = share_of_store(contestants["engine and store"].run)
        title = f"engine, training of 2,000 steps; with a store, its own calls are {share:.2%} of the time"
        yield Contest(title, "lane", contestants, targets)


def share_of_store(run: Callable[[], Any]) -> float:
    """The part of a stored sweep's seconds, its compilation left out, that pass inside the store's functions."""
    inside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            try:
                return call(*arguments, **more)
            finally:
                inside += time.perf_counter() - began

        return wrapped

    run()
    with contextlib.ExitStack() as patched:
        for name in ("begin", "chunks", "read_chunk", "write_chunk"):
            patched.enter_context(mock.patch.object(Store, name, timed(getattr(Store, name))))
        began = time.perf_counter()
        run()
        return inside / (time.perf_counter() - began)


def make_bare(job: Job, seeds: int) -> Callable[[], np.ndarray]:
    """The same lanes as a plain JAX programmer would write them: one call, tiles in a loop on each device."""
    (group,) = job.groups
    tile, lane = group.cut.tile, keeping(group.lane, ("loss",))
    lanes = np.arange(seeds * len(SPACE))
    count = len(job.devices)
    mesh = Mesh(np.array(job.devices), ("device",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("device")

    def shard(seeds: Any, rates: Any) -> Any:
        return jax.lax.map(
            lambda x: jax.vmap(lambda s, r: lane(s, type(group.hparams)(r)))(*x), (seeds, rates)
        )

    def shaped(x: np.ndarray) -> jax.Array:
        return jax.device_put(jnp.asarray(x.reshape(-1, tile)), NamedSharding(mesh, split))

    arguments = shaped((lanes // len(SPACE)).astype(np.uint32)), shaped(group.hparams[0][lanes % len(SPACE)])
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    run = jax.jit(mapped, compiler_options=compiler_options(job.devices[0].platform))
    assert len(lanes) % (tile * count) == 0, "lanes must fill the tiles of all devices"
    return lambda: np.asarray(run(*arguments)["loss"])


def cores(setting: Setting) -> Iterator[Contest]:
    """All cores, as users get them without setting anything, against one; and against one JAX device.

    One device is no core: inside its larger operations XLA has a thread for every core.
    """
    if jax.local_device_count() == 1:
        return
    classifier = training.from_folder(jaxstab.training, setting.fashion_mnist)
    images = jaxstab.grid(dataset=setting.dataset, epochs=1, batch_size=256)
    stack, in_law = (jaxstab.grid(sampler=sampler) for sampler in SAMPLERS)
    fit, decay = jaxstab.grid(powers=4, epochs=400), jaxstab.grid(way="scratch", decay=3)
    work = {
        "propagation, explicit": (jaxstab.propagation, stack, "forward_rms", 64, 1.7),
        "propagation, conditioned": (jaxstab.propagation, in_law, "forward_rms", 512, 1.7),
        "polynomial": (polynomials.regression, fit, "weights", 1024, 1.7),
        "weight decay": (decays.regression, decay, "w_norm", 1024, 1.7),
        "classifier": (classifier, images, "train_loss", 16, 1.3),
    }
    for name, (family, space, kept, seeds, target) in work.items():
        run = partial(jaxstab.sweep, family, space, keep=[kept])
        lanes = max(int(seeds * setting.scale), 16)
        one = partial(run, seeds=lanes, devices=1, progress=False)
        contestants = {
            "one device": Contestant(one, lanes),
            "all cores": Contestant(partial(run, seeds=lanes, progress=False), lanes, is_ours=True),
        }
        if hasattr(os, "sched_setaffinity"):
            contestants["one core"] = Contestant(partial(on_one_core, one), lanes)
        title = f"all {jax.local_device_count()} cores: {name}"
        yield Contest(title, "lane", contestants, {"all cores": (target, "one core")})


def on_one_core(run: Callable[[], Any]) -> Any:
    """What `run()` returns, with every thread of this process held on one core meanwhile (Linux)."""

    def hold(cores: set[int]) -> None:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.sched_setaffinity(int(thread.name), cores)

    before = os.sched_getaffinity(0)
    hold({min(before)})
    try:
        return run()
    finally:
        hold(before)


def compilation(setting: Setting) -> Iterator[Contest]:
    """A grid of gains, then another of the same structures: what is compiled is counted, and the time told."""
    counts: list[float] = []
    compiled = "/jax/core/compile/backend_compile_duration"

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event == compiled:
            counts.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    size = {"depth": 11, "width": 24, "batch": 4, "activation": ["tanh", "relu", "gelu"]}
    run = partial(jaxstab.propagate, seeds=32, keep=["forward_rms"], progress=False, **size)
    run(gain=np.linspace(0.5, 2.5, 16))
    first = len(counts)
    counts.clear()
    again = Contestant(lambda: run(gain=np.linspace(0.1, 1.9, 16)), 3 * 16 * 32, is_ours=True)
    again.run()
    name = f"a second grid of gains: {len(counts)} compilations (the first: {first}, one a structure)"
    yield Contest(name, "lane", {"jaxstab": again})


def startup(setting: Setting) -> Iterator[Contest]:
    """Processes from nothing: `import jaxstab` beside `import jax`, and `jaxstab --help` beside bare Python."""

    def started(*words: str) -> Callable[[], Any]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        return lambda: subprocess.run(
            [sys.executable, *words], check=True, env=environment, capture_output=True
        )

    imports = {
        "import jax": Contestant(started("-c", "import jax"), 1),
        "import jaxstab, jax": Contestant(started("-c", "import jaxstab, jax"), 1, is_ours=True),
    }
    yield Contest("import jaxstab and jax", "process", imports)
    words = {
        "python -c pass": Contestant(started("-c", "pass"), 1),
        "jaxstab --help": Contestant(started("-m", "jaxstab", "--help"), 1, is_ours=True),
    }
    yield Contest("jaxstab --help", "process", words)


def first_answer(setting: Setting) -> Iterator[Contest]:
    """A whole `jaxstab propagate` with and without kept programs; a first sweep of gains, matrices or in law."""
    with tempfile.TemporaryDirectory() as folder:

        def answered(cache: str) -> Callable[[], Any]:
            own = os.environ | {"JAXSTAB_CACHE": cache}
            command = [sys.executable, "-m", "jaxstab", "propagate", "--json"]
            return lambda: subprocess.run(command, check=True, env=own, capture_output=True)

        processes = {
            "compiled anew": Contestant(answered("off"), 1),
            "programs kept": Contestant(answered(folder), 1, is_ours=True),
        }
        yield Contest("jaxstab propagate, 32 networks of 100 layers", "process", processes)
    gains = np.linspace(0.5, 2.5, max(int(64 * setting.scale), 2))
    axes = {"activation": ["tanh", "relu"], "gain": gains, "keep": ["forward_rms"], "progress": False}
    run = partial(jaxstab.propagate, seeds=64, **axes)
    sweeps = {
        "explicit matrices": Contestant(partial(run, sampler="dense"), 128 * len(gains)),
        "as nobody asks": Contestant(run, 128 * len(gains), is_ours=True),
    }
    yield Contest("a first sweep, 64 gains of tanh and ReLU", "network", sweeps)
