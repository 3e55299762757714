"""Every program lowers for accelerators that are not here: what is claimed of them without one is this alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxstab
from jaxstab.engine.job import Job
from jaxstab.nets.layers import register

SMALL = {"depth": 4, "width": 32, "batch": 2}
STACKS = {kind: SMALL | {"kind": kind} for kind in register.KINDS if kind not in register.ATTENDING}
STACKS |= {kind: SMALL | {"kind": kind, "tokens": 2, "heads": 2} for kind in register.ATTENDING}
STACKS |= {
    f"{name}, matrices": one | {"sampler": "dense"}
    for name, one in STACKS.items()
    if name not in register.REUSED
}
STACKS |= {
    "orthogonal in law": SMALL | {"init": "orthogonal"},
    "orthogonal matrices": SMALL | {"init": "orthogonal", "sampler": "dense"},
    "halves": SMALL | {"dtype": "float16"},
    "bfloat16": SMALL | {"dtype": "bfloat16"},
    "in turn": SMALL | {"kind": "pre_ln", "sublayers": "alternate", "tokens": 2},
    "widths": SMALL | {"width": {"w": (32, 16, 48, 8, 24)}},
    "dropout": SMALL | {"dropout": 0.3},
}


def lowers(family, platform, **axes):
    (group,) = Job(family, jaxstab.grid(**axes), 3, None, 1, 2).groups
    shape = lambda x: jax.ShapeDtypeStruct((2, *np.shape(x)[1:]), np.float32)  # noqa: E731 - two lanes
    data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), group.data)
    seeds = jax.ShapeDtypeStruct((2,), np.uint32)
    exported = jax.export.export(jax.jit(group.lane.of_tile), platforms=[platform])(
        seeds, jax.tree.map(shape, group.hparams), *data
    )
    assert exported.platforms == (platform,)
    return exported.mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", STACKS)
def test_stacks(name, platform):
    program = lowers(jaxstab.propagation, platform, **STACKS[name])
    assert "stablehlo.dot_general" in program
    assert "custom_call @lapack" not in program


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("precision", ["highest", "bfloat16"])
def test_training(precision, platform):
    settings = {"hidden": {"two": (8, 8)}, "epochs": 1, "batch_size": 512, "dropout": {"two": (0.1, 0.2)}}
    assert "stablehlo.dot_general" in lowers(jaxstab.training, platform, precision=precision, **settings)


def test_what_a_platform_does_not_have_is_seen():
    @jaxstab.family
    def eigenvalues(key, *, size: int = 3):
        return {"largest": jax.numpy.linalg.eigvals(jax.random.normal(key, (size, size))).real.max()}

    with pytest.raises(NotImplementedError):
        lowers(eigenvalues, "tpu")
