"""What the words of the command line stand for: values, axes of a grid, families."""

from __future__ import annotations

import importlib
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
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UsageError(f"family {name!r}: module {module!r} cannot be imported ({error}).") from None
    except AttributeError:
        raise UsageError(f"family {name!r}: module {module!r} has no {attribute!r}.") from None
    if not isinstance(found, Family):
        raise UsageError(f"family {name!r} is no Family: decorate it with @jaxstab.family.")
    return found
