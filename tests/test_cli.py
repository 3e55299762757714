"""The command line: what it says, how it ends, and that it answers before JAX is up."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import jaxstab
from jaxstab import cli
from jaxstab.cli import commands, understand
from jaxstab.cli.options import with_axes

SMALL = ["--depth", "6", "--width", "16", "--batch", "4", "--seeds", "3"]
ENGINE_TESTS = Path(__file__).parent / "engine"


def run(capsys, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_options_are_the_familys_parameters():
    for command, family in ((commands.Propagate, jaxstab.propagation), (commands.Train, jaxstab.training)):
        told = {f.name for f in dataclasses.fields(with_axes(command))} - {
            f.name for f in dataclasses.fields(command)
        }
        assert told == set(family.parameters)


def test_the_overview_tells_of_every_command_and_loads_no_jax(capsys):
    for words in ((), ("--help",)):
        code, out, _ = run(capsys, *words)
        assert code == 0
        assert all(f"$ {command.EXAMPLE}" in out for command in commands.COMMANDS.values())
    said = "import sys; from jaxstab.cli import overview; overview(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_explains_itself(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"Example: {commands.COMMANDS[name].EXAMPLE}" in out
    assert "(default: )" not in out
    family = {
        "propagate": jaxstab.propagation,
        "predict": jaxstab.propagation,
        "train": jaxstab.training,
    }.get(name)
    for parameter, doc in family.docs.items() if family else ():
        assert f"--{parameter.replace('_', '-')} VALUE" in out
        assert all(choice in out for choice in doc.choices)


@pytest.mark.parametrize("name", [name for name in commands.COMMANDS if name not in ("gain", "completion")])
def test_examples_are_commands(name):
    """Every example is understood as it stands; README's tests run them."""
    words = shlex.split(commands.COMMANDS[name].EXAMPLE)
    assert words[:2] == ["jaxstab", name]
    assert isinstance(understand(name, words[2:]), commands.COMMANDS[name])


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "propagation", "--grid", "depth=2", "width=4"],
        ["experiments", "sigmoid_gradient", "--scale", "smoke"],
    ],
)  # fmt: skip - two commands
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_runs(capsys, tmp_path, words):
    file = tmp_path / "file"
    file.write_text("kept")
    out = tmp_path if words[0] == "sweep" else file
    code, said, wrong = run(capsys, *words, "--out", str(out))
    assert (code, said) == (2, "")
    assert f"--out {out}: " in wrong
    assert wrong.count("\n") == 1
    assert file.read_text() == "kept"


def test_completion_knows_the_options(capsys):
    code, out, _ = run(capsys, "completion", "bash")
    assert not code
    assert "--skip-scale" in out
    assert "--weight-decay" in out


def test_gains(capsys):
    code, out, _ = run(capsys, "gain", "tanh", "relu", "gelu")
    assert code == 0
    assert "1.592537" in out
    assert "1.712859" in out
    code, out, _ = run(capsys, "gain", "tanh", "--json")
    assert json.loads(out)["tanh"]["backward"] == pytest.approx(1.467414, abs=1e-5)


def test_propagate_says_what_happens_and_which_gain_mends_it(capsys, tmp_path):
    picture = tmp_path / "new" / "stack.png"
    code, out, _ = run(capsys, "propagate", "--gain", "0.5", "1.6667", "--plot", str(picture), *SMALL)
    assert code == 0
    assert "ordered" in out
    assert "chaotic" in out
    assert "With gain=1 it would be -0.33 decades of signal" in out
    assert picture.stat().st_size > 5000


def test_propagate_json_is_one_object(capsys):
    code, out, _ = run(capsys, "propagate", "--activation", "relu", "--json", *SMALL)
    assert code == 0
    (one,) = json.loads(out)["configurations"]
    assert one["layers"][0]["layer"] == 1
    assert {"log10_forward_rms", "log10_forward_rms_theory", "log10_backward_rms_low"} <= set(
        one["layers"][0]
    )


def test_predict_needs_no_network(capsys):
    code, out, _ = run(capsys, "predict", "--activation", "linear", "--init", "normal", "--dtype", "float16")
    assert code == 0
    assert "Forecast for float16: signal not finite in all networks from layer 4." in out
    code, out, _ = run(capsys, "predict", "--kind", "lstm")
    assert code == 0
    assert "No theory is known" in out


