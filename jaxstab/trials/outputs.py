"""The table of a family's outputs: what each is called, measured along, in which unit, and how it can fail."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxstab.errors import require_choice

ENDS = {"low": "lower", "high": "upper"}


class Doc(NamedTuple):
    """What a parameter is: `gain: Annotated[float, Doc("factor on the weights")]` in a Spec, HParams or function.

    Documentation, labels, the command line's options and what is refused follow from it.
    """

    long_name: str
    units: str = "1"
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Output:
    """One row.

    dims: names of the axes of one lane's array, () for a scalar.
    long_name, units: as CF and netCDF have them ("1" is dimensionless).
    theory: whether `predict` has a twin of the same name: "" for none, "value", or "interval" for one with
        `*_low` and `*_high` beside it.
    is_measured: False for what theory alone says.
    undefined: where the statistic is NaN by definition, in words; "" where NaN is always a failure.
    diverged: where a lane that is not finite stands among the others: +inf, or -inf where small is bad.
    """

    dims: tuple[str, ...] = ()
    long_name: str = ""
    units: str = "1"
    theory: str = ""
    is_measured: bool = True
    undefined: str = ""
    diverged: float = math.inf

    def attrs(self, name: str) -> dict[str, str | float]:
        """The variable's attributes in a Dataset."""
        found: dict[str, str | float] = {"long_name": self.long_name or spell(name), "units": self.units}
        if self.undefined:
            found["undefined"] = self.undefined
        if self.diverged != math.inf:
            found["diverged_counts_as"] = self.diverged
        return found


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the places along a dimension of outputs are called: a coordinate beside their numbers."""

    dim: str
    values: tuple[str, ...]
    long_name: str = ""

    def attrs(self, name: str) -> dict[str, str]:
        """The coordinate's attributes in a Dataset."""
        return {"long_name": self.long_name or spell(name)}


@functools.cache
def hints_of(cls: type) -> dict[str, tuple[Any, Doc]]:
    """(type, documentation) of every parameter of a Spec or HParams; its name in words where nobody said more."""
    bare, full = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
    said = {name: getattr(hint, "__metadata__", ()) for name, hint in full.items()}
    return {
        name: (bare[name], next((m for m in metadata if isinstance(m, Doc)), Doc(spell(name))))
        for name, metadata in said.items()
    }


def canonicalize(spec: object) -> None:
    """Replace each name in a frozen dataclass by that of its choice; UsageError for any other."""
    for name, (kind, doc) in hints_of(type(spec)).items():
        if kind is str and doc.choices:
            object.__setattr__(spec, name, require_choice(getattr(spec, name), doc.choices, name))


def measured(outputs: Mapping[str, Output]) -> dict[str, Output]:
    """The rows that a trial returns."""
    return {name: row for name, row in outputs.items() if row.is_measured}


def predicted(outputs: Mapping[str, Output]) -> dict[str, Output]:
    """The rows that theory returns, the ends of intervals among them."""
    found = {}
    for name, row in outputs.items():
        if not row.theory:
            continue
        words = row.long_name or spell(name)
        found[name] = dataclasses.replace(row, long_name=f"{words}, predicted")
        if row.theory == "interval":
            for end, word in ENDS.items():
                found[f"{name}_{end}"] = dataclasses.replace(
                    row, long_name=f"{words}, {word} end of the predicted 95 % of networks"
                )
    return found


def spell(name: str) -> str:
    """A name in words, where nobody gave any."""
    return name.replace("_", " ")
