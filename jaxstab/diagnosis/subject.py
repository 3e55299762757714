"""A model of any library as one function: parameters, what else it holds, rngs and inputs -> output."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxstab.errors import UsageError
from jaxstab.names import name_of_callable
from jaxstab.observation.mistakes import in_one_line
from jaxstab.observation.transform import require_function

TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}
"""Arguments of calls by which libraries tell training from evaluation."""


@dataclass(frozen=True)
class Subject:
    """`draw(seed or its key)` gives (parameters, the rest); `call(parameters, rest, key, inputs)` the output.

    The key stands for the seed: rngs that the user gave are folded with it.
    """

    name: str
    draw: Callable[[int | jax.Array], tuple[Any, Any]]
    call: Callable[[Any, Any, jax.Array, tuple[Any, ...]], Any]
    inputs: tuple[Any, ...]
    is_drawn: bool
    """Whether parameters are drawn here, another time for each seed."""
    is_random: bool
    """Whether another seed changes anything."""
    is_training: bool = False
    """Whether the user asked for the behaviour of training in so many words."""


def subject_of(
    model: Any,
    inputs: tuple[Any, ...],
    variables: Any,
    rngs: Any,
    apply_kwargs: Mapping[str, Any] | None,
    caller: str = "diagnose",
) -> Subject:
    """The model with its inputs; UsageError for what is none, and for what it needs and is not given."""
    require_function_or_module(model, caller)
    kwargs = dict(apply_kwargs or {})
    found = _subject(model, inputs, variables, _keys(rngs), kwargs, caller)
    return replace(found, is_training=any(kwargs.get(word) is value for word, value in TRAINING.items()))


def _subject(
    model: Any, inputs: tuple, variables: Any, keys: dict[str, jax.Array], kwargs: dict[str, Any], caller: str
) -> Subject:
    if isinstance(model, linen.Module):
        return _linen(model, inputs, variables, keys, kwargs)
    if variables is not None:
        raise UsageError(f"variables belong to a linen module, which {name_of_callable(model)} is not.")
    if isinstance(model, nnx.Module):
        return _nnx(model, inputs, kwargs)
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(model, equinox.Module):
        return _of_pytree(
            name_of_callable(model), lambda m, *x, **k: m(*x, **k), (model, *inputs), keys, kwargs
        )
    if not inputs:
        raise UsageError(
            f"{caller}: {name_of_callable(model)} is a function, which takes its parameters as first input:"
            f" {caller}(f, parameters, inputs)."
        )
    return _of_pytree(name_of_callable(model), model, inputs, keys, kwargs)


def require_function_or_module(model: Any, caller: str) -> None:
    """UsageError for a class, or what cannot be called."""
    if isinstance(model, linen.Module):
        return
    require_function(model, caller)


def _keys(rngs: Any) -> dict[str, jax.Array]:
    """Names of rngs -> keys; a number stands for `jax.random.key` of it."""
    if rngs is None:
        return {}
    if not isinstance(rngs, Mapping):
        raise UsageError(
            f"rngs={rngs!r}: a dict of names and keys is wanted, such as {{'dropout': jax.random.key(0)}}."
        )
    return {name: jax.random.key(key) if isinstance(key, int) else key for name, key in rngs.items()}


def _folded(one: jax.Array, key: jax.Array) -> jax.Array:
    """The user's key, another for each seed's."""
    fold = functools.partial(jax.random.fold_in, data=jax.random.key_data(key).ravel()[-1])
    return jax.vmap(fold)(one.ravel()).reshape(one.shape) if one.ndim else fold(one)


def _linen(
    model: linen.Module, inputs: tuple, variables: Any, keys: dict[str, jax.Array], kwargs: dict[str, Any]
) -> Subject:
    name = type(model).__name__
    at_init = {k: v for k, v in kwargs.items() if k not in ("mutable", "capture_intermediates")}
    if variables is not None and (not isinstance(variables, Mapping) or "params" not in variables):
        raise UsageError(f"variables of {name} have no 'params': pass all that init returned.")

    def draw(seed: int | jax.Array) -> tuple[Any, Any]:
        found = variables
        if found is None:
            key = seed if isinstance(seed, jax.Array) else jax.random.fold_in(jax.random.key(0), seed)
            try:
                with jax.named_scope("init"):
                    found = model.init({"params": key, **keys}, *inputs, **at_init)
            except Exception as error:
                raise _said(error, name, inputs) from error
        rest = {k: v for k, v in found.items() if k != "params"}
        if not jax.tree.leaves(found.get("params", {})):
            raise UsageError(f"{name} has no parameters: there is nothing that could learn.")
        return found["params"], rest

    def call(params: Any, rest: Any, key: jax.Array, inputs: tuple) -> Any:
        known = {"mutable": list(rest), **kwargs} if rest else kwargs
        folded = {k: _folded(one, key) for k, one in keys.items()}
        output = model.apply({"params": params, **rest}, *inputs, rngs=folded or None, **known)
        return output[0] if known.get("mutable") else output

    return Subject(name, draw, call, inputs, variables is None, variables is None or bool(keys))


def _nnx(model: nnx.Module, inputs: tuple, kwargs: dict[str, Any]) -> Subject:
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def call(params: Any, rest: Any, key: jax.Array, inputs: tuple) -> Any:
        fresh = nnx.merge(graph, params, rest, copy=True)
        for _, one in nnx.iter_graph(fresh):
            if isinstance(one, nnx.RngKey):
                one[...] = _folded(one[...], key)
        return fresh(*inputs, **kwargs)

    is_random = any(isinstance(one, nnx.RngKey) for _, one in nnx.iter_graph(model))
    return Subject(type(model).__name__, lambda _: (params, rest), call, inputs, False, is_random)


def _of_pytree(
    name: str, f: Callable[..., Any], inputs: tuple, keys: dict[str, jax.Array], kwargs: dict[str, Any]
) -> Subject:
    """A function whose first input holds the parameters: its inexact arrays are."""
    leaves, tree = jax.tree.flatten_with_path(inputs[0])
    learns = [is_array(x) and jnp.issubdtype(x.dtype, jnp.inexact) for _, x in leaves]
    if not any(learns):
        raise UsageError(
            f"{name} takes its parameters as first input, and there is no array of floats in it."
        )
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for (path, x), one in zip(leaves, learns, strict=True)
        if one
    }
    order = list(params)  # that of the leaves, which a dict loses on its way through JAX
    static = [None if one else x for (_, x), one in zip(leaves, learns, strict=True)]

    def call(params: Any, rest: Any, key: jax.Array, inputs: tuple) -> Any:
        values = iter([params[name] for name in order])
        whole = jax.tree.unflatten(
            tree, [next(values) if one else x for x, one in zip(static, learns, strict=True)]
        )
        folded = {k: _folded(one, key) for k, one in keys.items()}
        return f(whole, *inputs, **kwargs, **({"rngs": folded} if keys else {}))

    return Subject(name, lambda _: (params, {}), call, inputs[1:], False, bool(keys))


def is_array(x: Any) -> bool:
    """Whether a leaf is traced; all others are part of the program."""
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def _said(error: Exception, name: str, inputs: tuple) -> Exception:
    """What to raise in place of an error of the model: one line in the user's terms."""
    if isinstance(error, UsageError):
        return error
    known = in_one_line(error, name)
    if known is not None:
        return UsageError(known.replace(" to apply.", "."))
    given = ", ".join(
        f"{x.dtype}{list(x.shape)}" if is_array(x) else repr(x) for x in jax.tree.leaves(inputs)
    )
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return UsageError(f"{name} does not run on ({given}): {type(error).__name__}: {first}")


def checked(subject: Subject, what: Callable[[], Any]) -> Any:
    """What `what` returns; an error of the model in one line."""
    try:
        return what()
    except Exception as error:
        raise _said(error, subject.name, subject.inputs) from error
