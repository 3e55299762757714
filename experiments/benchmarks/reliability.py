"""What a sweep survives, in figures: `python -m experiments.benchmarks.reliability [--kills 200] [--out DIR]`.

The same training sweep, whatever is done to it, must leave the same bytes. Writes reliability.json and
reliability.md. XLA's pool has eight threads throughout (NPROC=8), since its size is part of a sweep's identity.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

THREADS = 8
os.environ |= {"NPROC": str(THREADS), "JAX_NUM_CPU_DEVICES": str(THREADS)}
SEEDS = 500


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table."""

    what: str
    held: bool
    figures: str
    seconds: float = 0.0


def main(
    kills: int = 200, out: Path = Path("experiments/benchmarks/results"), kills_from: Path | None = None
) -> int:
    """Run the campaign, print its table, write it.

    Args:
        kills: how many SIGKILLs.
        out: folder of the table.
        kills_from: what `experiments.benchmarks.kills` has printed, in place of killing here.
    """
    checks = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in (in_flight, devices_and_processes, nan_lanes, memory, compilations):
            checks += timed(part(Path(scratch)))
        found = json.loads(kills_from.read_text()) if kills_from else kill(Path(scratch), kills)
        checks += timed(of_kills(found))
    out.mkdir(parents=True, exist_ok=True)
    (out / "reliability.json").write_text(json.dumps(record(checks), indent=1) + "\n")
    header = "| what was done to it | held | figures | seconds |\n|---|---|---|---|\n"
    (out / "reliability.md").write_text(header + "".join(row(check) + "\n" for check in checks))
    return 0 if all(check.held for check in checks) else 1


def timed(checks: Iterator[Check]) -> Iterator[Check]:
    """The same, each printed as it comes, with the seconds that it took."""
    began = time.perf_counter()
    for check in checks:
        now = time.perf_counter()
        done = dataclasses.replace(check, seconds=round(now - began, 1))
        print(row(done), flush=True)
        yield done
        began = now


def row(check: Check) -> str:
    """A check as a line of the Markdown table."""
    return f"| {check.what} | {'yes' if check.held else 'NO'} | {check.figures} | {check.seconds} |"


