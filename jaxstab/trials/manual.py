"""What a family can be asked and what it answers, in words: every axis with its default, every output."""

from __future__ import annotations

import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from jaxstab.names import spell
from jaxstab.trials.outputs import Output, measured, predicted

if TYPE_CHECKING:
    from jaxstab.trials.family import Family

Call = TypeVar("Call", bound=Callable[..., Any])


def axes(family: Family) -> dict[str, str]:
    """What each parameter is, in a line, with its unit and its choices; its default is in `Family.defaults`."""
    found = {}
    for name, doc in family.docs.items():
        unit = f" [{doc.units}]" * (doc.units != "1")
        found[name] = doc.long_name + unit + f": {', '.join(doc.choices)}" * bool(doc.choices)
    return found


def manual(family: Family, outputs: Iterable[str] | None = None) -> str:
    """The axes of a family with their defaults, and its outputs (or those named) with their dimensions."""
    rows = family.outputs if outputs is None else {name: family.outputs[name] for name in outputs}
    lines = ["Axes (each one value, or a list of values; {label: value} where a value is no scalar):"]
    said = axes(family)
    for name in family.parameters:
        default = f" = {spell(family.defaults[name])}" if name in family.defaults else ""
        lines += _entry(f"{name}: {_kind(family.types[name])}{default}", said[name])
    lines += ["", f"float axes are traced: all of their values run in one program. Outputs of {family.name}:"]
    for name, row in rows.items():
        lines += _entry(_signature(name, row), _meaning(row))
    return "\n".join(lines)


def says(family: Family, *, theory: bool = False) -> Callable[[Call], Call]:
    """Let a call's `help` list the axes that it takes and the outputs that it gives (theory's, or measured ones)."""
    rows = predicted(family.outputs) if theory else measured(family.outputs)
    names = [name for name in rows if name in family.outputs]

    def document(call: Call) -> Call:
        call.__doc__ = f"{inspect.getdoc(call)}\n\n{manual(family, names)}"
        kept = [p for p in inspect.signature(call).parameters.values() if p.kind is not p.VAR_KEYWORD]
        keyword, none = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
        given = [
            inspect.Parameter(name, keyword, default=family.defaults.get(name, none))
            for name in family.parameters
        ]
        call.__signature__ = inspect.Signature([*kept, *given])  # type: ignore[attr-defined]
        return call

    return document


def _entry(head: str, text: str) -> list[str]:
    return [f"  {head}", *textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")]


def _signature(name: str, row: Output) -> str:
    return f"{name} [{', '.join(row.dims)}]" if row.dims else name


def _meaning(row: Output) -> str:
    unit = f" [{row.units}]" * (row.units != "1")
    theory = {"interval": "; theory with *_low and *_high", "value": "; theory"}.get(row.theory, "")
    return (
        row.long_name
        + unit
        + (theory if row.is_measured else "; of theory alone")
        + (f"; NaN {row.undefined}" if row.undefined else "")
    )


def _kind(annotation: Any) -> str:
    """An annotation in a word or two."""
    if annotation is Any:
        return "name or object"
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in parts)
    if origin is tuple:
        return f"tuple of {_kind(parts[0])}"
    if origin is not None:
        return "function"
    return "name" if annotation is str else annotation.__name__
