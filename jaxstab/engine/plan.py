"""What will be compiled and in which pieces it runs: groups of one Spec, tiles, chunks.

Nothing here looks at a clock or at free memory: a tile and a chunk follow from the traced trial alone, so that
the same sweep is cut the same way on every day. XLA's results depend on how many lanes one operation holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxstab.engine import room
from jaxstab.engine.space import Space
from jaxstab.errors import UsageError, require_choice
from jaxstab.trials.family import Family, Outputs

CACHE_BYTES = {"cpu": 256 * 2**10}
ACCELERATOR_BYTES = 64 * 2**20
MOST_LANES = {"cpu": 64}
MOST_ACCELERATOR_LANES = 1024
CHUNK_WORK = 2e11
CHUNK_BYTES = 16 * 2**20
LOOPS = ("scan", "while")
PRODUCTS = ("dot_general", "conv_general_dilated")


@dataclasses.dataclass(frozen=True)
class Group:
    """The configurations that share one Spec, hence one program.

    `members` are their numbers in the space, `hparams` their numbers to trace, float32 [configuration, ...].
    """

    spec: Any
    members: np.ndarray
    hparams: Any


def make_groups(family: Family, space: Space) -> list[Group]:
    """Group a space's configurations by Spec, in the order of their first appearance."""
    by_spec: dict[Any, list[tuple[int, Any]]] = {}
    for number, settings in enumerate(space.configurations()):
        spec, hparams = family.configure(settings)
        by_spec.setdefault(spec, []).append((number, hparams))
    return [
        Group(
            spec=spec,
            members=np.array([number for number, _ in lanes]),
            hparams=jax.tree.map(lambda *values: np.array(values, np.float32), *[h for _, h in lanes]),
        )
        for spec, lanes in by_spec.items()
    ]


@dataclasses.dataclass(frozen=True)
class Outline:
    """What tracing one lane tells: its outputs, the tile and the chunk that follow from it."""

    outputs: dict[str, jax.ShapeDtypeStruct]
    tile: int
    tiles_per_chunk: int

    @property
    def lane_bytes(self) -> int:
        """Bytes of one lane's results."""
        return sum(math.prod(s.shape) * s.dtype.itemsize for s in self.outputs.values())


def kept_lane(family: Family, spec: Any, keep: tuple[str, ...] | None) -> Any:
    """The function of one lane: (seed, hparams, *shared) -> its kept outputs and its status."""
    trial = family.make_trial(spec)

    def lane(seed: jax.Array, hparams: Any, *shared: Any) -> Outputs:
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), seed)
        outputs = dict(trial(key, hparams, *shared))
        own_status = outputs.pop("status", None)
        # of all outputs: a lane's fate is the same whatever is kept
        status = family.lane_status(outputs) if own_status is None else jnp.asarray(own_status)
        kept = {name: jnp.asarray(outputs[name]) for name in sorted(keep if keep is not None else outputs)}
        return {**kept, "status": status.astype(jnp.int8)}

    return lane


class Arguments(NamedTuple):
    """Shapes of what a lane is given besides its seed: leaves and structure of (hparams, *shared). Hashable."""

    leaves: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any

    @classmethod
    def of(cls, group: Group, shared: tuple[Any, ...]) -> Arguments:
        """Of one configuration of a group."""
        hparams = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), group.hparams)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shared)
        leaves, structure = jax.tree.flatten((hparams, *shapes))
        return cls(tuple(leaves), structure)


@functools.lru_cache(maxsize=256)
def trace(
    family: Family, spec: Any, keep: tuple[str, ...] | None, arguments: Arguments
) -> tuple[ClosedJaxpr, dict[str, jax.ShapeDtypeStruct]]:
    """The jaxpr of one lane and the shapes of its outputs, traced once. Nothing is compiled."""
    try:
        return _trace(family, spec, keep, arguments)
    except OverflowError:
        advice = room.smaller(spec, lambda other: bool(_trace(family, other, keep, arguments)))
        raise UsageError(
            f"{room.sizes(spec)}: an array of 2^31 entries or more, which none can hold; {advice}."
        ) from None


def _trace(family: Family, spec: Any, keep: tuple[str, ...] | None, arguments: Arguments) -> Any:
    seed = jax.ShapeDtypeStruct((), np.uint32)
    given = jax.tree.unflatten(arguments.structure, arguments.leaves)
    return jax.make_jaxpr(kept_lane(family, spec, keep), return_shape=True)(seed, *given)


