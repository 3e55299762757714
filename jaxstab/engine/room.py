"""Whether a sweep fits the memory there is: said before anything is compiled, with what would fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil

from jaxstab.errors import UsageError


def check_memory(memory: Any) -> float | None:
    """Bytes for all devices together, or None for what they have left."""
    if memory is None:
        return None
    if isinstance(memory, bool) or not isinstance(memory, (int, float)) or not memory > 0:
        raise UsageError(f"memory={memory!r}: a number of bytes above 0 is wanted.")
    return float(memory)


def available_memory(devices: Sequence[Any]) -> float:
    """Bytes that each device has left; no limit where neither device nor system says."""
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if devices[0].platform == "cpu":
        return 0.8 * host_memory() / len(devices)
    return math.inf


def host_memory() -> float:
    """Bytes that this machine has left."""
    return float(psutil.virtual_memory().available)


def require_results(configurations: int, seeds: int, lane_bytes: int) -> None:
    """Refuse results that this machine's memory cannot hold; they are kept whole, padded to the longest."""
    room, needed = 0.8 * host_memory(), float(configurations) * seeds * lane_bytes
    if needed <= room:
        return
    fitting = int(room / (configurations * lane_bytes))
    advice = f"seeds={fitting} would fit, or fewer outputs (keep=[...])"
    if not fitting:
        advice = "fewer configurations or outputs (keep=[...]) would"
    raise UsageError(
        f"{configurations} configurations x {seeds} seeds x {lane_bytes} bytes: results of {_spell(needed)},"
        f" and {_spell(room)} are there; {advice}."
    )


def require_lane(spec: Any, largest: Callable[[Any], float], tile: int, room: float) -> None:
    """Refuse a Spec of whose arrays one alone is larger than a device's room.

    `largest(spec)` is the number of bytes that one lane's largest array has, found by tracing alone.
    """
    needed = tile * largest(spec)
    if needed <= room:
        return
    if tile > 1 and needed / tile <= room:
        advice = f"tile={int(room * tile // needed)} would fit"
    else:
        advice = smaller(spec, lambda other: largest(other) <= room)
    raise UsageError(
        f"{sizes(spec)}: an array of {_spell(needed)}, and a device has room for {_spell(room)}; {advice}."
    )


def smaller(spec: Any, fits: Callable[[Any], bool]) -> str:
    """Each size of the Spec at which all would fit, the others as they are, in words.

    `fits` may raise UsageError or OverflowError where it cannot even be traced.
    """
    found = []
    for name, value in _sizes(spec).items():
        for halvings in range(1, int(np.max(value)).bit_length()):
            halved = (
                tuple(max(v >> halvings, 1) for v in value) if isinstance(value, tuple) else value >> halvings
            )
            try:
                enough = fits(dataclasses.replace(spec, **{name: halved}))
            except (UsageError, OverflowError):
                continue
            if enough:
                found.append(f"{name}={halved}")
                break
    return f"{' or '.join(found)} would fit" if found else "smaller sizes might fit"


def sizes(spec: Any) -> str:
    """The whole numbers of a Spec, in words."""
    return ", ".join(f"{name}={value}" for name, value in _sizes(spec).items()) or type(spec).__name__


def _sizes(spec: Any) -> dict[str, Any]:
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {
        n: v
        for n, v in values.items()
        if _is_size(v) or (isinstance(v, tuple) and v and all(map(_is_size, v)))
    }


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _spell(size: float) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    power = min(max(int(math.log2(max(size, 1)) // 10), 0), 4)
    return f"{size / 2 ** (10 * power):.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
