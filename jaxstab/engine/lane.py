"""One lane of a Spec: traced once, and everything that follows from its trace.

The tile, the chunk, the size of its arrays, the program that runs and its hash all come of the one jaxpr. Nothing
here looks at a clock or at free memory, so that the same sweep is cut the same way on every day. XLA's results
depend on how many lanes one operation holds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.interpreters import partial_eval

from jaxstab.engine import room
from jaxstab.errors import UsageError
from jaxstab.trials.family import Family, Outputs

CACHE_BYTES = {"cpu": 256 * 2**10}
ACCELERATOR_BYTES = 64 * 2**20
MOST_LANES = {"cpu": 64}
MOST_ACCELERATOR_LANES = 1024
CHUNK_WORK = 2e11
CHUNK_BYTES = 16 * 2**20
MOST_TILES = 256
LOOPS = ("scan", "while")
PRODUCTS = ("dot_general", "conv_general_dilated")
CONFIGURATION = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
"""Settings of JAX that a trace depends on."""


class Arguments(NamedTuple):
    """Shapes of what a lane is given besides its seed: leaves and structure of (hparams, *shared). Hashable.

    With them the settings of JAX that a trace depends on, as they are now.
    """

    leaves: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any
    configuration: tuple[str, ...]

    @classmethod
    def of(cls, hparams: Any, shared: tuple[Any, ...]) -> Arguments:
        """Of hyperparameters [configuration, ...] and the data that every lane reads."""
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], np.float32), hparams)
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shared)
        leaves, structure = jax.tree.flatten((one, *data))
        configuration = tuple(str(getattr(jax.config, name, None)) for name in CONFIGURATION)
        return cls(tuple(leaves), structure, configuration)


class Lane:
    """A function of (seed, hparams, *shared): the outputs in `keep`, sorted by name, and the lane's `status`.

    `outputs` are their shapes. Lanes of the same trace share it, whatever they keep.
    """

    def __init__(self, whole: ClosedJaxpr, shapes: Mapping[str, jax.ShapeDtypeStruct], keep: tuple[str, ...]):
        self._whole, self._shapes, self.keep = whole, shapes, keep
        self.outputs = {name: shapes[name] for name in sorted((*keep, "status"))}

    @functools.cached_property
    def program(self) -> ClosedJaxpr:
        """The jaxpr, without what its outputs do not need."""
        wanted = [name in self.outputs for name in self._shapes]
        jaxpr, _ = partial_eval.dce_jaxpr(self._whole.jaxpr, wanted, instantiate=True)
        return ClosedJaxpr(jaxpr, self._whole.consts)

    def __call__(self, seed: Any, hparams: Any, *shared: Any) -> dict[str, jax.Array]:
        values = jaxpr_as_fun(self.program)(seed, *jax.tree.leaves((hparams, *shared)))
        return dict(zip(self.outputs, map(jnp.asarray, values), strict=True))

    def of_tile(self, seeds: Any, hparams: Any, *shared: Any) -> dict[str, jax.Array]:
        """All lanes of one tile: what runs, and what is hashed."""
        return jax.vmap(lambda seed, own: self(seed, own, *shared))(seeds, hparams)

    def digest(self, tile: int, hparams: Any, shared: tuple[Any, ...]) -> str:
        """SHA-256 of one tile's lowered program; the same on any number of devices."""
        batched = jax.tree.map(lambda x: jax.ShapeDtypeStruct((tile, *x.shape[1:]), np.float32), hparams)
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), shared)
        seeds = jax.ShapeDtypeStruct((tile,), np.uint32)
        with self.computing():
            lowered = jax.jit(self.of_tile).lower(seeds, batched, *data)
        return hashlib.sha256(lowered.as_text().encode()).hexdigest()

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """In which the lane is lowered: float64 is off in JAX by default, and a trial may have turned it on."""
        return jax.enable_x64(True) if self._is_wide else contextlib.nullcontext()

    @functools.cached_property
    def _is_wide(self) -> bool:
        return any(dtype in (np.float64, np.int64) for dtype in _dtypes(self._whole.jaxpr))

    @property
    def bytes(self) -> int:
        """Bytes of one lane's results."""
        return sum(math.prod(s.shape) * s.dtype.itemsize for s in self.outputs.values())

    def tile(self, platform: str) -> int:
        """Lanes a tile: as many as keep the largest array written inside a loop in the cache of a core."""
        budget = CACHE_BYTES.get(platform, ACCELERATOR_BYTES)
        most = MOST_LANES.get(platform, MOST_ACCELERATOR_LANES)
        return min(max(_power_of_two_below(budget / self._largest_written), 1), most)

    @functools.cached_property
    def _largest_written(self) -> int:
        arrays = list(_arrays(self._whole.jaxpr, False))
        return max((size for size, in_loop in arrays if in_loop), default=0) or max(
            [1, *(s for s, _ in arrays)]
        )

    def tiles_per_chunk(self, tile: int) -> int:
        """Tiles a chunk: some seconds of work, some megabytes of results."""
        by_work = CHUNK_WORK / (tile * max(self._work, 1.0))
        by_bytes = CHUNK_BYTES / (tile * self.bytes)
        return min(max(_power_of_two_below(min(by_work, by_bytes)), 2), MOST_TILES)

    @functools.cached_property
    def _work(self) -> float:
        return _work(self._whole.jaxpr)

    @functools.cached_property
    def largest_array(self) -> int:
        """Bytes of the largest array that a lane cannot do without: what loops carry or stack, products' operands.

        What is written elementwise does not count: the compiler may never have it as a whole.
        """
        return max(_wholes(self._whole.jaxpr), default=0)


