"""The README's example of a diagnosis runs as it stands and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import jaxstab

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
    assert capsys.readouterr().out.count("gated") == 2
    told, measured = jaxstab.predict(**scope["axes"]).sel(kind="gated"), scope["ds"].sel(kind="gated")
    for name in ("log10_forward_rms", "log10_backward_rms"):
        log_squares = np.log10((10.0 ** (2 * measured[name].astype(float))).mean("seed")) / 2
        np.testing.assert_allclose(
            log_squares.isel(layer=slice(0, 19)), told[name].isel(layer=slice(0, 19)), atol=0.06
        )
        assert not np.allclose(log_squares, told[name] + 0.1, atol=0.06)
    own = program.split("@dataclasses")[1].split("ds =")[0]
    assert len([line for line in own.splitlines() if line.strip()]) <= 15
