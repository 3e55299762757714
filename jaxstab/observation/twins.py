"""What another format would do: a program and its rounded twin side by side, equation by equation.

Every value that is stored is rounded; what is accumulated on the way (the terms of a sum or product) is float32, as
JAX's own sums and the matrix units of accelerators have it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from jaxstab.formats import Format, round_to
from jaxstab.observation import loops
from jaxstab.observation.loops import Operation, Records
from jaxstab.observation.marks import mark_p
from jaxstab.observation.scopes import is_seen
from jaxstab.observation.sites import Place, Site
from jaxstab.observation.walk import Walk, direction_of, programs_in, source_of
from jaxstab.reductions import absmax_of_both

EXACT = frozenset({
    "abs", "argmax", "argmin", "broadcast_in_dim", "clamp", "concatenate", "copy", "copy_p", "cummax", "cummin",
    "device_put", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "max", "min", "name", "neg",
    "optimization_barrier", "pad", "reduce_max", "reduce_min", "reshape", "rev", "scatter", "select_n",
    "sharding_constraint", "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "top_k", "transpose",
})  # fmt: skip
"""Operations whose outputs are among their inputs up to sign, so that nothing is rounded."""

RESHAPES = frozenset({"broadcast_in_dim", "reshape", "squeeze"})
"""What may stand between the sum and the division of a mean."""

NORMALIZATIONS = frozenset({"BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"})
"""Modules that compute in float32 whatever their dtype, and round what leaves them (Flax, Equinox)."""

SAMPLE = 256
"""Entries of an array that shares and mean errors are taken from."""

BLOCK = 256
"""Samples are summarized in multiples of as many."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["exact", "rounded"], meta_fields=["is_wide"]
)
@dataclasses.dataclass(frozen=True)
class Twin:
    """A value as it is and as it would be. `rounded` is None where it depends on nothing that was rounded."""

    exact: Any
    rounded: Any = None
    is_wide: bool = False
    """Whether `rounded` is still float32: inside of what computes in float32."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["format"],
    meta_fields=["statistics", "at", "scopes", "is_nested", "runner", "name", "wide"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal(Walk):
    """The walk of both. `wide` are the names of the calls that compute in float32."""

    name: str
    format: Format
    wide: frozenset[tuple[str, ...]]

    def constant(self, value: Any) -> Twin:
        return Twin(value)

    def own(self, value: Twin) -> Any:
        return value.exact

    def carried(self, value: Twin) -> Twin:
        """Both, whatever was rounded. Keys come of nothing that was: what is drawn is the same on both sides."""
        return Twin(value.exact) if is_key(value.exact) else Twin(value.exact, self.narrow(value))

    def merge(self, old: Any, new: Any) -> Any:
        return jnp.maximum(old[0], new[0]), new[1]

    def narrow(self, value: Twin) -> Any:
        return self.runner.run(_narrow, None, value, self.format)

    def is_inside(self, place: Place) -> bool:
        return any(place.names[: len(names)] == names for names in self.wide)

    def kept(self, jaxpr: Jaxpr, places: list[Place], place: Place) -> Sequence[tuple[bool, ...]]:
        """For each equation, which outputs are read by nothing outside of what computes in float32."""
        stays: dict[Any, bool] = {}
        for k, v in enumerate(jaxpr.outvars):
            if not isinstance(v, Literal):
                stays[v] = stays.get(v, True) and bool(place.kept and place.kept[k])
        for eqn, at in reversed([*zip(jaxpr.eqns, places, strict=True)]):
            passes = eqn.primitive.name in RESHAPES and stays.get(eqn.outvars[0], False)
            inside = self.is_inside(at) or is_division_by_a_count(eqn) or passes
            for v in eqn.invars:
                if not isinstance(v, Literal):
                    stays[v] = stays.get(v, True) and inside
        return [tuple(stays.get(v, True) for v in eqn.outvars) for eqn in jaxpr.eqns]

    def step(
        self, eqn: Any, inputs: list[Any], here: Place, known: dict[Any, Any]
    ) -> tuple[list[Any], Records]:
        if eqn.primitive is mark_p:
            return inputs, []
        enter = ENTERED.get(eqn.primitive) or ENTERED.get(eqn.primitive.name)
        if enter is not None and loops.can_enter(eqn):
            outputs, records = self.runner.enter(enter, self, eqn, inputs, here)
            return [self._leave(x, stays) for x, stays in zip(outputs, here.kept or (), strict=True)], records
        if eqn.effects or all(x.rounded is None for x in inputs):
            return [Twin(x) for x in self.bind(eqn, [x.exact for x in inputs])], []
        is_inside = self.is_inside(here)
        of_mean = is_division_by_a_count(eqn) and (inputs[0].is_wide or here.is_transposed)
        is_reshaped = eqn.primitive.name in RESHAPES and inputs[0].is_wide
        is_wide = is_inside or of_mean or is_reshaped
        may_stay = is_inside or is_reshaped or eqn.primitive.name == "reduce_sum"
        moves = eqn.primitive.name in EXACT
        stays = [may_stay and bool(here.kept and here.kept[k]) for k in range(len(eqn.outvars))]
        floats = [v.aval.dtype == jnp.float32 for v in eqn.outvars]
        doing = Doing(
            Operation(eqn),
            is_wide,
            tuple(f and not stay and (is_wide or not moves) for f, stay in zip(floats, stays, strict=True)),
            tuple(is_seen(v) and (not moves or eqn.primitive.name == "reduce_max") for v in eqn.outvars),
        )
        exact, stored, samples = self.runner.run(_both, doing, inputs, self.format)
        records = []
        for k, v in enumerate(eqn.outvars):
            if doing.is_sampled[k]:
                site = operation(eqn, here, v, str(k) if len(exact) > 1 else "")
                if floats[k] and not stays[k]:
                    site = dataclasses.replace(site, dtype=self.name)
                records.append((site, samples[k]))
        return [Twin(*one) for one in zip(exact, stored, stays, strict=True)], records

    def _leave(self, value: Twin, stays: bool) -> Twin:
        return value if stays or not value.is_wide else Twin(value.exact, self.narrow(value))


class Doing(NamedTuple):
    """What is done at an equation: all but its operands."""

    operation: Operation
    is_wide: bool
    """Whether it reads float32."""
    is_rounded: tuple[bool, ...]
    is_sampled: tuple[bool, ...]


def _both(doing: Doing, inputs: list[Twin], format: Format) -> tuple[list, list, list]:  # noqa: A002
    """Outputs as they are and as stored, and their samples (None where none are taken)."""
    exact = loops.bind(doing.operation, [x.exact for x in inputs])
    read = _own_or_exact if doing.is_wide else functools.partial(_narrow, None, format=format)
    raw = loops.bind(doing.operation, [read(x) for x in inputs])
    stored = [round_to(x, format) if r else x for x, r in zip(raw, doing.is_rounded, strict=True)]
    pairs = zip(exact, stored, doing.is_sampled, strict=True)
    return exact, stored, [sample(x, y) if is_sampled else None for x, y, is_sampled in pairs]


def _own_or_exact(value: Twin) -> Any:
    return value.exact if value.rounded is None else value.rounded


def _narrow(_: None, value: Twin, format: Format) -> Any:  # noqa: A002
    """The value in the format. A constant near float32's ends stands for the end of whatever format."""
    if value.rounded is not None and not value.is_wide:
        return value.rounded
    x = _own_or_exact(value)
    if not is_float32(x):
        return x
    if value.rounded is None:
        ends = jnp.isfinite(x) & (jnp.abs(x) > np.finfo(np.float32).max / 4)
        x = jnp.where(ends, jnp.copysign(jnp.float32(format.largest), x), x)
    return round_to(jnp.asarray(x), format)