def record(checks: list[Check]) -> dict[str, Any]:
    """The campaign as JSON."""
    import jax

    environment = {"jax": jax.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    return {"environment": environment, "checks": [dataclasses.asdict(check) for check in checks]}


def in_flight(folder: Path) -> Iterator[Check]:
    """One device, programs with room for 2, 2 and 5 tiles, given 1, 2 and 5 at a time, against the sweep's chunks."""
    import jax
    import numpy as np

    from experiments.benchmarks.subject import SPACE, TILE, regression
    from jaxstab.engine.job import Job
    from jaxstab.engine.program import make_program

    job = Job(regression, SPACE, 40, None, 1, TILE)
    whole = [values["loss"] for _, values in job.run(job.chunks())]
    (group,) = job.groups
    lanes = np.arange(len(SPACE) * 40)
    for tiles in (1, 2, 5):
        program = make_program(group.lane, TILE, max(2, tiles), job.devices)
        parts = []
        for first in range(0, len(lanes), tiles * TILE):
            own = lanes[first : first + tiles * TILE]
            numbers = jax.tree.map(lambda x, own=own: x[own % len(SPACE)], group.hparams)
            started = program.start((own // len(SPACE)).astype(np.uint32), numbers, ())
            parts.append(program.collect(started, len(own))["loss"])
        same = np.array_equal(np.concatenate(parts), np.concatenate(whole), equal_nan=True)
        yield Check(f"tiles in flight: {tiles}", same, f"{len(lanes)} trainings of 200 steps, bit-equal")


def devices_and_processes(folder: Path) -> Iterator[Check]:
    """Stores of other numbers of devices and processes, interrupted and not, against one of one device."""
    from experiments.benchmarks.subject import digest

    def check(what: str, store: Path, note: str = "") -> Check:
        files = digest(store)
        return Check(what, files == wanted, f"{len(files)} files, hash-identical{note}")

    finish(folder / "reference", 1)
    wanted = digest(folder / "reference")
    for devices in (2, 4, 8):
        store = folder / f"devices-{devices}"
        finish(store, devices)
        yield check(f"devices: {devices}", store)
    for processes in (2, 4):
        store = folder / f"processes-{processes}"
        finish(store, 2, processes)
        yield check(f"processes: {processes} (jax.distributed, 2 devices each)", store)
    for before, after in [((1, 1), (8, 1)), ((2, 2), (4, 1)), ((4, 1), (2, 4)), ((1, 4), (2, 2))]:
        store = folder / f"resumed-{before}-{after}"
        left = interrupt(store, *before)
        finish(store, *after)
        words = "begun by {1} processes x {0} devices, SIGTERM, finished by {3} x {2}"
        yield check(words.format(*before, *after), store, f"; {left} of {len(wanted) - 1} chunks at the stop")


def nan_lanes(folder: Path) -> Iterator[Check]:
    """NaN as the learning rate of a share of the lanes, scattered."""
    import numpy as np

    import jaxstab
    from experiments.benchmarks.subject import regression

    rates = np.geomspace(0.01, 3.0, 600)
    healthy = jaxstab.sweep(regression, jaxstab.zipped(learning_rate=rates), 1)
    for share in (0, 1, 50, 99):
        bad = np.random.default_rng(share).permutation(600) < 6 * share
        poisoned = np.where(bad, np.nan, rates)
        mixed = jaxstab.sweep(regression, jaxstab.zipped(learning_rate=poisoned), 1)
        same = np.array_equal(mixed.loss.values[~bad], healthy.loss.values[~bad], equal_nan=True)
        flagged = bool((mixed.status.values[bad] == 1).all())
        yield Check(f"NaN in {share} % of the lanes", same and flagged, f"the other {(~bad).sum()} bit-equal")


def memory(folder: Path) -> Iterator[Check]:
    """Memory that runs out at the n-th start, and at the n-th wait, for every n that there is."""
    import jax

    from jaxstab.engine.program import Program

    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory (injected)")

    class Exhausted:
        def block_until_ready(self) -> None:
            raise error

    real, wanted = Program.start, loss_bytes()
    for where in ("start", "wait"):
        calls, same, failing = 0, True, 0
        while failing == 0 or failing <= calls:
            calls, failing = 0, failing + 1

            def start(self: Program, *arguments: Any, failing: int = failing, where: str = where) -> Any:
                nonlocal calls
                calls += 1
                if calls != failing:
                    return real(self, *arguments)
                if where == "start":
                    raise error
                return {"loss": Exhausted()}

            with mock.patch.object(Program, "start", start):
                same &= loss_bytes() == wanted
        yield Check(f"RESOURCE_EXHAUSTED at every {where} in turn", same, f"{failing} sweeps, bit-equal")


def loss_bytes() -> bytes:
    """Results of a sweep of several chunks."""
    import jaxstab
    from experiments.benchmarks.subject import SPACE, TILE, regression

    return jaxstab.sweep(regression, SPACE, 400, tile=TILE).loss.values.tobytes()


def compilations(folder: Path) -> Iterator[Check]:
    """3 activations x 64 gains x 1,024 seeds, then other gains."""
    import jax
    import numpy as np

    import jaxstab

    seen: collections.Counter[str] = collections.Counter()
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.update([event]))
    settings = {
        "activation": ["tanh", "relu", "gelu"],
        "depth": 4,
        "width": 8,
        "batch": 2,
        "keep": ["forward_rms"],
    }
    compiled = "/jax/core/compile/backend_compile_duration"
    counts = []
    for low, high, seeds in [(0.5, 2.5, 1024), (0.1, 1.0, 32)]:
        seen.clear()
        jaxstab.propagate(seeds=seeds, gain=np.linspace(low, high, 64), **settings)
        counts.append(seen[compiled])
    yield Check("3 activations x 64 gains x 1,024 seeds", counts[0] == 3, f"{counts[0]} compilations")
    yield Check("the same call with other gains", counts[1] == 0, f"{counts[1]} compilations")


def kill(folder: Path, kills: int) -> dict[str, Any]:
    """The kills, by a command of their own: its parent must not have touched a device."""
    command = [sys.executable, "-m", "experiments.benchmarks.kills", "--folder", str(folder / "kills")]
    environment = {k: v for k, v in os.environ.items() if k not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [*command, "--kills", str(kills)], stdout=subprocess.PIPE, env=environment, text=True, check=True
    )
    return json.loads(done.stdout)


def of_kills(found: dict[str, Any]) -> Iterator[Check]:
    """Lines of the table from what the kills showed."""
    inside = sum(found["inside_a_write"].values())
    yield Check(
        f"{found['kills']} SIGKILLs, {inside} of them inside a write",
        found["hash_identical"] and found["good_chunks_lost"] == 0,
        f"{found['stores_finished']} stores, hash-identical; {found['good_chunks_lost']} written chunks lost",
    )
    yield Check(
        "work lost by a kill",
        found["most_ended_chunks_lost"] <= 1,
        f"at most {found['most_ended_chunks_lost']} finished chunk; at most {found['most_seconds_lost']:.2f} s"
        f" where a chunk takes {found['chunk_seconds']:.2f} (up to {found['longest_chunk_seconds']:.2f}) s",
    )


def start(store: Path, devices: int, processes: int = 1) -> list[subprocess.Popen[bytes]]:
    """The processes of one run, with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.subject",
        "--store",
        str(store),
        "--seeds",
        str(SEEDS),
    ]
    command += ["--devices", str(devices)]
    shared = ["--coordinator", f"localhost:{port}", "--processes", str(processes)]
    commands = (
        [[*command, *shared, "--process", str(i)] for i in range(processes)] if processes > 1 else [command]
    )
    return [subprocess.Popen(one, stderr=subprocess.DEVNULL) for one in commands]


def finish(store: Path, devices: int, processes: int = 1) -> None:
    """Run the sweep to its end."""
    codes = [process.wait() for process in start(store, devices, processes)]
    if any(codes):
        raise SystemExit(f"{store}: exit codes {codes}")


def interrupt(store: Path, devices: int, processes: int = 1) -> int:
    """Stop a run after its first chunks; returns how many it has written."""
    running = start(store, devices, processes)

    def have_begun() -> bool:
        # one that has not would die of SIGTERM as any process does; one of several that has holds a lock of its own
        locks = len(list(store.glob("lock-*-of-*")))
        return len(list(store.glob("*.npz"))) >= 2 and (processes == 1 or locks == processes)

    while not have_begun() and any(process.poll() is None for process in running):
        time.sleep(0.01)
    for process in running:
        process.terminate()
    codes = [process.wait() for process in running]
    # a process whose share is done has left the sweep, and dies of SIGTERM as any other does
    if 75 not in codes or not all(code in (0, 75, -signal.SIGTERM) for code in codes):
        raise SystemExit(f"{store}: exit codes {codes}")
    return len(list(store.glob("*.npz")))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