def test_train_shows_how_each_configuration_ended(capsys, tmp_path):
    picture = tmp_path / "curves.png"
    words = [
        "train",
        "--hidden",
        "8+4",
        "--dropout",
        "0.1+0.2",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--plot",
        str(picture),
    ]
    code, out, _ = run(capsys, *words, "--learning-rate", "0.01", "0.1")
    assert code == 0
    assert out.count("test_accuracy") == 2
    assert picture.stat().st_size > 5000
    code, out, _ = run(capsys, *words, "--learning-rate", "0.01", "0.1", "--json")
    assert code == 0
    assert [c["settings"]["learning_rate"] for c in json.loads(out.splitlines()[0])["configurations"]] == [
        0.01,
        0.1,
    ]


def test_train_reads_the_folder_it_is_given_and_sets_no_variable(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXSTAB_FASHION_MNIST", raising=False)
    before = dict(os.environ)
    nowhere = tmp_path / "nowhere"
    code, _, err = run(capsys, "train", "--dataset", "fashion_mnist", "--fashion-mnist", str(nowhere))
    assert code == 1
    assert f"{nowhere} is not a folder" in err
    assert os.environ == before


def test_sweep_a_users_own_family_and_resume_it(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ENGINE_TESTS)
    axes = ["--grid", "steps=20", "learning_rate=linspace(0.05,0.5,3)", "--seeds", "4"]
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "data.nc")]
    words = ["sweep", "families:descent", *axes, *places, "--json"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert json.loads(out)["status"]["ok"] == 12
    assert (tmp_path / "data.nc").exists()
    assert run(capsys, *words)[0] == 0
    assert jaxstab.open_store(tmp_path / "store").loss.shape == (3, 4, 20)


def test_diverged_lanes_end_with_three_where_that_is_asked_for(capsys):
    words = [
        "sweep",
        "propagation",
        "--grid",
        "activation=linear",
        "init=normal",
        "depth=40",
        "batch=2",
        "--seeds",
        "2",
    ]
    assert run(capsys, *words, "--json")[0] == 0
    assert run(capsys, *words, "--json", "--fail-on-divergence")[0] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["propgate"], ["'propgate'", "'propagate'"]),
        (["propagate", "--gian", "2"], ["--gian", "--gain"]),
        (["propagate", "--activation", "rlu"], ["'rlu'", "'relu'"]),
        (["propagate", "--depth", "0"], ["depth=0"]),
        (["propagate", "--batch", "-1"], ["batch=-1"]),
        (["propagate", "--gain", "big"], ["gain='big'"]),
        (["propagate", "--seeds", "0"], ["seeds=0"]),
        (["train", "--hidden", "0"], ["hidden=(0,)"]),
        (["train", "--dropout", "1.5"], ["dropout=1.5"]),
        (["train", "--dataset", "mnist"], ["'mnist'", "digits"]),
        (["gain", "tnah"], ["'tnah'", "'tanh'"]),
        (["sweep", "nothing"], ["'nothing'", "propagation"]),
        (["sweep", "no_such_module:family"], ["no_such_module"]),
        (["sweep", "json:dumps"], ["json:dumps", "@jaxstab.family"]),
        (["sweep", "propagation", "--grid", "gain"], ["'gain'", "NAME=VALUE"]),
        (["sweep", "propagation", "--grid", "gain=linspace(1,2)"], ["linspace(1,2)"]),
        (["sweep", "propagation", "--grid", "gian=1"], ["'gian'", "'gain'"]),
        (["predict", "--plot", "/proc/no/such.png"], ["/proc/no/such.png"]),
    ],
)
def test_wrong_words_get_one_line_and_end_with_two(capsys, words, said):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert all(word in err for word in said)


def test_help_loads_no_jax():
    code = "import sys\nfrom jaxstab import cli\ntry: cli.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "propagate" in done.stdout


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m jaxstab gain tanh relu gelu | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=os.environ)
    assert done.stdout.startswith("activation")
    assert "Traceback" not in done.stderr
