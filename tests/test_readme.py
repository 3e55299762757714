"""Every snippet and command of the README runs as it stands (with fewer seeds), and prints what stands below it."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxstab
from experiments.gallery.__main__ import commands, snippets
from jaxstab import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FEWER = {
    "seeds=8": "seeds=2",
    "--seeds 64": "--seeds 2",
    "--seeds 1024": "--seeds 4",
    "--epochs 10": "--epochs 1",
}
"""What the tests run in place of the README's numbers."""
PROGRAMS = snippets(README, "python")
ELSEWHERE = {("pip", "install"): "run by .ci/run"}


def named(word: str) -> str:
    """The one program with that word in it."""
    (program,) = [code for code in PROGRAMS if word in code]
    return program


def run(program: str, name: str = "__main__") -> dict:
    """What a program of the README leaves behind; it is run in the working folder, as a file of its own."""
    for whole, few in FEWER.items():
        program = program.replace(whole, few)
    said = re.match(r"# (\w+\.py)\n", program)
    path = Path(said.group(1) if said else "snippet.py")
    path.write_text(program)
    scope = {"__name__": name}  # a dataclass looks its module up
    with plt.style.context("default"):
        exec(compile(program, path.absolute(), "exec"), scope)
        plt.close("all")
    return scope


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_numbers(text: str) -> list[str]:
    """Lines with every number of the measurement replaced: processors differ in the third digit."""
    return [re.sub(r"\d[\d.e+-]*(?![\d.]*\))", "#", line) for line in text.strip().splitlines()]


def printed_below(program: str) -> str:
    return README.split(program)[1].split("```text\n")[1].split("```")[0]


@pytest.mark.parametrize("word", ["vanishing.png", "what_if", "class=", "critical_initialization"])
def test_a_snippet_runs(word, capsys):
    program = named(word) if word != "class=" else named("def descent")
    run(program)
    for picture in re.findall(r'savefig\("([^"]+)"', program):
        assert Path(picture).stat().st_size > 10_000
    if word == "vanishing.png":
        assert "The gradient shrinks by 18.19 decades over 30 layers" in capsys.readouterr().out


def test_gains_are_found_as_it_says(capsys):
    program = named("runs/edge")
    run(program)
    said = [
        [float(x) for x in re.findall(r"\d\.\d\d", line)]
        for line in (capsys.readouterr().out + printed_below(program)).strip().splitlines()
    ]
    assert len(said) == 6
    np.testing.assert_allclose(said[:3], said[3:], atol=0.041)  # two steps of the grid: two seeds for eight
    assert not np.allclose(said[:3], np.add(said[3:], 0.1), atol=0.041)


def test_a_model_is_diagnosed_as_it_says(capsys):
    program = named("class Net")
    run(program, "net")
    assert without_numbers(capsys.readouterr().out) == without_numbers(printed_below(program))


def test_a_layer_of_ones_own_is_measured_as_it_says(capsys):
    program = named("class Gated")
    scope = SimpleNamespace(**run(program))
    assert dict(scope.ds.sizes) == {"kind": 2, "gain": 3, "seed": 64, "layer": 20}
    assert (scope.ds.status == 0).all()
    assert scope.ds.saturated_fraction.notnull().all()
    assert capsys.readouterr().out.count("gated") == 2
    told, measured = jaxstab.predict(**scope.axes).sel(kind="gated"), scope.ds.sel(kind="gated")
    for name in ("log10_forward_rms", "log10_backward_rms"):
        log_squares = np.log10((10.0 ** (2 * measured[name].astype(float))).mean("seed")) / 2
        np.testing.assert_allclose(
            log_squares.isel(layer=slice(0, 19)), told[name].isel(layer=slice(0, 19)), atol=0.06
        )
        assert not np.allclose(log_squares, told[name] + 0.1, atol=0.06)
    own = program.split("@dataclasses")[1].split("ds =")[0]
    assert len([line for line in own.splitlines() if line.strip()]) <= 15


def test_no_snippet_is_left_out():
    ours = (
        "vanishing.png",
        "what_if",
        "def descent",
        "critical_initialization",
        "runs/edge",
        "class Net",
        "class Gated",
    )
    assert sorted(PROGRAMS) == sorted(map(named, ours))


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_a_command_runs(words, capsys):
    if tuple(words[:2]) in ELSEWHERE:
        pytest.skip(ELSEWHERE[tuple(words[:2])])
    assert words[0] == "jaxstab"
    for program in (named("def descent"), named("class Net").split("found =")[0]):
        Path(re.match(r"# (\w+\.py)", program).group(1)).write_text(program)
    line = " ".join(words[1:])
    for whole, few in FEWER.items():
        line = line.replace(whole, few)
    line += " --seeds 8" * (words[1] == "tile")
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert not ended.value.code
    assert capsys.readouterr().out
    for flag, path in itertools.pairwise(words):
        if flag in ("--plot", "--store"):
            assert Path(path).exists()


def test_pictures_are_there_small_and_described():
    shown = re.findall(r"!\[([^\]]*)\]\((experiments/gallery/[^)]+)\)", README)
    assert len(shown) == 4
    for words, path in shown:
        assert len(words) > 60
        data = (ROOT / path).read_bytes()
        width, _ = struct.unpack(">II", data[16:24])
        assert len(data) < 150_000
        assert width > 1000
