"""The README's example of a diagnosis runs as it stands and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def without_numbers(text: str) -> list[str]:
    """Lines with every number of the measurement replaced: processors differ in the third digit."""
    return [re.sub(r"\d[\d.e+-]*(?![\d.]*\))", "#", line) for line in text.strip().splitlines()]


def test_a_model_is_diagnosed_as_it_says(tmp_path, capsys):
    found = re.search(r"## Your own model\n+```python\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    program, printed = found.groups()
    path = tmp_path / "net.py"
    path.write_text(program)
    exec(compile(program, path, "exec"), {"__name__": "net"})
    assert without_numbers(capsys.readouterr().out) == without_numbers(printed)
    assert program.count("\n") < 16


def test_a_layer_of_ones_own_is_measured_as_it_says(capsys):
    found = re.search(r"## Your own layer\n+```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    program = found.group(1)
    scope = {"__name__": "__main__"}  # a dataclass looks its module up
    exec(compile(program, "layer.py", "exec"), scope)
    assert dict(scope["ds"].sizes) == {"kind": 2, "gain": 3, "seed": 64, "layer": 20}
    assert (scope["ds"].status == 0).all()
    assert scope["ds"].saturated_fraction.notnull().all()
    assert "gated" in capsys.readouterr().out
    own = program.split("@dataclasses")[1].split("ds =")[0]
    assert len([line for line in own.splitlines() if line.strip()]) <= 15
