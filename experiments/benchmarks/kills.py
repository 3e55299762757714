"""SIGKILL at random moments, some inside a write: `python -m experiments.benchmarks.kills FOLDER --kills 200`.

A parent that never touches a device forks a child for each attempt. Half of the children are killed from outside
after a random time, the other half by themselves inside a write: with half of the bytes on disk, before the file
is flushed, before or after it gets its name, before the folder is flushed. A sweep that gets finished is compared
with the uninterrupted one, and the next is begun, until there were enough kills.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro

from experiments.benchmarks.subject import SPACE, TILE, digest, regression
from jaxstab.engine.group import Group
from jaxstab.engine.run import sweep
from jaxstab.engine.store import Store

INSIDE = ("half written", "before flush", "before rename", "after rename", "before folder flush")


def main(folder: Path, kills: int = 200, seeds: int = 1000, seed: int = 0) -> None:
    """Kill and resume until there were `kills` kills; print one JSON object."""
    draw = random.Random(seed)
    log = folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    reference = folder / "uninterrupted"
    began = time.perf_counter()
    finish(reference, seeds, log)
    span, wanted = time.perf_counter() - began, digest(reference)
    chunk_seconds = durations(log)
    store, kept, found = folder / "killed", set[str](), []
    finished = 0
    while len(found) < kills:
        log.unlink(missing_ok=True)
        inside = draw.choice(INSIDE) if len(found) % 2 else None
        child = fork(lambda inside=inside: attempt(store, seeds, log, inside, draw.randint(1, 3)))
        moment = draw.uniform(0.0, 0.5 * span)
        killed = wait(child, None if inside else moment)
        one = {"inside": inside or "anywhere", **lost(log, time.monotonic())}
        there = digest(store) if store.exists() else {}
        one["good"] = there.items() <= wanted.items() and kept <= there.keys()
        kept = {name for name in there if name.endswith(".npz")}
        if killed:
            found.append(one)
            print(f"{len(found)} of {kills} kills", end="\r", file=sys.stderr, flush=True)
        else:
            finished += 1
            if there != wanted:
                raise SystemExit(f"a store that was killed and resumed differs: {store}")
            shutil.rmtree(store)
            kept = set()
    finish(store, seeds, log)
    print(json.dumps(summary(found, finished + 1, digest(store) == wanted, chunk_seconds)))


def summary(found: list[dict[str, Any]], stores: int, same: bool, chunk_seconds: float) -> dict[str, Any]:
    """What the campaign showed, in figures."""
    return {
        "kills": len(found),
        "inside_a_write": {name: sum(one["inside"] == name for one in found) for name in INSIDE},
        "stores_finished": stores,
        "hash_identical": same,
        "good_chunks_lost": sum(not one["good"] for one in found),
        "kills_after_a_chunk_began": sum(one["began"] > 0 for one in found),
        "most_ended_chunks_lost": max(one["ended"] - one["wrote"] for one in found),
        "chunk_seconds": chunk_seconds,
        "longest_chunk_seconds": max(one["longest"] for one in found),
        "most_seconds_lost": max(one["seconds"] for one in found),
    }


def attempt(store: Path, seeds: int, log: Path, inside: str | None = None, write: int = 0) -> None:
    """One run of the sweep, its events noted in `log`; killed inside its write number `write`."""
    trace(log)
    if inside is not None:
        kill_inside(inside, write)
    sweep(regression, SPACE, seeds, store=store, tile=TILE, progress=False)


def finish(store: Path, seeds: int, log: Path) -> None:
    """Run the sweep undisturbed to its end."""
    if wait(fork(lambda: attempt(store, seeds, log)), None):
        raise SystemExit(f"the sweep in {store} could not be finished")


def fork(work: Callable[[], None]) -> int:
    """A child that does `work` and ends; the parent gets its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(KeyboardInterrupt):
        work()
        code = 0
    os._exit(code)


def wait(child: int, moment: float | None) -> bool:
    """Whether a child was killed, at the latest `moment` seconds from now; an error of its own ends everything."""
    deadline = None if moment is None else time.monotonic() + moment
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            break
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"an attempt failed with exit code {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def trace(log: Path) -> None:
    """Note when a chunk begins, ends, and is written, so that it survives the process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(name: str, function: Any, before: bool) -> Any:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            if before:
                os.write(file, f"{name} {time.monotonic()}\n".encode())
            result = function(*arguments, **keywords)
            if not before:
                os.write(file, f"{name} {time.monotonic()}\n".encode())
            return result

        return wrapper

    Group._start = noted("began", Group._start, before=True)
    Group.finish = noted("ended", Group.finish, before=False)
    Store.write_chunk = noted("wrote", Store.write_chunk, before=False)


def events(log: Path) -> Iterator[tuple[str, float]]:
    """(what, when) of a log; there is none where the child was killed before its first chunk."""
    for line in log.read_text().splitlines() if log.exists() else []:
        name, when = line.split()
        yield name, float(when)


def lost(log: Path, moment: float) -> dict[str, Any]:
    """How many chunks began, ended and were written until a kill, the time spent on those that were not written,
    and the longest that a chunk took to end."""
    times: dict[str, list[float]] = {"began": [], "ended": [], "wrote": []}
    for name, when in events(log):
        times[name].append(when)
    unwritten = times["began"][len(times["wrote"]) :]
    longest = max((b - a for a, b in zip(times["began"], times["ended"], strict=False)), default=0.0)
    count = {name: len(of_name) for name, of_name in times.items()}
    return {**count, "seconds": moment - unwritten[0] if unwritten else 0.0, "longest": longest}


def durations(log: Path) -> float:
    """Median seconds of a chunk."""
    ends = [when for name, when in events(log) if name == "ended"]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def kill_inside(inside: str, write: int) -> None:
    """Make the `write`-th file that gets flushed the last thing that this process does."""
    fsync, replace = os.fsync, os.replace
    flushed = [0]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fsync_or_die(descriptor: int) -> None:
        folder = Path(f"/proc/self/fd/{descriptor}").is_dir()
        flushed[0] += not folder
        if flushed[0] == write:
            if inside == "half written" and not folder:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                die()
            if (inside == "before flush" and not folder) or (inside == "before folder flush" and folder):
                die()
        fsync(descriptor)

    def replace_or_die(source: Any, target: Any) -> None:
        if flushed[0] == write and inside == "before rename":
            die()
        replace(source, target)
        if flushed[0] == write and inside == "after rename":
            die()

    os.fsync, os.replace = fsync_or_die, replace_or_die


if __name__ == "__main__":
    tyro.cli(main)
