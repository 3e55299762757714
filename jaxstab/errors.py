"""What bad input gets: one line that names the value and the choices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType


class UsageError(ValueError):
    """Input that cannot be meant. Raised before anything is compiled; the command line exits with 2."""


ALIASES: Mapping[str, str] = MappingProxyType({
    "swish": "silu", "identity": "linear", "logistic": "sigmoid", "leakyrelu": "leaky_relu",
    "glorot_normal": "xavier_normal", "glorot_uniform": "xavier_uniform", "he_normal": "kaiming_normal",
    "he_uniform": "kaiming_uniform", "haar": "orthogonal",
    "half": "float16", "fp16": "float16", "f16": "float16", "bf16": "bfloat16", "float": "float32",
    "single": "float32", "fp32": "float32", "f32": "float32",
    "rnn": "recurrent", "resnet": "residual",
})  # fmt: skip
"""What else the field calls a choice -> its name here. Taken wherever that name is a choice."""


def require_choice(value: object, choices: Iterable[str], what: str, hint: str = "") -> str:
    """`value` if it is one of `choices`, or what its alias stands for.

    Otherwise one line with the value, a hint (that given, or the nearest name where a slip of the hand would make it)
    and the choices.
    """
    names = list(choices)
    for name in (value, ALIASES.get(value)) if isinstance(value, str) else ():
        if name in names:
            return str(name)
    near = [name for name in names if value and name.startswith(str(value))]
    near = near or difflib.get_close_matches(str(value), names, n=1, cutoff=0.7)
    if not hint and near and _numbers(near[0]) == _numbers(str(value)):  # float64 is no slip of float16
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    raise UsageError(f"unknown {what} {value!r}.{' ' * bool(hint)}{hint} Choices: {', '.join(names)}.")


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


class UnstableError(AssertionError):
    """A model that does not fulfil what was required of it; the message is the finding."""


class Interrupted(SystemExit):
    """A stored sweep was asked to stop and can be resumed. Uncaught, the process ends with exit code 75."""

    def __init__(self, message: str):
        super().__init__(75)
        self.message = message

    def __str__(self) -> str:
        return self.message


def require_hashable(name: str, value: object) -> None:
    """Refuse a parameter's value that cannot be hashed: programs are kept by it."""
    try:
        hash(value)
    except TypeError:
        kind = type(value).__name__
        raise UsageError(
            f"{name}: a {kind} cannot be hashed, and programs are kept by it; a frozen dataclass, say, can."
        ) from None
