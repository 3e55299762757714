"""What the machine can do at best, measured in the same run: products, random numbers, copying."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxstab import random
from jaxstab.compiler import compiler_options

UNITS = {
    "float32": "float32 products (highest precision), operations a second",
    "bfloat16": "bfloat16 products summed in float32, operations a second",
    "normals": "standard normal numbers a second",
    "copy": "bytes read and written a second",
}


def measure(torch: Any = None, device: str = "cpu") -> dict[str, float]:
    """The best rate that anybody reaches of each kind of work; torch takes part where it is installed."""
    size = 2048 if device == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size))
    b = a.astype(jnp.bfloat16)
    rates = {
        "float32": 2 * size**3 / best(jax.jit(lambda x: jnp.matmul(x, x, precision="highest")), a),
        "bfloat16": 2
        * size**3
        / best(jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32)), b),
        "normals": normals_a_second(random.normal),
        "copy": 2 * 4 * 2**26 / best(jax.jit(lambda x: x + 1), jnp.zeros(2**26)),
    }
    if torch is not None:
        with torch.no_grad():
            x = torch.randn(size, size, device=device)
            small = size // 8 if device == "cpu" else size  # a CPU without such an instruction takes minutes
            y = x[:small, :small].bfloat16()
            z = torch.empty(2**18 if device == "cpu" else 2**26, device=device)
            wait = torch.cuda.synchronize if device == "cuda" else lambda: None
            of_torch = {
                "float32": 2 * size**3 / best(lambda: (x @ x, wait())),
                "bfloat16": 2 * small**3 / best(lambda: (y @ y, wait())),
                "normals": 16 * z.numel() / best(lambda: ([z.normal_() for _ in range(16)], wait())),
            }
        rates = {kind: max(rate, of_torch.get(kind, 0.0)) for kind, rate in rates.items()}
    # rounded operands may be multiplied in float32 as well
    return rates | {"bfloat16": max(rates["bfloat16"], rates["float32"])}


def normals_a_second(draw: Callable[..., Any]) -> float:
    """Over all devices, in blocks that stay in a core's cache, each summed."""
    devices = jax.local_devices()
    block, blocks = (2**16, 200) if devices[0].platform == "cpu" else (2**24, 20)
    mesh = Mesh(np.array(devices), ("device",), axis_types=(AxisType.Auto,))

    def total(keys: Any) -> Any:
        def add(sum_: Any, i: Any) -> Any:
            return sum_ + draw(jax.random.fold_in(keys[0], i), (block,)).sum(), None

        return jax.lax.scan(add, jnp.float32(0), jnp.arange(blocks))[0][None]

    split = PartitionSpec("device")
    mapped = jax.shard_map(total, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    run = jax.jit(mapped, compiler_options=compiler_options(devices[0].platform))
    keys = jax.device_put(jax.random.split(jax.random.key(0), len(devices)), NamedSharding(mesh, split))
    return len(devices) * blocks * block / best(run, keys)


def best(run: Callable[..., Any], *arguments: Any, rounds: int = 5) -> float:
    """Seconds of the fastest of some calls, after a first."""
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)
