"""What Linux tells of the processor."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path

BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16"})


def cpu_model() -> str:
    """The processor's name and a digest of its instructions: they decide how XLA vectorizes."""
    fields = _fields()
    if not fields:
        return platform.processor() or platform.machine()
    flags = hashlib.sha256(" ".join(sorted(fields.get("flags", "").split())).encode()).hexdigest()[:12]
    return f"{fields.get('model name', platform.machine())} ({flags})"


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; False where nothing tells."""
    return not BFLOAT16.isdisjoint(_fields().get("flags", "").split())


@functools.cache
def _fields() -> dict[str, str]:
    """Of the last processor listed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