@functools.lru_cache(maxsize=256)
def trace(family: Family, spec: Any, arguments: Arguments) -> Lane:
    """The lane of a Spec with all of its outputs, traced once in a process. Nothing is compiled.

    Errors: UsageError, with sizes that would do, for an array of 2^31 entries or more.
    """
    try:
        return _traced(family, spec, arguments)
    except OverflowError:
        advice = room.smaller(spec, lambda other: bool(_traced(family, other, arguments)))
        raise UsageError(
            f"{room.sizes(spec)}: an array of 2^31 entries or more, which none can hold; {advice}."
        ) from None


def _traced(family: Family, spec: Any, arguments: Arguments) -> Lane:
    trial = family.make_trial(spec)

    def lane(seed: jax.Array, *leaves: jax.Array) -> Outputs:
        hparams, *shared = jax.tree.unflatten(arguments.structure, leaves)
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), seed)
        outputs = {name: jnp.asarray(value) for name, value in trial(key, hparams, *shared).items()}
        own_status = outputs.pop("status", None)
        # of all outputs: a lane's fate is the same whatever is kept
        status = family.lane_status(outputs) if own_status is None else own_status
        return {**outputs, "status": status.astype(jnp.int8)}

    seed = jax.ShapeDtypeStruct((), np.uint32)
    whole, shapes = jax.make_jaxpr(lane, return_shape=True)(seed, *arguments.leaves)
    names = sorted(shapes)  # the order in which JAX flattens a dictionary
    return Lane(whole, {name: shapes[name] for name in names}, tuple(n for n in names if n != "status"))


@functools.lru_cache(maxsize=256)
def keeping(lane: Lane, keep: tuple[str, ...]) -> Lane:
    """The lane with only these outputs, and its status; the same object for the same ones."""
    return Lane(lane._whole, lane._shapes, keep)


def _power_of_two_below(x: float) -> int:
    return 2 ** math.floor(math.log2(x)) if x >= 1 else 0


def _arrays(jaxpr: Jaxpr, in_loop: bool) -> Iterator[tuple[int, bool]]:
    """Bytes of every array that the program writes, and whether it does so inside a loop."""
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        for sub in inner:
            yield from _arrays(sub, in_loop or equation.primitive.name in LOOPS)
        if not inner:  # a loop's own results are its stacked outputs, which no iteration touches as a whole
            yield from ((_bytes(v.aval), in_loop) for v in equation.outvars)


def _wholes(jaxpr: Jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        for sub in jaxprs_in_params(equation.params):
            yield from _wholes(sub)
        if equation.primitive.name in LOOPS:
            yield from (_bytes(v.aval) for v in equation.outvars)
        if equation.primitive.name in PRODUCTS:
            yield from (_bytes(v.aval) for v in (*equation.invars, *equation.outvars))


def _work(jaxpr: Jaxpr) -> float:
    """Operations of one lane, roughly: elements written (many for random bits), products, times trips."""
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        trips = equation.params.get("length", 1) if name == "scan" else 1
        inner = list(jaxprs_in_params(equation.params))
        total += trips * sum(_work(sub) for sub in inner)
        if inner:
            continue
        elements = float(sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape: Any = getattr(equation.invars[0].aval, "shape", ())
            elements *= 0.1 * float(math.prod(int(shape[d]) for d in contracted))
        elif name.startswith(("random_bits", "threefry")):
            elements *= 30
        total += elements
    return total


def _dtypes(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield from (getattr(v.aval, "dtype", None) for v in equation.outvars)
        for sub in jaxprs_in_params(equation.params):
            yield from _dtypes(sub)


def _bytes(aval: Any) -> int:
    dtype = getattr(aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 4)  # keys have an extended dtype
    return math.prod(getattr(aval, "shape", ())) * itemsize
