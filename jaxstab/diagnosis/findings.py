"""What is said of a model: findings, and how gravity orders them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, SupportsFloat

GRAVITIES = ("grave", "warning", "note")
WRONG = 0.25
"""Mean error over mean magnitude from which a result has lost its digits."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    `path` is the module or parameter at fault and `source` the user's file:line; `evidence` the numbers that say so,
    medians over seeds; `remedy` what to change. `dtype` is the format where it happens, empty in the run itself;
    `direction` "forward" or "backward", where it has one.
    """

    kind: str
    gravity: str
    path: str
    source: str
    evidence: str
    remedy: str
    dtype: str = ""
    direction: str = ""

    def __str__(self) -> str:
        where = f" [{self.dtype}]" if self.dtype else ""
        line = f" ({short(self.source)})" if self.source else ""
        head = f"{self.gravity}: {self.kind}{where} at {self.path or 'the program'}{line}"
        return f"{head}\n  {self.evidence}\n  -> {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON takes them."""
        return dataclasses.asdict(self)


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """The gravest first; those of one gravity as they were found."""
    return tuple(sorted(findings, key=lambda f: GRAVITIES.index(f.gravity)))


def short(source: str) -> str:
    """A source without its folders."""
    return Path(source).name


def number(x: SupportsFloat) -> str:
    """Three digits."""
    return f"{float(x):.3g}"
