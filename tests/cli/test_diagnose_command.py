"""`jaxstab diagnose`: models of the user's own, inputs in words, exit codes, and what is said of wrong words."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import cli
from jaxstab.cli.diagnosing import parse_input

MODELS = """
import flax.linen as nn, jax.numpy as jnp
from flax import nnx

class Healthy(nn.Module):
    @nn.compact
    def __call__(self, x):
        print("traced")
        return nn.Dense(4, name="out")(jnp.tanh(nn.Dense(8, name="hidden")(x)))

class Sick(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="out")(jnp.log(nn.relu(nn.Dense(8, name="hidden")(x))))

class Tokens(nn.Module):
    @nn.compact
    def __call__(self, tokens, scale):
        return nn.Dense(4)(nn.Embed(11, 8)(tokens) * scale)

instance = Healthy()
tokens = Tokens()
small = lambda: Healthy()
of_nnx = lambda: nnx.Linear(6, 2, rngs=nnx.Rngs(0))
function = (lambda p, x: jnp.tanh(x @ p["w"]), {"w": jnp.full((6, 3), 0.1)})
alone = lambda: (lambda p: jnp.sin(p), jnp.ones(3))
def wanting(width): return Healthy()
def number(): return 3
def square(y): return jnp.mean(y ** 2)
def vector(y): return y
def broken(): raise RuntimeError("no checkpoint")
"""
X = ["--input", "float32:5,6"]
FEW = ["--seeds", "2", "--dtype", "float16"]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """(exit code, standard output, standard error) of `jaxstab diagnose` in a folder with models of its own."""
    (tmp_path / "models_of_mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "models_of_mine", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["diagnose", *words])
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("name", ["Healthy", "instance", "small", "of_nnx", "function"])
def test_a_healthy_model_ends_with_zero(run, name):
    code, out, _ = run(f"models_of_mine:{name}", *X, *FEW)
    assert code == 0
    assert "grave" not in out
    assert "float32, float16: " in out.splitlines()[0]


def test_a_grave_finding_ends_with_three_and_names_the_line(run):
    code, out, _ = run("models_of_mine:Sick", *X, *FEW)
    assert code == 3
    line = 1 + next(i for i, text in enumerate(MODELS.splitlines()) if "jnp.log" in text)
    assert f"models_of_mine.py:{line}" in out


def test_json_stands_alone_on_standard_output(run):
    code, out, err = run("models_of_mine:Sick", *X, *FEW, "--json")
    found = json.loads(out)
    assert code == 3
    assert found["grave"]
    assert found["seeds"] == 2
    assert found["dtypes"] == ["float16"]
    code, out, err = run("models_of_mine:Healthy", *X, *FEW, "--json", "--loss", "models_of_mine:square")
    assert code == 0
    assert not json.loads(out)["grave"]
    assert "traced" in err  # what the model prints


def test_inputs_of_several_dtypes_one_after_another_or_each_by_itself(run):
    given = ["int32:5,7:0..11", "float32:5,7,1"]
    together = run("models_of_mine:tokens", "--input", *given, *FEW, "--json")
    apart = run("models_of_mine:tokens", "--input", given[0], "--input", given[1], *FEW, "--json")
    assert together[:2] == apart[:2]
    assert together[0] in (0, 3)
    assert run("models_of_mine:alone", *FEW)[0] in (0, 3)  # a function that takes its parameters alone


def test_the_picture_is_written(run, tmp_path):
    code, _, _ = run("models_of_mine:Healthy", *X, *FEW, "--plot", "new/rms.png")
    assert code == 0
    assert (tmp_path / "new/rms.png").stat().st_size > 5000


def test_what_inputs_are_drawn():
    x = parse_input("bfloat16:400,50")
    assert x.dtype == jnp.bfloat16
    assert abs(float(x.astype(jnp.float32).std()) - 1) < 5 / np.sqrt(2 * x.size)
    assert (x == parse_input("bfloat16:400,50")).all()
    assert (x != parse_input("bfloat16:400,50", 1)).any()
    tokens = parse_input("uint8:1000:250..256")
    assert tokens.dtype == jnp.uint8
    assert {*tokens.tolist()} == {*range(250, 256)}
    assert {*parse_input("int32:100").tolist()} == {0, 1}
    assert {*parse_input("bool:100").tolist()} == {False, True}
    assert parse_input("fp16:2,3").dtype == jnp.float16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models_of_mine", *X], ["'models_of_mine'", "module:name"]),
        (["no_such_models:f", *X], ["no_such_models"]),
        (["models_of_mine:Helthy", *X], ["'Helthy'", "'Healthy'"]),
        (["models_of_mine:wanting", *X], ["wanting", "width"]),
        (["models_of_mine:number", *X], ["int", "linen", "(function, parameters)"]),
        (["models_of_mine:MODELS", *X], ["'MODELS'", "Healthy"]),
        (["models_of_mine:Healthy"], ["--input", "float32:16,32"]),
        (["models_of_mine:Healthy", "--input", "float32"], ["float32", "DTYPE:SHAPE"]),
        (["models_of_mine:Healthy", "--input", "5,6"], ["'5,6'", "float32"]),
        (["models_of_mine:Healthy", "--input", "float63:5,6"], ["'float63'", "bfloat16", "int32"]),
        (["models_of_mine:Healthy", "--input", "float32:5,,6"], ["'5,,6'"]),
        (["models_of_mine:Healthy", "--input", "float32:5,0"], ["'5,0'", "at least 1"]),
        (["models_of_mine:Healthy", "--input", "float32:5,6:0..2"], ["0..2", "integers"]),
        (["models_of_mine:tokens", "--input", "int32:5:7"], ["'7'", "LOW..HIGH"]),
        (["models_of_mine:tokens", "--input", "int32:5:7..7"], ["7..7"]),
        (["models_of_mine:tokens", "--input", "int8:5:0..200"], ["0..200", "127"]),
        (["models_of_mine:tokens", "--input", "int8:5:0..2:3"], ["int8:5:0..2:3"]),
        (["models_of_mine:Healthy", *X, "--dtype", "float12"], ["float12", "float16"]),
        (["models_of_mine:Healthy", *X, "--seeds", "0"], ["seeds=0"]),
        (["models_of_mine:Healthy", *X, *X], ["Healthy", "float32[5, 6], float32[5, 6]"]),
        (["models_of_mine:Healthy", *X, "--loss", "models_of_mine:vector"], ["loss", "(5, 4)"]),
        (["models_of_mine:Healthy", *X, "--loss", "models_of_mine:X"], ["'X'"]),
        (["models_of_mine:Healthy", *X, "--plot", "rms.pgn"], ["'pgn'", "png"]),
        (["models_of_mine:Healthy", *X, "--plot", "/proc/no/such.png"], ["/proc/no/such.png"]),
        (["models_of_mine:Healthy", "--inptu", "float32:5,6"], ["--inptu", "--input"]),
    ],
)
def test_wrong_words_get_one_line_and_end_with_two(run, words, said):
    code, out, err = run(*words)
    lines = [line for line in err.strip().splitlines() if line != "traced"]
    assert code == 2
    assert out == ""
    assert len(lines) == 1, err
    assert all(word in lines[0] for word in said), err


def test_an_error_of_the_users_own_stays_what_it_is(tmp_path):
    (tmp_path / "models_of_mine.py").write_text(MODELS)
    words = [sys.executable, "-m", "jaxstab", "diagnose", "models_of_mine:broken", *X]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no checkpoint" in done.stderr
    assert "models_of_mine.py" in done.stderr


def test_help_loads_no_jax():
    words = "['diagnose', '--help']"
    code = f"import sys\nfrom jaxstab import cli\ntry: cli.main({words})\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--input" in done.stdout
