"""A command's axes are the parameters of its family: names, words, choices and defaults come from there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import tyro

from jaxstab.cli.words import load_family, parse_values
from jaxstab.names import spell

File: TypeAlias = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder: TypeAlias = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Grid: TypeAlias = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE ...", help_behavior_hint="")
]
Names: TypeAlias = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
HOW = """Axes take one value or several, linspace(a,b,n) or geomspace(a,b,n); a+b+c is one value of several layers."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """A command with an option for every parameter of the family that it names, once `with_axes` has put them there."""

    FAMILY: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """What was given, as `jaxstab.grid` takes it."""
        names = load_family(self.FAMILY).parameters
        return {name: parse_values(getattr(self, name)) for name in names if getattr(self, name)}


def with_axes(command: type[Any]) -> type[Any]:
    """The command's class with its family's parameters as fields; any other command as it is. Loads JAX."""
    if not issubclass(command, Axes):
        return command
    from jaxstab.trials import manual

    family = load_family(command.FAMILY)
    fields = []
    for name, words in manual.axes(family).items():
        default = family.defaults[name]
        default = "+".join(map(spell, default)) or "none" if isinstance(default, tuple) else spell(default)
        said = tyro.conf.arg(
            metavar="VALUE [VALUE ...]",
            help=f"{words[0].upper()}{words[1:]}.",
            help_behavior_hint=f"(default: {default})",
        )  # fmt: skip - a line each otherwise
        fields.append((name, Annotated[tuple[str, ...], said], dataclasses.field(default=())))
    made = dataclasses.make_dataclass(command.__name__, fields, bases=(command,), frozen=True)
    made.__doc__ = f"{command.__doc__} {HOW}"
    return made
