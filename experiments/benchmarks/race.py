"""Side by side: contestants in turn, round after round, in one process, and what came of it."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil
from scipy import stats

LEAST_P = 1e-4
"""Below this two samples are said to be of different laws, and no ratio of their times means anything."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    run: does it once, results on the host. units: how many networks (seeds, calls) one run makes. normals,
    float32 and bfloat16: random numbers and products' operations of one unit, for shares of the machine's limits.
    """

    run: Callable[[], Any]
    units: int
    is_ours: bool = False
    normals: float = 0.0
    float32: float = 0.0
    bfloat16: float = 0.0


@dataclasses.dataclass(frozen=True)
class Contest:
    """Work, who does it, and by which factor each of ours should lead whom.

    targets: ours -> (factor, the contestant it counts against, or "" for the fastest of them).
    agree: makes ours -> smallest p of what both compute being of one law; called before anything is timed.
    """

    name: str
    unit: str
    contestants: Mapping[str, Contestant]
    targets: Mapping[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    agree: Callable[[], Mapping[str, float]] = dict
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)


def same_law(ours: Any, theirs: Any) -> float:
    """p of two samples being of one law (Kolmogorov-Smirnov)."""
    one, other = (np.where(np.isfinite(x), x, np.inf) for x in (np.ravel(ours), np.ravel(theirs)))
    test: Any = stats.ks_2samp(one, other)
    return float(test.pvalue)


def race(contest: Contest, rounds: int, limits: Mapping[str, float]) -> dict[str, Any]:
    """Run everybody in turn; medians and quartiles of the seconds a unit takes, ratios, memory, first calls."""
    seconds: dict[str, list[float]] = {name: [] for name in contest.contestants}
    rows = {name: first_call(one.run) for name, one in contest.contestants.items()}
    agree = dict(contest.agree())
    for number in range(rounds):
        order = list(contest.contestants.items())
        for name, one in order if number % 2 == 0 else order[::-1]:  # what drifts falls on all alike
            seconds[name].append(timed(one.run) / one.units)
    for name, one in contest.contestants.items():
        low, median, high = np.quantile(seconds[name], [0.25, 0.5, 0.75])
        rows[name] |= {"seconds": median, "quartiles": [low, high], "units": one.units, "ours": one.is_ours}
        rows[name] |= {"shares": shares(one, median, limits)}
    return {
        "name": contest.name,
        "unit": contest.unit,
        "rounds": rounds,
        "contestants": rows,
        "absent": dict(contest.absent),
        "agree": agree,
        "ratios": ratios(contest, seconds),
    }


def ratios(contest: Contest, seconds: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """ours -> by which factor it leads whom (median of each round's own ratio), its 95 % interval, and the target.

    The interval is the binomial one of a median, which assumes no law; NaN at its ends where rounds are too few.
    """
    peers = [name for name, one in contest.contestants.items() if not one.is_ours]
    found = {}
    for ours, one in contest.contestants.items():
        if not one.is_ours or not peers:
            continue
        target, against = contest.targets.get(ours, (None, ""))
        if against not in contest.contestants:
            against = min(peers, key=lambda name: statistics.median(seconds[name]))
        of_rounds = np.divide(seconds[against], seconds[ours])
        test: Any = stats.quantile_test(of_rounds)
        interval = [float(end) for end in test.confidence_interval(0.95)]
        factor = float(np.median(of_rounds))
        found[ours] = {"against": against, "factor": factor, "interval": interval, "target": target}
    return found


def shares(one: Contestant, seconds: float, limits: Mapping[str, float]) -> dict[str, float]:
    """Which part of the machine's own rate each kind of work reaches."""
    work = {"normals": one.normals, "float32": one.float32, "bfloat16": one.bfloat16}
    return {
        kind: amount / seconds / limits[kind] for kind, amount in work.items() if amount and kind in limits
    }


def timed(run: Callable[[], Any]) -> float:
    """Seconds that one run takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def first_call(run: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a first call, with what it compiles; MiB by which the process grew at most meanwhile."""
    process, done = psutil.Process(), threading.Event()
    before = largest = process.memory_info().rss

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.01):
            largest = max(largest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds = timed(run)
    done.set()
    watcher.join()
    largest = max(largest, process.memory_info().rss)
    return {"first_seconds": round(seconds, 3), "extra_mib": round((largest - before) / 2**20, 1)}
