"""What the processor is, and what XLA can do on it."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    """The processor's name and a digest of its instructions: they decide how XLA vectorizes."""
    fields = _fields()
    if not fields:
        return platform.processor() or platform.machine()
    flags = hashlib.sha256(" ".join(sorted(fields.get("flags", "").split())).encode()).hexdigest()[:12]
    return f"{fields.get('model name', platform.machine())} ({flags})"


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether XLA's CPU backend runs products of bfloat16 with sums in float32; tried once, not read off flags.

    Processors that list the instructions fail at some of these products all the same ("BF16 x BF16 = F32": seen
    where the left operand is transposed and shared by a batch), so every form is tried that a layer's product
    and its gradient take, under vmap over either operand.
    """
    import jax  # the command line asks for this module's other words before JAX is up
    import jax.numpy as jnp

    from jaxstab.compiler import compiler_options

    def products(a: jax.Array, b: jax.Array) -> list[jax.Array]:
        axes = ((1, 0), (1, 1), (0, 0))
        return [
            jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=jnp.float32)
            for i, j in axes
        ]

    def all_forms(one: jax.Array, many: jax.Array) -> list[Any]:
        batched = [jax.vmap(products, in_axes)(*(many if i == 0 else one for i in in_axes))
                   for in_axes in ((0, 0), (0, None), (None, 0))]  # fmt: skip
        return [products(one, one), *batched]

    try:
        with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
            matrix = jnp.ones((16, 16), jnp.bfloat16)
            tried = jax.jit(all_forms, compiler_options=compiler_options("cpu"))  # as they will be run
            results = jax.block_until_ready(tried(matrix, jnp.stack([matrix, matrix])))
    except RuntimeError:  # no CPU backend, or a product that it has not
        return False
    return all(bool((product == 16.0).all()) for product in jax.tree.leaves(results))


@functools.cache
def _fields() -> dict[str, str]:
    """Of the last processor listed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
