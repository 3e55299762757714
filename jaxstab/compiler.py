"""What XLA is told where jaxstab compiles a program, besides what JAX tells it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

ON_CPU: dict[str, Any] = {
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}
"""Vectors as wide as the processor has them: XLA keeps to 256 bits, since early processors of 512 slowed their clock
for them; later ones draw normals in three quarters of the time. And of its library products alone: given maxima too,
as XLA does, it returns the other operand for NaN, `max(NaN, 0)` is 0, and a ReLU makes a network finite again that is
not (jaxlib 0.10; openxla/xla#21461)."""

UNOPTIMIZED: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
"""A program of small arrays is there in a fourth of the time."""

ONE_KERNEL = {"xla_cpu_small_call": "true", "inlineable": "false"}

FEW = 2**14
"""Numbers that one core is left alone with: XLA deals what moves 256 KiB or more to threads."""


def compiler_options(platform: str, *, is_small: bool = False) -> dict[str, Any]:
    """Options for a platform under which a program passes NaN on, as IEEE 754 has it and as accelerators do.

    What the user's XLA_FLAGS say of one stands, and one that is unknown to this jaxlib is left out.
    """
    if platform != "cpu":
        return {}
    said = os.environ.get("XLA_FLAGS", "")
    wanted = ON_CPU | (UNOPTIMIZED if is_small else {})
    items = tuple((name, value) for name, value in wanted.items() if name not in said)
    return dict(items if _are_known(*items) else (item for item in items if _are_known(item)))


@functools.cache
def _are_known(*options: tuple[str, Any]) -> bool:
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(jnp.negative, compiler_options=dict(options)).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def one_kernel(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`f` compiled for CPUs as one kernel where it is given few numbers; elsewhere `f` itself.

    XLA's CPU backend calls a kernel for every fusion, which takes longer than some hundred numbers do, and compiles
    each by itself. It makes one of small loops: this marks a call as it does. `f` must be without sorts, scatters,
    calls outside XLA and arrays larger than its arguments: kernels that are dealt to threads cannot be in one.
    """

    def unmarked(*arguments: jax.Array) -> jax.Array:
        with set_xla_metadata(**dict.fromkeys(ONE_KERNEL)):
            return f(*arguments)

    inner = jax.jit(unmarked)

    def call(*arguments: jax.Array) -> jax.Array:
        if jax.default_backend() != "cpu" or sum(x.size for x in arguments) > FEW:
            return f(*arguments)
        with set_xla_metadata(**ONE_KERNEL):
            return inner(*arguments)

    return call
