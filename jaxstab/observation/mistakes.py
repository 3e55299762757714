"""What a library says of a mistake while its function is traced, in one line that says what to pass."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import MappingProxyType

QUOTED = r'.*?"([^"]*)"'
FLAX: Mapping[str, tuple[str, str]] = MappingProxyType({
    "InvalidRngError": (
        "needs PRNG for" + QUOTED, "{name} needs an rng {0!r}: pass rngs={{{0!r}: key}} to apply."),
    "ScopeCollectionNotFound": (
        QUOTED + " from collection" + QUOTED + " in" + QUOTED,
        "{name} finds no {0!r} of collection {1!r} in {2}: pass all that init returned, with its {1!r}, to apply."),
    "ScopeVariableNotFoundError": (
        QUOTED + " for collection" + QUOTED + " exists in" + QUOTED,
        "{name} finds no {0!r} of collection {1!r} in {2}: pass all that init returned, with its {1!r}, to apply."),
    "ScopeParamNotFoundError": (
        "parameter named" + QUOTED + " in scope" + QUOTED,
        "{name} finds no {0!r} of collection 'params' in {1}: pass all that init returned, with its 'params', to"
        " apply."),
    "ModifyScopeVariableError": (
        "in" + QUOTED + " because collection" + QUOTED + " is immutable",
        "{name} changes collection {1!r} in {0}: pass mutable=[{1!r}] to apply."),
    "CallCompactUnboundModuleError": (
        "", "{name} has no variables of its own: observe its apply, and pass it what init returned."),
    "TraceContextError": (
        "", "{name} changes an NNX module that it is not given: pass the module as an argument and return it, as in"
        " observe(lambda model, x: (model(x), model))(model, x)."),
})  # fmt: skip
"""Class of an error of Flax -> (what to read in its message, what to say)."""


def in_one_line(error: Exception, name: str) -> str | None:
    """What to tell the user of the function of that name; None for an error that is not one of these."""
    flax_errors = sys.modules.get("flax.errors")
    kind = type(error).__name__
    if kind not in FLAX or not isinstance(error, getattr(flax_errors, kind, ())):
        return None
    pattern, said = FLAX[kind]
    found = re.search(pattern, str(error), re.DOTALL)
    if found is None:  # another version's wording
        return f"{name}: {next(iter(str(error).splitlines()), kind)}"
    return said.format(*found.groups(), name=name)
