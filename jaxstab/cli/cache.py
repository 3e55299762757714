"""Compiled programs are kept from one process to the next: JAX's persistent compilation cache, in a folder of its own.

Commands switch it on; the library never does so unasked. A program that comes out of it is the one that went in.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

import jax
import platformdirs

VARIABLE = "JAXSTAB_CACHE"
"""Environment variable: a folder, or "off"."""
MOST_BYTES = 2**30


def keep_programs() -> Path | None:
    """Keep what is compiled from now on, and look there first. Returns the folder, None where nothing was changed.

    `JAXSTAB_CACHE` names another folder, or is "off". Where JAX's own cache is configured already, by
    `JAX_COMPILATION_CACHE_DIR` or in the program, that is left as it is.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted.lower() == "off" or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return None
    # programs are for the instructions of one kind of processor, and home folders are shared by several
    folder = Path(wanted or platformdirs.user_cache_path("jaxstab")) / f"programs-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a home that cannot be written to: everything is compiled, as without a cache
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    return folder


def _processor() -> str:
    """A name for this kind of processor, by what it can do."""
    try:
        said = Path("/proc/cpuinfo").read_text()
        able = re.findall(r"^(?:flags|Features|model name)\s*:.*$", said, re.MULTILINE)[:2]
    except OSError:
        able = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *able]).encode()).hexdigest()[:12]
