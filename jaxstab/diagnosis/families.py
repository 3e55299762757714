"""`family_of`: anybody's model as a family, so that a sweep runs it over seeds, gains and dtypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.diagnosis.evidence import read, readout_weights, require_scalar
from jaxstab.diagnosis.subject import Subject, checked, is_array, subject_of
from jaxstab.errors import UsageError
from jaxstab.observation.marks import source_of_caller
from jaxstab.observation.seen import DESCRIPTIONS, Seen
from jaxstab.observation.sites import Site
from jaxstab.observation.statistics import DEFAULT, STATISTICS, require_statistics
from jaxstab.observation.transform import observe
from jaxstab.trials.family import NONFINITE, OK, Family, Trial
from jaxstab.trials.outputs import Doc, Labels, Output, canonicalize

DTYPES = ("float32", "bfloat16", "float16")
NO_WEIGHTS = ("bias", "scale")
"""Last names of parameters that are no weights, though stacked by a scan, or by head, they have two dimensions."""
KEY = jax.eval_shape(lambda: jax.random.key(0))
COLUMNS = ("path", "kind", "direction", "output", "branch", "source")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The format that parameters and inputs are in."""

    dtype: Annotated[str, Doc("format of parameters and inputs", choices=DTYPES)] = "float32"

    def __post_init__(self) -> None:
        canonicalize(self)


class HParams(NamedTuple):
    """What multiplies the weights once they are drawn."""

    gain: Annotated[float, Doc("factor on the weights")] = 1.0


