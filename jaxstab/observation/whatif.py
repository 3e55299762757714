"""`what_if`: what another format would do to a function."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr

from jaxstab.formats import Format, format_of, name_of_format, round_to
from jaxstab.observation.loops import Records
from jaxstab.observation.seen import Seen
from jaxstab.observation.sites import Place, Site, number_calls
from jaxstab.observation.statistics import SIMULATED
from jaxstab.observation.stepwise import TRACED, Runner
from jaxstab.observation.transform import named_like, require_function, trace
from jaxstab.observation.twins import Rehearsal, Twin, is_float32, summarize, wide_calls


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["outputs", "samples"], meta_fields=["sites", "dtype"]
)
@dataclasses.dataclass(frozen=True)
class WhatIf:
    """What a format would do to a function: a pytree. `dtype` is the format's name."""

    outputs: Any
    """f's outputs in the format, held in float32."""
    samples: tuple[Any, ...]
    """Of every operation that rounds the largest magnitudes, and entries from all over the array, of both."""
    sites: tuple[Site, ...]
    dtype: str

    @functools.cached_property
    def seen(self) -> Seen:
        """`SIMULATED` of every operation that rounds, summed up of the samples where they are first read."""
        is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(self.samples))
        samples = self.samples if is_traced else jax.device_get(self.samples)
        return seen_of(list(zip(self.sites, samples, strict=True)), format_of(self.dtype))

    def to_dataset(self, axes: Sequence[str] = ()) -> xr.Dataset:
        """The fields over (axes of vmap, site, iterations of scans), as `Seen.to_dataset` has them.

        With them `headroom`: bits between the largest magnitude and the largest number of the format, negative
        beyond; and `error_accumulated`: what accumulating in the format too would add, estimated for the terms of a
        sum one after the other, with signs at random (Higham & Mary, SIAM J. Sci. Comput. 41, 2019, the root-n law).
        """
        found, format = self.seen.to_dataset(axes), format_of(self.dtype)  # noqa: A001
        with np.errstate(divide="ignore"):
            found["headroom"] = np.log2(format.largest / found["absmax"])
        found["headroom"].attrs = {"long_name": "largest number over largest magnitude", "units": "bit"}
        terms = np.array([site.terms for site in self.seen.sites])
        grown = xr.DataArray(accumulation_error(terms, format), dims="site")
        found["error_accumulated"] = grown.where(found["absmax"].notnull()).transpose(*found["absmax"].dims)
        found["error_accumulated"].attrs = {
            "long_name": "error that accumulating in the format would add, estimated", "units": "1",
        }  # fmt: skip
        return found

    def to_pandas(self, axes: Sequence[str] = ()) -> pd.DataFrame:
        """A row for each operation, iteration and axis of vmap."""
        return self.seen.table(self.to_dataset(axes))


def accumulation_error(terms: Any, format: Format) -> Any:  # noqa: A002
    """rms relative error of a sum of `terms` independent zero-mean numbers added up one by one in the format.

    A partial sum of i terms has variance i, and storing it adds u^2 i to that of the error, u = 0.2123 epsilon the
    rms relative error of rounding a number whose logarithm is uniform: u sqrt(terms / 2) in all.
    """
    u = format.epsilon * math.sqrt(3 / 8 / math.log(2) / 12)
    return np.where(terms > 1, u * np.sqrt(np.asarray(terms) / 2), 0.0)


def what_if(f: Callable[..., Any], dtype: Any) -> Callable[..., tuple[Any, WhatIf]]:
    """`f` with what another format would do: a function of the same arguments returning (f's outputs, `WhatIf`).

    f runs in float32 by the same operations, and beside it the same program with every value that is stored rounded to
    `dtype`: "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn", or a pair (exponent bits, mantissa bits). Only
    float32 values are rounded. Sums and products accumulate in float32; a mean is rounded once; normalization
    modules compute in float32, as Flax's do, and round what leaves them; a constant near float32's largest number
    stands for the format's. In the table what stays in float32 has that dtype, and the rest the format's.

        (loss, grads), twin = jax.jit(jaxstab.what_if(jax.value_and_grad(loss), "float16"))(params, batch)
        twin.to_dataset().underflow

    It composes with jit and vmap. A loop of unknown length and a cond take the path that float32 takes.
    UsageError for what is no function or no format.
    """
    name = name_of_format(dtype)
    require_function(f, "what_if")

    @named_like(f)
    def rehearsed(*args: Any, **kwargs: Any) -> tuple[Any, WhatIf]:
        closed, arrays, rebuild = trace(f, args, kwargs)
        exact, rounded, records = _run_both(closed, arrays, format_of(dtype), name, TRACED)
        sites, samples = zip(*records, strict=True) if records else ((), ())
        return rebuild(exact), WhatIf(rebuild(rounded), samples, sites, name)

    return rehearsed


def rehearse(
    closed: ClosedJaxpr,
    arrays: Sequence[Any],
    format: Format,  # noqa: A002 - the field's word
    name: str,
    runner: Runner,
) -> tuple[list[Any], list[Any], Seen]:
    """Outputs of a traced program as they are and in the format, and what every operation does, of NumPy.

    `name` is the dtype of the sites that are rounded.
    """
    exact, rounded, records = jax.device_get(_run_both(closed, arrays, format, name, runner))
    return exact, rounded, seen_of(records, format)


def _run_both(
    closed: ClosedJaxpr,
    arrays: Sequence[Any],
    format: Format,  # noqa: A002
    name: str,
    runner: Runner,
) -> tuple[list[Any], list[Any], Records]:
    wide = frozenset(wide_calls(closed.jaxpr))
    walk = Rehearsal((), "operations", runner=runner, name=name, format=format, wide=wide)
    place = Place(kept=(False,) * len(closed.jaxpr.outvars))
    twins = [Twin(x, round_to(x, format) if is_float32(x) else None) for x in map(jnp.asarray, arrays)]
    outputs, records = walk.run(closed.jaxpr, closed.consts, twins, place)
    return [x.exact for x in outputs], [walk.narrow(x) for x in outputs], records


def seen_of(records: Records, format: Format) -> Seen:  # noqa: A002
    """What the samples of every operation come to."""
    sites = number_calls([site for site, _ in records])
    return Seen(tuple(summarize(records, format)), sites, tuple(SIMULATED))
