"""`observe`: a transformation of functions like `jax.value_and_grad`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxstab.errors import UsageError, require_choice
from jaxstab.names import name_of_callable
from jaxstab.observation.calls import marked_calls
from jaxstab.observation.marks import is_tracing
from jaxstab.observation.mistakes import in_one_line
from jaxstab.observation.seen import Seen
from jaxstab.observation.sites import number_calls
from jaxstab.observation.statistics import DEFAULT, require_statistics
from jaxstab.observation.stepwise import TRACED, Runner
from jaxstab.observation.walk import Walk, has_calls

LEVELS = ("calls", "operations")


def observe(
    f: Callable[..., Any], statistics: Iterable[str] = DEFAULT, at: str = "calls"
) -> Callable[..., tuple[Any, Seen]]:
    """`f` with what happens inside: a function of the same arguments that returns (what f returns, `Seen`).

    Seen are the `statistics` (names of `STATISTICS`, scalars of all entries) of the output of every module call
    inside f, of linen, NNX, Equinox and Haiku. Where f itself differentiates, as `jax.value_and_grad(loss)` does,
    also those of the gradient with respect to each output (direction "backward"). Of a function that calls no
    module, the named scopes take their place: what leaves a scope forward, and what its transpose leaves backward,
    which are the gradients with respect to what the scope was given. `at="operations"` sees every operation.

        (loss, grads), seen = jax.jit(jaxstab.observe(jax.value_and_grad(loss)))(params, batch)
        seen.to_dataset()

    f's outputs and gradients are what they are without, to the last bit where calls are seen; seeing every operation
    may change what the compiler fuses, and with it roundings. Of a program in halves XLA leaves roundings out, and
    others where a value is seen, unless compiled with `xla_allow_excess_precision` off.

    It composes with jit, vmap, grad, scan and remat, and sees into scan (a row an iteration), cond (NaN where a
    branch was not taken), while (the largest over iterations), remat and jit; custom derivatives, shard_map,
    callbacks, kernels and jit with shardings are left whole. Modules are pytrees here, as under `jax.jit`: what f
    changes in one must be among what it returns.

    UsageError for a class, for a function that cannot be called or returns no arrays, for an rng or a variable that
    a linen module is not given, for an NNX module that f changes and is not given, for an unknown statistic or level.
    """
    require_function(f, "observe")
    names, level = require_statistics(statistics), require_choice(at, LEVELS, "at")

    @named_like(f)
    def observed(*args: Any, **kwargs: Any) -> tuple[Any, Seen]:
        closed, arrays, rebuild = trace(f, args, kwargs)
        outputs, seen = see(closed, arrays, names, level)
        return rebuild(outputs), seen

    return observed


def see(
    closed: ClosedJaxpr,
    arrays: Sequence[Any],
    statistics: tuple[str, ...],
    at: str = "calls",
    runner: Runner = TRACED,
) -> tuple[list[Any], Seen]:
    """Outputs of a traced program, and what is seen in it."""
    scopes = at == "calls" and not has_calls(closed.jaxpr)
    walk = Walk(statistics, at, scopes, is_nested=is_tracing(), runner=runner)
    outputs, records = walk.start(closed, arrays)
    sites = number_calls([site for site, _ in records])
    return outputs, Seen(tuple(value for _, value in records), sites, statistics)


def require_function(f: object, what: str) -> None:
    """UsageError for what cannot be called, or is a class."""
    if isinstance(f, type):
        name = f.__name__
        raise UsageError(f"{what} needs a function or a module, not the class {name}: write {name}(...).")
    if not callable(f):
        raise UsageError(
            f"{what} needs a function, not {f!r}: pass the module's apply, or a function that calls it."
        )


def named_like(f: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`functools.wraps`; of a module that is a pytree the name and signature alone.

    Its parameters are no attributes of a function, and Equinox warns of a function that holds a module.
    """
    if jax.tree_util.all_leaves([f]):
        return functools.wraps(f)

    def rename(observed: Callable[..., Any]) -> Callable[..., Any]:
        observed.__name__ = observed.__qualname__ = name_of_callable(f)
        observed.__doc__ = f.__doc__
        observed.__dict__["__signature__"] = inspect.signature(f)
        return observed

    return rename


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def trace(
    f: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[ClosedJaxpr, list[Any], Callable[[list[Any]], Any]]:
    """f's program with marks, the arrays that it takes, and how its outputs become those of f.

    Arguments and outputs that are no arrays (Python numbers, strings, functions) stay as they are.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    shape: dict[str, Any] = {}

    def flat(*traced: Any) -> list[Any]:
        values = iter(traced)
        filled = [next(values) if _is_array(leaf) else leaf for leaf in leaves]
        inner_args, inner_kwargs = jax.tree.unflatten(structure, filled)
        shape["leaves"], shape["tree"] = jax.tree.flatten(f(*inner_args, **inner_kwargs))
        outputs = [leaf for leaf in shape["leaves"] if _is_array(leaf)]
        if not outputs:
            raise UsageError(f"{name_of_callable(f)} returns no arrays: nothing of it can be observed.")
        shape["leaves"] = [_Hole if _is_array(leaf) else leaf for leaf in shape["leaves"]]
        return outputs

    try:
        with marked_calls():
            closed = jax.make_jaxpr(flat)(*arrays)
    except jax.errors.TracerArrayConversionError as error:
        name = name_of_callable(f)
        raise UsageError(
            f"{name} turns an array into one of NumPy, where nothing can be observed."
        ) from error
    except Exception as error:
        if (said := in_one_line(error, name_of_callable(f))) is None:
            raise
        raise UsageError(said) from error

    def rebuild(outputs: list[Any]) -> Any:
        values = iter(outputs)
        return jax.tree.unflatten(
            shape["tree"], [next(values) if leaf is _Hole else leaf for leaf in shape["leaves"]]
        )

    return closed, arrays, rebuild


class _Hole:
    """Stands for an output that is an array."""
