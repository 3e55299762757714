"""What the words of the command line stand for: values, axes of a grid, families."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

from jaxstab.errors import UsageError, require_choice


def parse_values(words: tuple[str, ...]) -> Any:
    """One value, or the list that several words (or linspace(...), geomspace(...)) stand for."""
    if any("+" in w.strip("+").replace("e+", "") for w in words):
        return {w: tuple(_parse_value(part) for part in w.split("+")) for w in words}
    if len(words) > 1:
        return [_parse_value(w) for w in words]
    word = " ".join(words)
    name, _, rest = word.partition("(")
    if rest.endswith(")") and name in ("linspace", "geomspace"):
        import numpy as np

        try:
            first, last, count = (float(x) for x in rest[:-1].split(","))
            return getattr(np, name)(first, last, int(count))
        except ValueError as error:
            raise UsageError(f"{word!r}: {name}(first, last, count) is wanted ({error}).") from None
    return _parse_value(word)


def _parse_value(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def parse_grid(words: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE,VALUE words as the axes of a grid."""
    axes: dict[str, Any] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not name or not values:
            raise UsageError(f"--grid {word!r}: NAME=VALUE or NAME=VALUE,VALUE is wanted.")
        if name in axes:
            raise UsageError(f"--grid: axis {name!r} is given twice.")
        axes[name] = parse_values((values,) if "(" in values else tuple(values.split(",")))
    return axes


def load_family(name: str) -> Any:
    """A family of jaxstab's by name, or a user's by module:family."""
    from jaxstab.trials.family import Family

    built_in = {name: f"jaxstab.trials.{name}" for name in ("propagation", "training")}
    module, colon, attribute = name.partition(":")
    if not colon:
        require_choice(name, [*built_in, "module:family"], "family")
        module, attribute = built_in[name], name
    found = load(f"{module}:{attribute}", "family")
    if not isinstance(found, Family):
        raise UsageError(f"family {name!r} is no Family: decorate it with @jaxstab.family.")
    return found


def load(name: str, what: str) -> Any:
    """What a user's module:name stands for; the folder that the command runs in is searched first."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"{what} {name!r}: module:name is wanted.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} {name!r}: module {module!r} cannot be imported ({error}).") from None
    names = [n for n, value in vars(found).items() if not n.startswith("_") and not inspect.ismodule(value)]
    return getattr(found, require_choice(attribute, names, f"name in module {module!r}:"))
