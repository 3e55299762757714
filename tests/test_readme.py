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