def is_float32(x: Any) -> bool:
    return getattr(x, "dtype", None) == jnp.float32 or isinstance(x, float)


def is_key(x: Any) -> bool:
    """Whether these are random keys, or the unsigned integers that they are made of."""
    dtype = jnp.asarray(x).dtype
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or jnp.issubdtype(dtype, jnp.unsignedinteger)


def is_division_by_a_count(eqn: Any) -> bool:
    """A sum that is divided by a number is a mean, and JAX rounds a mean once."""
    return eqn.primitive.name == "div" and isinstance(eqn.invars[1], Literal)


@jax.jit
def sample(exact: Any, stored: Any) -> tuple[jax.Array, jax.Array]:
    """Largest magnitudes, shape (2,), of a value as it is and as stored; and equally spaced entries of both,
    shape (2, SAMPLE), padded with NaN. Shares and mean errors are taken from these, all together at the end:
    reductions of every array for each of them would cost a multiple of the program in compile time."""
    both = [jnp.abs(x) if jnp.iscomplexobj(x) else x.astype(jnp.float32) for x in (exact, stored)]
    step = max(1, exact.size // SAMPLE)
    peaks = absmax_of_both(*both)
    entries = jnp.stack([x.reshape(-1)[::step][:SAMPLE] for x in both])
    return peaks, jnp.pad(entries, ((0, 0), (0, SAMPLE - entries.shape[1])), constant_values=jnp.nan)


def summarize(records: Records, format: Format) -> list[Any]:  # noqa: A002
    """The numbers of `SIMULATED` for each record of `sample`, shape (iterations..., 8): of NumPy's if they are."""
    if not records:
        return []
    xp: Any = np if isinstance(records[0][1][0], np.ndarray) else jnp
    table = xp.concatenate([pair.reshape(-1, 2, SAMPLE) for _, (_, pair) in records])
    peaks = xp.concatenate([peak.reshape(-1, 2) for _, (peak, _) in records])
    counts = [math.prod(peak.shape[:-1]) for _, (peak, _) in records]
    stores = np.repeat([site.dtype != "float32" for site, _ in records], counts)
    more = -len(stores) % BLOCK  # few sizes, so that few programs are compiled
    padded = xp.pad(table, ((0, more), (0, 0), (0, 0))), np.pad(stores, (0, more))
    shares = xp.asarray(_shares(*padded, format))[: len(stores)]
    parts = xp.split(xp.concatenate([peaks, shares], axis=1), np.cumsum(counts)[:-1])
    return [part.reshape(*peak.shape[:-1], -1) for part, (_, (peak, _)) in zip(parts, records, strict=True)]


@jax.jit
def _shares(table: jax.Array, stores: jax.Array, format: Format) -> jax.Array:  # noqa: A002
    """The fields after the two largest magnitudes, (rows, 6), of samples (rows, 2, SAMPLE) padded with NaN.

    `stores`, (rows,), says where the value is rounded.
    """
    exact, stored = table[:, 0], table[:, 1]
    rounded = jnp.where(stores[:, None], round_to(exact, format), exact)
    known = jnp.isfinite(exact)
    unit = jnp.maximum(jnp.max(jnp.where(known, jnp.abs(exact), 0.0), 1, keepdims=True), 2.0**-126)

    def mean(x: jax.Array) -> jax.Array:
        good = known & jnp.isfinite(x)
        return jnp.sum(jnp.where(good, jnp.abs(x) / unit, 0.0), 1) / jnp.maximum(good.sum(1), 1)

    size = mean(exact)
    errors = [mean(x) for x in (stored - exact, rounded - exact, stored - rounded)]
    count = jnp.maximum((~jnp.isnan(exact)).sum(1), 1)
    beyond = (stores[:, None] & (jnp.abs(exact) > format.largest)).sum(1) / count
    lost = (known & (stored == 0) & (exact != 0)).sum(1) / count
    relative = [jnp.where(size > 0, e / size, 0.0) for e in errors]
    return jnp.stack([size * unit[:, 0], *relative, beyond, lost], axis=1)


def operation(eqn: Any, here: Place, variable: Any, output: str) -> Site:
    """The site of an equation's output, with the number of terms that are summed up in each entry."""
    fields = {"kind": eqn.primitive.name, "direction": direction_of(here), "source": source_of(here)}
    sizes = [math.prod(v.aval.shape) for v in eqn.invars if hasattr(v.aval, "shape")]
    terms = 1
    if eqn.primitive.name == "dot_general":
        (left, _), _ = eqn.params["dimension_numbers"]
        terms = math.prod(eqn.invars[0].aval.shape[i] for i in left)
    elif eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.params["dimension_numbers"].rhs_spec
        terms = sizes[1] // max(1, eqn.invars[1].aval.shape[kernel[0]])
    elif eqn.primitive.name == "reduce_sum":
        terms = sizes[0] // max(1, math.prod(variable.aval.shape))
    return here.site(variable, **fields, output=output, terms=max(1, terms))


def _enter_custom(walk: Any, eqn: Any, inputs: list[Any], here: Place) -> loops.Result:
    """A function with derivatives of its own: nothing is differentiated any more, so that its program is enough."""
    closed = eqn.params.get("call_jaxpr") or eqn.params["fun_jaxpr"]
    return walk.run(closed.jaxpr, closed.consts, inputs, here)


ENTERED: dict[Any, Callable[..., loops.Result]] = {
    **loops.ENTERED,
    "custom_jvp_call": _enter_custom,
    "custom_vjp_call": _enter_custom,
}


def wide_calls(jaxpr: Jaxpr, place: Place | None = None) -> set[tuple[str, ...]]:
    """Names of the calls of `NORMALIZATIONS` in a traced program, by their marks."""
    place = place or Place()
    found = set()
    for i, eqn in enumerate(jaxpr.eqns):
        here = place.at(eqn, i)
        if eqn.primitive is mark_p and eqn.params["kind"] in NORMALIZATIONS:
            found.add(here.names)
        for inner in programs_in(eqn):
            found |= wide_calls(inner, here)
    return found