def family_of(
    model: Any,
    *inputs: Any,
    statistics: Iterable[str] = DEFAULT,
    loss: Callable[[Any], Any] | None = None,
    variables: Any = None,
    rngs: Any = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Family:
    """A model as a family: what is seen at every call inside it, forward and backward, for any seed, gain and dtype.

        family = jaxstab.family_of(model, x, loss=lambda y: ((y - t) ** 2).mean())
        ds = jaxstab.sweep(family, jaxstab.grid(gain=[0.5, 1, 2], dtype=["float32", "float16"]), seeds=64)
        ds.rms.isel(site=ds.direction == "backward")

    Model, inputs, `loss`, `variables`, `rngs` and `apply_kwargs` are as for `diagnose`. Of a linen module without
    `variables` every lane draws its own parameters, those of `diagnose` for the same seed; NNX and Equinox modules and
    functions bring theirs, so that seeds change their rngs alone. Axes of a sweep:

    - `gain` (1): multiplies every parameter of two or more dimensions once it is drawn, but for those named bias or
      scale, which have two where a scan stacks them.
    - `dtype` ("float32", "bfloat16", "float16"): parameters and inputs that are real floats are cast to it, after the
      gain. What the model holds besides (running averages) and a dtype that it asks for itself stay as they are.

    Outputs are `loss`, a scalar, and each of `statistics` over `site`, in the order of the program: coordinates `path`,
    `kind`, `direction`, `output`, `branch`, `source` say which; iterations of scans are sites of their own, one after
    another, `path[3]`. A lane is `nonfinite` where its loss, or a number in any output of a call or gradient with
    respect to it, is not finite, whatever `statistics` and `keep` ask for; branches of a cond and while loops do not
    count.

    UsageError for input that cannot be meant, before anything is compiled.
    """
    names = require_statistics(statistics)
    make = lambda inputs: subject_of(model, inputs, variables, rngs, apply_kwargs, "family_of")  # noqa: E731
    subject = make(inputs)
    run = Run(subject, make, loss, tuple(dict.fromkeys((*names, "absmax"))))
    given = () if subject.is_drawn else subject.draw(0)
    arrays, fill = _split((given, subject.inputs))
    shape = checked(subject, lambda: jax.eval_shape(lambda key, x: run.output(key, fill(x)), KEY, arrays))
    require_scalar(loss, shape, subject.name)
    shared = (arrays, readout_weights(shape, subject.name) if loss is None else [])

    def lane(key: jax.Array, gain: Any, shared: Any, dtype: str) -> tuple[jax.Array, Seen]:
        arrays, readout = shared
        with np.errstate(over="ignore"):  # of the model's own constants, when they are beyond the dtype
            return checked(subject, lambda: run(key, gain, dtype, fill(arrays), readout))

    sites = jax.eval_shape(lambda key, shared: lane(key, 1.0, shared, DTYPES[0])[1], KEY, shared).sites
    columns = _columns(sites)
    here = source_of_caller()  # the outermost call's; a line of the model's it is not
    columns["source"] = tuple("" if source == here else source for source in columns["source"])

    def make_trial(spec: Spec) -> Trial:
        def trial(key: jax.Array, hparams: HParams, shared: Any) -> dict[str, jax.Array]:
            value, seen = lane(key, hparams.gain, shared, spec.dtype)
            if _calls(seen.sites) != _calls(sites):
                raise UsageError(f"{subject.name} makes other calls in {spec.dtype} than in {DTYPES[0]}.")
            return _outputs(value, seen, names)

        return trial

    return Family(
        name=subject.name, Spec=Spec, HParams=HParams, make_trial=make_trial, shared=lambda _: shared,
        outputs=_rows(names, sites),
        labels={name: Labels("site", values, DESCRIPTIONS[name]) for name, values in columns.items()},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a model, forward and backward, of which nothing happens outside of a trace."""

    subject: Subject
    make: Callable[[tuple[Any, ...]], Subject]
    loss: Callable[[Any], Any] | None
    statistics: tuple[str, ...]

    def __call__(
        self, key: jax.Array, gain: Any, dtype: str, given: tuple[Any, Any], readout: list[Any]
    ) -> tuple[jax.Array, Seen]:
        """Its loss, and what was seen. `given` are (parameters, the rest), () where the key draws them, and inputs."""

        def step(params: Any, rest: Any, key: jax.Array, inputs: tuple[Any, ...], readout: list[Any]) -> Any:
            def loss_of(params: Any) -> Any:
                output = self.subject.call(params, rest, key, inputs)
                with jax.named_scope("loss"):
                    return self.loss(output) if self.loss is not None else read(output, readout)

            return jax.value_and_grad(loss_of)(params)

        params, rest = self.drawn(key, given)
        params, inputs = _cast((_scaled(params, gain), given[1]), dtype)
        (value, _), seen = observe(step, self.statistics)(
            params, rest, jax.random.fold_in(key, 1), inputs, readout
        )
        return value, seen

    def output(self, key: jax.Array, given: tuple[Any, Any]) -> Any:
        """What the model returns, in the dtypes that it has."""
        return self.subject.call(*self.drawn(key, given), key, given[1])

    def drawn(self, key: jax.Array, given: tuple[Any, Any]) -> tuple[Any, Any]:
        """(parameters, the rest), drawn with traced inputs: those of the subject would be part of the program."""
        return self.make(given[1]).draw(key) if self.subject.is_drawn else given[0]


def _scaled(params: Any, gain: Any) -> Any:
    """The parameters with their weights times the gain, in their own dtype."""

    def one(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")  # NNX's own
        is_weight = jnp.ndim(x) >= 2 and name.split("/")[-1] not in NO_WEIGHTS
        return (x * gain).astype(x.dtype) if is_weight else x

    return jax.tree_util.tree_map_with_path(one, params)


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(
        lambda x: x.astype(dtype) if is_array(x) and jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _split(tree: Any) -> tuple[list[jax.Array], Callable[[list[Any]], Any]]:
    """The arrays of a tree, and what puts such arrays in their places; keys as the numbers that they are made of."""
    leaves, structure = jax.tree.flatten(tree)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    arrays = [jax.random.key_data(x) if is_key(x) else jnp.asarray(x) for x in leaves if is_array(x)]
    kinds = [jax.random.key_impl(x) if is_array(x) and is_key(x) else None for x in leaves]

    def fill(arrays: list[Any]) -> Any:
        values = iter(arrays)
        filled = [next(values) if is_array(x) else x for x in leaves]
        keyed = [
            x if kind is None else jax.random.wrap_key_data(x, impl=kind)
            for x, kind in zip(filled, kinds, strict=True)
        ]
        return jax.tree.unflatten(structure, keyed)

    return arrays, fill


def _columns(sites: tuple[Site, ...]) -> dict[str, tuple[str, ...]]:
    """What tells sites apart, each iteration of a scan by itself."""
    steps = [(site, step) for site in sites for step in np.ndindex(site.loops)]
    columns = {name: tuple(getattr(site, name) for site, _ in steps) for name in COLUMNS}
    columns["path"] = tuple(f"{s.path}[{','.join(map(str, step))}]" if step else s.path for s, step in steps)
    return columns


def _calls(sites: tuple[Site, ...]) -> list[tuple[Any, ...]]:
    """What makes the sites of two programs the same: all but dtypes, and the line of the call that is outermost."""
    return [(s.path, s.kind, s.direction, s.output, s.branch, s.loops) for s in sites]


def _is_certain(site: Site) -> bool:
    """Whether it is reached in any run: elsewhere NaN may stand for what did not happen."""
    return not site.branch and not site.in_while


def _rows(names: tuple[str, ...], sites: tuple[Site, ...]) -> dict[str, Output]:
    may_miss = "" if all(map(_is_certain, sites)) else "in a branch that was not taken, a loop that never ran"
    short = "of an axis that has no two entries"
    rows = {"loss": Output((), "loss, or without one the random linear read-out")}
    for name in names:
        undefined = ", ".join(filter(None, (may_miss, short if name.endswith("_spread") else "")))
        about = STATISTICS[name]
        rows[name] = Output(("site",), about.long_name, about.units, undefined=undefined)
    return rows


def _outputs(value: jax.Array, seen: Seen, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """The statistics over all sites and iterations, and the lane's fate, whatever is asked for."""
    flat = lambda name: [v[..., seen.statistics.index(name)].ravel() for v in seen.values]  # noqa: E731
    is_finite = jnp.isfinite(value) & jnp.all(jnp.array([
        jnp.all(jnp.isfinite(x)) for x, site in zip(flat("absmax"), seen.sites, strict=True) if _is_certain(site)
    ], bool))  # fmt: skip
    return {
        "loss": value.astype(jnp.promote_types(value.dtype, jnp.float32)),
        **{name: jnp.concatenate(flat(name)) for name in names},
        "status": jnp.where(is_finite, OK, NONFINITE),
    }