def output_names(family: Family, spec: Any, arguments: Arguments) -> list[str]:
    """Names of a trial's outputs, from its trace."""
    return [name for name in trace(family, spec, None, arguments)[1] if name != "status"]


def check_keep(keep: Any, names: list[str]) -> tuple[str, ...]:
    """`keep` as a sorted tuple of known outputs; all of them for None."""
    if keep is None:
        return tuple(sorted(names))
    if isinstance(keep, str):
        raise UsageError(f"keep={keep!r}: a list of names is wanted, keep=[{keep!r}].")
    wanted = set(keep) - {"status"}
    return tuple(sorted(require_choice(name, sorted(names), "output in keep:") for name in wanted))


def check_dims(family: Family, outputs: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Refuse an output whose axes the family does not name."""
    for name, shape in outputs.items():
        dims = () if name == "status" else family.dims.get(name, ())
        if len(dims) != len(shape.shape):
            raise UsageError(
                f"family {family.name!r}: output {name!r} has shape {shape.shape}, but dims names {dims} for it."
            )


@functools.lru_cache(maxsize=256)
def make_outline(
    family: Family, spec: Any, keep: tuple[str, ...], arguments: Arguments, platform: str, tile: int | None
) -> Outline:
    """Outputs, tile and chunk of one Spec on one platform."""
    closed, outputs = trace(family, spec, keep, arguments)
    check_dims(family, outputs)
    if tile is None:
        tile = _tile(closed.jaxpr, platform)
    outline = Outline(outputs, tile, 2)
    by_work = CHUNK_WORK / (tile * max(_work(closed.jaxpr), 1.0))
    by_bytes = CHUNK_BYTES / (tile * outline.lane_bytes)
    tiles = _power_of_two_below(min(by_work, by_bytes))
    return dataclasses.replace(outline, tiles_per_chunk=min(max(tiles, 2), 256))


def largest_array(family: Family, spec: Any, keep: tuple[str, ...], arguments: Arguments) -> int:
    """Bytes of the largest array that one lane cannot do without: what loops carry or stack, products' operands.

    What is written elementwise does not count: the compiler may never have it as a whole.
    """
    return max(_wholes(trace(family, spec, keep, arguments)[0].jaxpr), default=0)


def check_tile(tile: Any) -> int | None:
    """A given tile: a whole number of lanes, or None for the rule."""
    if tile is None:
        return None
    if isinstance(tile, bool) or not isinstance(tile, (int, np.integer)) or tile < 1:
        raise UsageError(f"tile={tile!r}: a whole number of lanes, at least 1, is wanted.")
    return int(tile)


def _power_of_two_below(x: float) -> int:
    return 2 ** math.floor(math.log2(x)) if x >= 1 else 0


def _tile(jaxpr: Jaxpr, platform: str) -> int:
    """Lanes a tile: as many as keep the largest array written inside a loop in the cache of a core."""
    largest = max((size for size, in_loop in _arrays(jaxpr, False) if in_loop), default=0)
    largest = largest or max((size for size, _ in _arrays(jaxpr, False)), default=1)
    budget = CACHE_BYTES.get(platform, ACCELERATOR_BYTES)
    most = MOST_LANES.get(platform, MOST_ACCELERATOR_LANES)
    return min(max(_power_of_two_below(budget / max(largest, 1)), 1), most)


def _arrays(jaxpr: Jaxpr, in_loop: bool) -> Iterator[tuple[int, bool]]:
    """Bytes of every array that the program writes, and whether it does so inside a loop."""
    for equation in jaxpr.eqns:
        inner = list(_subprograms(equation.params))
        for sub in inner:
            yield from _arrays(sub, in_loop or equation.primitive.name in LOOPS)
        if not inner:  # a loop's own results are its stacked outputs, which no iteration touches as a whole
            yield from ((_bytes(v.aval), in_loop) for v in equation.outvars)


def _wholes(jaxpr: Jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        for sub in _subprograms(equation.params):
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
        inner = list(_subprograms(equation.params))
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


def _subprograms(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _bytes(aval: Any) -> int:
    dtype = getattr(aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 4)  # keys have an extended dtype
    return math.prod(getattr(aval, "shape", ())) * itemsize
