"""A model as a file of ONNX, and whether what ONNX Runtime makes of the file is what the model itself returns."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxstab.errors import UsageError
from jaxstab.names import name_of_callable

LOG_ERRORS = 3
"""ONNX Runtime's level at which it writes errors only: it warns of constants of no use that loops are exported with."""


@dataclasses.dataclass(frozen=True)
class Export:
    """A written file: its operators in their order, those inside a loop after it, and ONNX's version of operators.

    `largest_difference` is the largest, over all outputs, of |ONNX Runtime's - the model's own| relative to the
    largest entry of that output: infinite where shapes differ or one of the two alone is finite, None without
    ONNX Runtime.
    """

    path: Path
    operators: tuple[str, ...]
    opset: int
    largest_difference: float | None

    def __str__(self) -> str:
        counts = collections.Counter(self.operators)
        listed = ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())
        checked = "not run, as onnxruntime is not installed"
        if self.largest_difference is not None:
            checked = f"largest relative difference of its outputs {self.largest_difference:.2g}"
        return f"{self.path}: opset {self.opset}, {len(self.operators)} operators ({listed}); {checked}"


def to_onnx(
    model: Any,
    inputs: Any,
    path: str | os.PathLike[str],
    variables: Any = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Export:
    """Write `model` to the file `path` in the language of ONNX, run the file, and compare the outputs.

    `model` is a linen module, of which `variables` are what its `init` returns, an NNX module, or a function of
    arrays. `inputs` is a tuple of example arrays, or one array: the file takes their shapes and dtypes. Outputs
    are those of the model in the order of `jax.tree.leaves`. `apply_kwargs` are keyword arguments of the call that
    the file is made for, such as `{"train": False}`. What the call changes inside an NNX module is forgotten.

        print(jaxstab.to_onnx(model, (x,), "model.onnx", variables=variables))

    UsageError, and no file, for what is no such model, for inputs that it does not run on, for outputs that are no
    arrays, for a path in no folder, for what has no counterpart in ONNX or does not run there, and without jax2onnx.
    """
    try:
        jax2onnx = importlib.import_module("jax2onnx")
    except ImportError as error:
        raise UsageError("to_onnx needs jax2onnx: pip install 'jaxstab[onnx]'.") from error
    function = _function_of(model, variables, dict(apply_kwargs or {}))
    name = name_of_callable(model)
    arrays, target = _require_arrays(inputs), _require_path(path)
    flat = _flattened(function, name)
    outputs = _require_outputs(flat, arrays, name)
    exported = _exported(jax2onnx, flat, arrays, outputs, name)
    try:
        content = exported.SerializeToString()
    except ValueError as error:
        raise UsageError(f"to_onnx: {name} does not fit into one file of ONNX ({_first(error)}).") from error
    difference = _difference(content, flat, arrays, name)
    _write(content, target)
    (opset,) = (o.version for o in exported.opset_import if o.domain == "")
    return Export(target, tuple(_operators(exported.graph)), opset, difference)


def _require_path(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if not target.parent.is_dir():
        raise UsageError(f"to_onnx: {target}: there is no folder {target.parent}.")
    if target.is_dir():
        raise UsageError(f"to_onnx: {target} is a folder; the path of a file is wanted.")
    return target


def _function_of(model: Any, variables: Any, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """The model as a function of its inputs alone."""
    if isinstance(model, type):
        raise UsageError(
            f"to_onnx needs a module or a function, not the class {model.__name__}: write {model.__name__}(...)."
        )
    if not callable(model):
        raise UsageError(f"to_onnx needs a module or a function, not a value of type {type(model).__name__}.")
    if isinstance(model, linen.Module):
        if variables is None:
            raise UsageError(
                f"to_onnx: a linen module is exported with its variables: pass variables=model.init(key, ...)"
                f" of {type(model).__name__}."
            )
        return lambda *inputs: model.apply(variables, *inputs, **kwargs)
    if variables is not None:
        raise UsageError(
            f"to_onnx: variables belong to a linen module, which {name_of_callable(model)} is not."
        )
    if isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        fresh = lambda: jax.tree.map(lambda x: x, state)  # noqa: E731  # variables that the trace may change
        return lambda *inputs: nnx.merge(graph, fresh())(*inputs, **kwargs)
    return lambda *inputs: model(*inputs, **kwargs)


def _require_arrays(inputs: Any) -> tuple[jax.Array, ...]:
    """The inputs as arrays of the dtypes that JAX computes in."""
    if isinstance(inputs, (jax.Array, np.ndarray)):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list)) or not inputs:
        what = (
            "an empty one"
            if isinstance(inputs, (tuple, list))
            else f"a value of type {type(inputs).__name__}"
        )
        raise UsageError(f"to_onnx: inputs are a tuple of example arrays, not {what}.")
    for number, one in enumerate(inputs):
        if not isinstance(one, (jax.Array, np.ndarray, np.generic, bool, int, float)):
            raise UsageError(
                f"to_onnx: input {number} is a value of type {type(one).__name__}, which is no array: what is none"
                " is bound to the function before."
            )
    return tuple(jnp.asarray(one) for one in inputs)


def _flattened(function: Callable[..., Any], name: str) -> Callable[..., tuple[jax.Array, ...]]:
    """The function with its outputs as one flat tuple; UsageError where one is no array."""

    def flat(*inputs: Any) -> tuple[jax.Array, ...]:
        leaves = jax.tree.leaves(function(*inputs))
        wrong = [
            x for x in leaves if not isinstance(x, (jax.Array, np.ndarray, np.generic, bool, int, float))
        ]
        if wrong or not leaves:
            what = f"a value of type {type(wrong[0]).__name__}, which is no array" if wrong else "no array"
            raise UsageError(f"to_onnx: {name} returns {what}.")
        return tuple(jnp.asarray(x) for x in leaves)

    return flat


def _require_outputs(flat: Callable[..., Any], arrays: tuple[jax.Array, ...], name: str) -> tuple[Any, ...]:
    """Shapes and dtypes of the outputs; UsageError where the function does not run on the inputs."""
    try:
        return jax.eval_shape(flat, *arrays)
    except UsageError:
        raise
    except Exception as error:  # whatever a model raises at inputs that do not suit it
        given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
        raise UsageError(
            f"to_onnx: {name} does not run on ({given}): {type(error).__name__}: {_first(error)}"
        ) from error


def _exported(jax2onnx: Any, flat: Any, arrays: tuple[jax.Array, ...], outputs: Any, name: str) -> Any:
    """The model in ONNX's own classes; in doubles only where the model's inputs or outputs are."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    doubled = any(x.dtype == jnp.float64 for x in (*arrays, *outputs))
    with warnings.catch_warnings():
        # jax2onnx reads variables of NNX by `.value`, which flax 0.12 deprecates: nothing that a user could mend
        warnings.filterwarnings(
            "ignore", message="'.value' access is now deprecated", category=DeprecationWarning
        )
        try:
            return jax2onnx.to_onnx(flat, shapes, model_name=name, enable_double_precision=doubled)
        except Exception as error:  # it has classes of its own for few of its failures
            raise UsageError(
                f"to_onnx: jax2onnx cannot express {name} in ONNX: {type(error).__name__}: {_first(error)}"
            ) from error


def _difference(content: bytes, flat: Any, arrays: tuple[jax.Array, ...], name: str) -> float | None:
    """How far the outputs of the file are from the function's own; None without ONNX Runtime."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        found = session.run(None, dict(zip(names, map(np.asarray, arrays), strict=True)))
    except Exception as error:  # ONNX Runtime's errors share no class of their own
        raise UsageError(
            f"to_onnx: ONNX Runtime does not run what jax2onnx makes of {name}: {_first(error)}"
        ) from error
    wanted = [np.asarray(x) for x in jax.jit(flat)(*arrays)]
    if len(wanted) != len(found):
        return float("inf")
    return max(_relative(w, np.asarray(f)) for w, f in zip(wanted, found, strict=True))


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    """Largest difference over the largest finite entry wanted; entries that are not finite must be the same."""
    if wanted.shape != found.shape:
        return float("inf")
    wide = np.complex128 if np.iscomplexobj(wanted) or np.iscomplexobj(found) else np.float64
    wanted, found = wanted.astype(wide), found.astype(wide)
    finite = np.isfinite(wanted) & np.isfinite(found)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return float("inf")
    largest = float(np.max(np.abs(wanted[finite]), initial=0.0))
    difference = float(np.max(np.abs(wanted[finite] - found[finite]), initial=0.0))
    return difference / largest if largest else float("inf") if difference else 0.0


def _operators(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _operators(inner)


def _write(content: bytes, path: Path) -> None:
    """Written beside and renamed: an interrupted call leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
