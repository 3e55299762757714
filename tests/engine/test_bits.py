"""Results keep their bits: small sweeps beside what an earlier jaxstab stored of them.

Bits follow from versions, processor and threads. Where all of these are those of the record, every bit must agree;
elsewhere the numbers must, within what rounding does to them. `python tests/engine/test_bits.py` writes the record
anew, which only a change that means to change results may do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":  # the same devices as under pytest
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import conftest  # noqa: F401 - sets them

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from jaxstab.engine import identity

RECORD = Path(__file__).with_name("bits.npz")
SMALL = {"depth": 6, "width": 24, "batch": 5}


@jaxstab.family(dims={"path": ("step",)})
def walk(key, *, steps: int = 5, drift: float = 0.0, scales: tuple[float, ...] = (1.0, 2.0)):
    path = drift + jnp.cumsum(jax.random.normal(key, (steps,)))
    return {"path": path * scales[0], "last": path[-1] * scales[1], "sign": path[-1] > 0}


def propagate(**axes):
    return lambda: jaxstab.propagate(7, **(SMALL | axes))


CASES = {
    "every kind": propagate(kind=["plain", "residual", "normalized", "recurrent", "lstm"], gain=[0.5, 1.5]),
    "schemes": propagate(
        init=["torch_default", "truncated_normal", "orthogonal"], activation="relu", sigma_b=0.1
    ),
    "in law": propagate(sampler="conditioned", kind="residual", init=["orthogonal", "lecun_normal"]),
    "halves": propagate(dtype=["float16", "bfloat16"], activation="gelu", gain=[1.0, 8.0]),
    "forward only": propagate(keep=["forward_rms", "zero_fraction"], activation="relu", gain=[0.1, 3.0]),
    "deep": propagate(depth=60, activation="relu", init="normal", gain=[0.01, 2.0], tile=4),
    "training": lambda: jaxstab.train(
        3,
        dataset="digits",
        hidden={"two": (8, 8)},
        epochs=2,
        learning_rate=[0.1, 0.5],
        dropout={"same": (0.2, 0.2)},
    ),
    "a user's": lambda: jaxstab.sweep(
        walk, jaxstab.grid(steps=[3, 5], drift=[0.0, 0.5]) * jaxstab.zipped(scales={"a": (1.0, 3.0)}), 9
    ),
}


def arrays(name: str) -> dict[str, np.ndarray]:
    return {f"{name}/{key}": value.values for key, value in CASES[name]().data_vars.items()}


def environment() -> str:
    return json.dumps(identity.environment(jax.devices()[0]) | {"jaxstab": ""}, sort_keys=True)


@pytest.mark.parametrize("name", CASES)
def test_results_keep_their_bits(name):
    found = arrays(name)
    with np.load(RECORD, allow_pickle=False) as record:
        wanted = {key: record[key] for key in record.files if key.split("/")[0] == name}
        is_same_machine = str(record["environment"]) == environment()
    assert {*found} == {*wanted}
    for key, value in found.items():
        assert value.dtype == wanted[key].dtype, key
        if is_same_machine:
            np.testing.assert_array_equal(value, wanted[key], err_msg=key, strict=True)
        elif value.dtype.kind == "f":
            tolerance = 0.05 if name == "halves" else 1e-3
            np.testing.assert_allclose(value, wanted[key], rtol=tolerance, atol=tolerance, err_msg=key)


if __name__ == "__main__":
    everything = {key: value for name in CASES for key, value in arrays(name).items()}
    np.savez_compressed(RECORD, environment=np.array(environment()), allow_pickle=False, **everything)
