"""What values are called: for people, and in records that another process must understand.

Nothing here holds an address or follows the order of a set, both of which differ from process to process.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
CALLABLE = "callable"
"""Key of a record under which a callable's name stands, which tells nothing of what it does."""


def name_of_callable(function: Callable[..., Any]) -> str:
    """Its `__name__`; of a partial with what is bound by name; of an object that can be called its type's."""
    if isinstance(function, functools.partial):
        bound = [spell(value) for value in function.args]
        bound += [f"{key}={spell(value)}" for key, value in function.keywords.items()]
        return f"{name_of_callable(function.func)}({', '.join(bound)})"
    return str(getattr(function, "__name__", type(function).__name__))


def spell(value: Any) -> str:
    """A value in a label or a sentence."""
    if callable(value):
        return name_of_callable(value)
    return ADDRESS.sub("", value if isinstance(value, str) else repr(value))


def describe(value: Any) -> Any:
    """The value as JSON may hold it, the same in every process; of a callable the name alone.

    What a callable does is told by the program that it lowers to, so `{"callable": name}` is for people.
    """
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return array.item() if array.ndim == 0 else {"array": _digest(array), "shape": list(array.shape)}
    if isinstance(value, enum.Enum) or not isinstance(value, (bool, int, float, str, type(None))):
        return _describe_structure(value)
    return value if not isinstance(value, float) or math.isfinite(value) else repr(value)


def _describe_structure(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return fields if not callable(value) else {CALLABLE: name_of_callable(value), **fields}
    if callable(value):
        return {CALLABLE: name_of_callable(value)}
    if isinstance(value, Mapping):
        return {str(describe(key)): describe(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((describe(inner) for inner in value), key=lambda one: json.dumps(one, sort_keys=True))
    if isinstance(value, Sequence):
        return [describe(inner) for inner in value]
    return ADDRESS.sub("", repr(value))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
