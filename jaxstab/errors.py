"""What bad input gets: one line that names the value and the choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Input that cannot be meant. Raised before anything is compiled; the command line exits with 2."""


def require_choice(value: object, choices: Iterable[str], what: str) -> str:
    """`value` if it is one of `choices`; otherwise one line with the value, the nearest name and the choices."""
    names = list(choices)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"unknown {what} {value!r}.{hint} Choices: {', '.join(names)}.")


class Interrupted(SystemExit):
    """A stored sweep was asked to stop and can be resumed. Uncaught, the process ends with exit code 75."""

    def __init__(self, message: str):
        super().__init__(75)
        self.message = message

    def __str__(self) -> str:
        return self.message
