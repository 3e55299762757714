"""A family: every trial that differs from another only in its key, its Spec or its HParams.

The Spec holds what changes the program (names, sizes, dtypes), the HParams what changes only numbers. A sweep
compiles once for each Spec and runs each HParams as one more lane of that program.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import inspect
import types
import typing
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.errors import UsageError, require_choice
from jaxstab.trials.manual import manual
from jaxstab.trials.outputs import Doc, Labels, Output, hints_of

Outputs: TypeAlias = Mapping[str, jax.Array]
Trial: TypeAlias = Callable[..., Outputs]
"""`trial(key, hparams) -> outputs`, or `trial(key, hparams, shared)` where the family shares data. Pure."""

AUTO = "auto"
"""A parameter's value that stands for what the Specs of a sweep settle on."""
OK, NONFINITE, NOT_RUN = 0, 1, -1
"""Flags that every family has; its own follow from 2 on."""


@dataclasses.dataclass(frozen=True)
class Vectorized:
    """A family's `predict` that is faster for many configurations at once than for one after another.

    `many(spec, hparams)` gets each hyperparameter as an array [configuration, ...] and returns arrays
    [configuration, ...]. Called, it is the theory of one configuration, as any family's.
    """

    many: Callable[[Any, Any], Mapping[str, np.ndarray]]

    def __call__(self, spec: Any, hparams: Any) -> dict[str, np.ndarray]:
        """The theory of one configuration."""
        arrays = jax.tree.map(lambda value: np.asarray(value)[None], hparams)
        return {name: value[0] for name, value in self.many(spec, arrays).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Everything a sweep needs to know about a kind of run.

    `dims` names the axes of each output that is no scalar; `outputs` says more of them, each name with its
    `Output`. `shared(spec)` is data that every lane reads. `predict(spec, hparams)` is theory's twin of the outputs, of
    one configuration, or `Vectorized` of many at once. `labels` are coordinates, by name, that tell the places along an
    output's dimension apart, the same for every Spec. `HParams` may have a method `validate(spec)` that raises
    UsageError; its fields are then numbers, or arrays [configuration] of many at once. A trial finds its own fate: it
    returns `status`, an index into `flags`. Where it returns none, a lane is `nonfinite` if any number of any of its
    outputs is not finite, but for those that may be undefined.
    """

    name: str
    Spec: type
    HParams: type
    make_trial: Callable[[Any], Trial]
    dims: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    shared: Callable[[Any], Any] | None = None
    predict: Callable[[Any, Any], Mapping[str, Any]] | None = None
    flags: tuple[str, ...] = ("ok", "nonfinite")
    outputs: Mapping[str, Output] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, Labels] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        table = {name: Output(tuple(dims)) for name, dims in self.dims.items()} | dict(self.outputs)
        object.__setattr__(self, "outputs", table)
        object.__setattr__(self, "dims", {name: row.dims for name, row in table.items()})
        for name, annotation in self.hparam_types.items():
            if not _is_traced(annotation):
                raise UsageError(
                    f"family {self.name!r}: hyperparameter {name!r} is annotated {_spell(annotation)}; only float"
                    " and tuple[float, ...] can be traced (to switch one off, use infinity or zero, not None)."
                )
        twice = set(self.spec_types) & set(self.hparam_types)
        if twice:
            raise UsageError(f"family {self.name!r}: {sorted(twice)} stand in both Spec and HParams.")
        axes_as_dims = {d for dims in self.dims.values() for d in dims} & {*self.parameters, "seed"}
        if axes_as_dims:
            raise UsageError(
                f"family {self.name!r}: {sorted(axes_as_dims)} name both a parameter and an output's dimension."
            )

    @functools.cached_property
    def spec_types(self) -> dict[str, Any]:
        """Annotation of each static parameter."""
        return _annotations(self.Spec, [f.name for f in dataclasses.fields(self.Spec)])

    @functools.cached_property
    def hparam_types(self) -> dict[str, Any]:
        """Annotation of each traced parameter."""
        return _annotations(self.HParams, list(self.HParams._fields))  # type: ignore[attr-defined]

    @functools.cached_property
    def types(self) -> dict[str, Any]:
        """Annotation of each parameter."""
        return {**self.spec_types, **self.hparam_types}

    @functools.cached_property
    def docs(self) -> dict[str, Doc]:
        """Long name and unit of each parameter, of its annotation `Annotated[type, Doc(...)]`."""
        hints = {**hints_of(self.Spec), **hints_of(self.HParams)}
        return {name: hints[name][1] for name in self.parameters}

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """Value of each parameter that has one."""
        fields = [f for f in dataclasses.fields(self.Spec) if f.default is not dataclasses.MISSING]
        return {f.name: f.default for f in fields} | self.HParams._field_defaults  # type: ignore[attr-defined]

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Names that an axis of a space may bear."""
        return [*self.spec_types, *self.hparam_types]

    def __repr__(self) -> str:
        return f"<family {self.name}>"

    def __str__(self) -> str:
        return f"family {self.name}\n\n{manual(self)}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def require_names(self, names: Iterable[str]) -> None:
        """Refuse a name that is no parameter, and a parameter without a default that is not among them."""
        given = [require_choice(name, self.parameters, f"axis of family {self.name!r}:") for name in names]
        missing = [name for name in self._required() if name not in given]
        if missing:
            raise UsageError(
                f"family {self.name!r} has no default for {', '.join(missing)}: give a value or an axis."
            )

    def coerce(self, name: str, value: Any) -> Any:
        """A parameter's value as its annotation has it."""
        return coerce(name, self.types[name], value)

    def configure(self, settings: Mapping[str, Any]) -> tuple[Any, Any]:
        """One (Spec, HParams) of named values, coerced by their annotations; the rest by default."""
        self.require_names(settings)
        values = {name: self.coerce(name, settings[name]) for name in self.parameters if name in settings}
        spec = self.Spec(**{n: v for n, v in values.items() if n in self.spec_types})
        (spec,), _ = self.settle([spec])
        hparams = self.HParams(**{n: v for n, v in values.items() if n in self.hparam_types})
        if hasattr(hparams, "validate"):
            hparams.validate(spec)
        return spec, hparams

    def settle(self, specs: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The Specs of one sweep with what their class's `settle` puts for parameters that are "auto", and that."""
        chosen = self.Spec.settle(specs) if hasattr(self.Spec, "settle") else {}
        of = lambda spec: {name: value for name, value in chosen.items() if getattr(spec, name) == AUTO}  # noqa: E731
        return [dataclasses.replace(spec, **of(spec)) for spec in specs], chosen

    def as_run(self, spec: Any, hparams: Any) -> tuple[Any, Any]:
        """The Spec whose program runs this one, to the last bit, and the numbers it is given: its class's `as_run`."""
        return spec.as_run(hparams) if hasattr(spec, "as_run") else (spec, hparams)

    def _required(self) -> Iterable[str]:
        for f in dataclasses.fields(self.Spec):
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                yield f.name
        yield from (n for n in self.hparam_types if n not in self.HParams._field_defaults)  # type: ignore[attr-defined]

    def __call__(self, key: jax.Array, **settings: Any) -> Outputs:
        """One trial, called by hand: to look at, to debug, to differentiate."""
        spec, hparams = self.configure(settings)
        traced = jax.tree.map(jnp.float32, hparams)
        shared = () if self.shared is None else (self.shared(spec),)
        return self.make_trial(spec)(key, traced, *shared)

    def lane_status(self, outputs: Outputs) -> jax.Array:
        """The flag of one lane, int8, from all outputs of a trial that returns no `status` of its own."""
        telling = [
            x for name, x in outputs.items()
            if jnp.issubdtype(jnp.result_type(x), jnp.floating) and not self.outputs.get(name, Output()).undefined
        ]  # fmt: skip
        finite = jnp.array([jnp.isfinite(x).all() for x in telling], bool).all()
        return jnp.where(finite, OK, NONFINITE).astype(jnp.int8)


def family(
    function: Callable[..., Outputs] | None = None,
    *,
    dims: Mapping[str, tuple[str, ...]] | None = None,
    name: str | None = None,
    shared: Callable[[Any], Any] | None = None,
    predict: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    flags: tuple[str, ...] = ("ok", "nonfinite"),
    outputs: Mapping[str, Output] | None = None,
) -> Any:
    """Make a family of a plain function `f(key, *, parameters...) -> dict of arrays`.

    Parameters annotated float (or tuple[float, ...]) are traced; int, str, bool and tuple[int, ...] ones are
    static. With `shared`, the function's second positional argument is what `shared(spec)` returned. Outputs
    that neither `dims` nor `outputs` (name -> `Output`) names are scalars. A trial may return its own `status`,
    an index into `flags`; else it is found from all outputs, whatever is kept of them.
    """
    if function is None:
        given = {"dims": dims, "name": name, "shared": shared, "predict": predict, "flags": flags}
        return lambda f: family(f, **given, outputs=outputs)
    f = function
    parameters = _keyword_parameters(f, positional=1 if shared is None else 2)
    traced = {n: p for n, p in parameters.items() if _is_traced(p.annotation)}
    static = {n: p for n, p in parameters.items() if n not in traced}
    spec_type = dataclasses.make_dataclass(
        "Spec", [_dataclass_field(p) for p in static.values()], frozen=True, kw_only=True
    )
    ordered = sorted(traced.values(), key=lambda p: p.default is not inspect.Parameter.empty)
    defaults = [p.default for p in ordered if p.default is not inspect.Parameter.empty]
    hparams_type = namedtuple("HParams", [p.name for p in ordered], defaults=defaults)  # type: ignore[misc]
    hparams_type.__annotations__ = {p.name: p.annotation for p in ordered}

    def make_trial(spec: Any) -> Trial:
        fixed = {n: getattr(spec, n) for n in static}

        def trial(key: jax.Array, hparams: Any, *data: Any) -> Outputs:
            return f(key, *data, **fixed, **hparams._asdict())

        trial.__name__ = f.__name__
        return trial

    return Family(
        name=name or f.__name__, Spec=spec_type, HParams=hparams_type, make_trial=make_trial,
        dims=dict(dims or {}), shared=shared, predict=predict, flags=flags, outputs=dict(outputs or {}),
    )  # fmt: skip


def require_all(holds: Any, name: str, values: Any, wanted: str) -> None:
    """UsageError that names the first of `values` (a number, or an array of many) where `holds` does not."""
    given, bad = np.broadcast_arrays(np.asarray(values), ~np.asarray(holds, bool))
    if bad.any():
        raise UsageError(f"{name}={given[bad][0]}: {wanted}")


def _keyword_parameters(f: Callable[..., Any], positional: int) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(f, eval_str=True)
    except NameError as error:
        raise UsageError(
            f"family {f.__name__!r}: an annotation cannot be read ({error}); use built-in types."
        ) from None
    found = dict(list(signature.parameters.items())[positional:])
    for name, parameter in found.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise UsageError(f"family {f.__name__!r}: name the parameters one by one instead of *{name}.")
        if parameter.annotation is inspect.Parameter.empty:
            raise UsageError(
                f"family {f.__name__!r}: annotate {name!r}: float is traced; int, str, bool and tuple[int, ...]"
                " are static."
            )
        if type(None) in typing.get_args(_bare(parameter.annotation)):
            raise UsageError(
                f"family {f.__name__!r}: {name!r} is annotated {_spell(parameter.annotation)}, which would compile one"
                " program per value; annotate float and use infinity or zero for 'off'."
            )
    return found


def _dataclass_field(parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty:
        return (parameter.name, parameter.annotation)
    return (parameter.name, parameter.annotation, dataclasses.field(default=parameter.default))


def _annotations(cls: type, names: list[str]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise UsageError(
            f"{cls.__name__}: an annotation cannot be read ({error}); define it at module level."
        ) from None
    return {n: hints[n] for n in names}


def _bare(annotation: Any) -> Any:
    """The type inside `Annotated[type, ...]`."""
    return typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _is_traced(annotation: Any) -> bool:
    bare = _bare(annotation)
    return bare is float or _is_tuple_of(bare, float) or _one_or_several(bare) is float


def _is_tuple_of(annotation: Any, kind: type) -> bool:
    return typing.get_origin(annotation) is tuple and typing.get_args(annotation)[:1] == (kind,)


def _one_or_several(annotation: Any) -> Any:
    """The type in `type | tuple[type, ...]`; None for other annotations."""
    kind, *rest = typing.get_args(annotation) or (None,)
    is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return kind if is_union and kind and len(rest) == 1 and _is_tuple_of(rest[0], kind) else None


def _spell(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def coerce(name: str, annotation: Any, value: Any) -> Any:
    """`value` as its annotation has it, or one line that says what was given and what is wanted."""
    kind = _one_or_several(annotation)
    if kind is not None:
        is_one = np.ndim(value) == 0 or isinstance(value, str)
        return coerce(name, kind if is_one else tuple[kind, ...], value)
    if _is_tuple_of(annotation, float) or _is_tuple_of(annotation, int):
        kind = typing.get_args(annotation)[0]
        if np.ndim(value) == 0 and not isinstance(value, (str, bool)) and value is not None:
            value = (value,)  # a scalar stands for one layer, say
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise UsageError(f"{name}={value!r}: a sequence of {kind.__name__} is wanted.")
        return tuple(coerce(name, kind, v) for v in value)
    if isinstance(value, (np.generic, jax.Array, np.ndarray)) and np.ndim(value) == 0:
        value = value.item()
    if annotation is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{name}={value!r}: a number is wanted.")
        return float(value)
    if annotation is int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
            raise UsageError(f"{name}={value!r}: a whole number is wanted.")
        return int(value)
    if isinstance(annotation, type) and annotation is not Any and not isinstance(value, annotation):
        raise UsageError(f"{name}={value!r}: a value of type {annotation.__name__} is wanted.")
    return value
