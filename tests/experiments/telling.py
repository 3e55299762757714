"""An experiment run once, small, and listened to: what its findings say, and what its figures are said to show."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxstab.report.record import Entry
from jaxstab.report.runner import configure, run_experiment


def run_small(module: ModuleType, out: Path) -> tuple[Entry, str, dict[str, str]]:
    """(what stands in the report, its findings, figure -> its label), the experiment run once at scale "smoke"."""
    kept: dict[str, Any] = {}

    def keep(name: str) -> None:
        function = getattr(module, name)
        patch.setattr(module, name, lambda given: kept.setdefault(name, function(given)))

    with pytest.MonkeyPatch.context() as patch:
        keep("run")
        keep("plot")
        entry = run_experiment(module, configure(module, "smoke"), out)
    labels = {title: str(figure.get_label()) for title, figure in kept["plot"].items()}
    return entry, module.findings(kept["run"]), labels


def assert_tells(findings: str, labels: dict[str, str]) -> None:
    """Findings hold numbers, and none that is not one; every figure is told to whoever cannot see it."""
    for text in (findings, *labels.values()):
        assert not re.search(r"\b(nan|NaN|inf|None)\b|  ", text), text
        assert text.endswith("."), text
    assert re.search(r"\d", findings)
    assert all(len(label) >= 40 for label in labels.values()), labels
