"""What the bits of a sweep depend on: resuming under anything else is refused with the reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxstab import machine, names
from jaxstab.compiler import compiler_options
from jaxstab.engine.group import Group
from jaxstab.engine.lane import CONFIGURATION


def environment(device: Any) -> dict[str, Any]:
    """Versions, device and settings that machine code and its rounding follow from."""
    found = {
        "versions": {name: metadata.version(name) for name in ("jaxstab", "jax", "jaxlib")},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "xla_flags": sorted(f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f),
        "compiler_options": compiler_options(device.platform),
        "configuration": {name: str(getattr(jax.config, name, None)) for name in CONFIGURATION},
    }
    if device.platform == "cpu":  # its kind is only "cpu"; sums depend on how many threads XLA cuts them for
        found |= {"cpu": machine.cpu_model(), "thread_pool": thread_pool()}
    return found


def thread_pool() -> int:
    """Threads of XLA's pool on the CPU: the larger of cores (or NPROC) and CPU devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    nproc = os.environ.get("NPROC", "")  # as XLA reads it: what is no number does not count
    return max(int(nproc) if nproc.isdigit() else cores, jax.local_device_count("cpu"))


def describe_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Each group as a manifest has it: its configurations, tile and chunk, outputs, program and data."""
    return [
        {
            "spec": names.describe(group.spec),
            "members": group.members.tolist(),
            "hparams": _digest_arrays(group.hparams),
            "tile": group.cut.tile,
            "tiles_per_chunk": group.cut.tiles_per_chunk,
            "outputs": {
                name: {
                    "shape": list(s.shape),
                    "dtype": str(s.dtype if s.dtype.kind in "biuf" else np.dtype("f4")),
                }
                for name, s in group.lane.outputs.items()
            },
            "program": group.lane.digest(group.cut.tile, group.hparams, group.data),
            "data": _digest_arrays(group.data),
        }
        for group in groups
    ]


def _digest_arrays(tree: Any) -> str:
    digest = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
