"""The benchmarks' arithmetic, and that who races there does the same work."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from experiments.benchmarks import __main__ as command
from experiments.benchmarks import fit_peers, limits, scaling, stack_peers
from experiments.benchmarks.race import LEAST_P, Contest, Contestant, race, ratios, same_law, shares
from experiments.benchmarks.stacks import ours as our_stacks
from jaxstab.data import datasets
from jaxstab.report import figures


def contest(**more):
    contestants = {
        "ours": Contestant(lambda: None, 4, is_ours=True, normals=100.0),
        "slow": Contestant(lambda: None, 1),
        "fast": Contestant(lambda: None, 1),
    }
    return Contest("work", "network", contestants, **more)


def test_a_ratio_is_the_median_of_the_rounds_own_against_the_fastest_or_the_one_named():
    seconds = {"ours": [1.0, 2.0, 4.0], "slow": [30.0, 30.0, 30.0], "fast": [10.0, 10.0, 10.0]}
    found = ratios(contest(), seconds)["ours"]
    assert np.isnan(found.pop("interval")).all()  # of three rounds there is none
    assert found == {"against": "fast", "factor": 5.0, "target": None}
    found = ratios(contest(targets={"ours": (12, "slow")}), seconds)["ours"]
    assert (found["against"], found["factor"], found["target"]) == ("slow", 15.0, 12)


def test_a_ratios_interval_holds_the_true_one_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        ours, other = np.exp(0.1 * rng.standard_normal((2, 12)))
        low, high = ratios(contest(), {"ours": ours, "fast": 2 * other, "slow": 9 * other})["ours"][
            "interval"
        ]
        covered += low <= 2.0 <= high
    assert 0.93 < covered / 400 <= 1.0


def test_a_share_is_work_over_time_over_the_limit():
    assert shares(contest().contestants["ours"], 0.5, {"normals": 400.0, "float32": 1.0}) == {"normals": 0.5}


def test_everybody_runs_in_every_round_and_the_table_tells_all():
    calls = []
    contestants = {
        name: Contestant(lambda name=name: calls.append(name), 2, name == "a") for name in ("a", "b")
    }
    result = race(Contest("work", "lane", contestants, {"a": (2, "b")}, lambda: {"a": 0.5}), 3, {})
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]  # a first call, then in turn, forth and back
    text = command.table(result)
    for word in ("**work**", "| **a** |", "| b |", "times b (target 2)", "a p = 0.5", "ms a lane"):
        assert word in text
    assert "NOT THE SAME LAW" in command.table(result | {"agree": {"a": LEAST_P / 2}})


def test_the_peers_stacks_have_our_law():
    for backward in (False, True):
        shape = stack_peers.Shape(6, 24, 4, backward)
        mine = our_stacks(shape, "dense", 256)
        assert mine.shape == (256, 6)
        for peer in (stack_peers.jax_vmap(shape)(256), stack_peers.by_numpy(shape, 256)):
            assert same_law(mine[:, -1 if not backward else 0], peer[:, -1 if not backward else 0]) > LEAST_P
        assert same_law(mine, 1.1 * mine) < LEAST_P


def test_the_peers_regressions_have_one_law():
    by_numpy = fit_peers.polynomial_by_numpy(4, 20, 100)[:, 0]
    by_optax = fit_peers.polynomial_by_optax(4, 20)(100)[:, 0]
    assert same_law(by_numpy, by_optax) > LEAST_P
    assert same_law(by_numpy, 1.2 * by_optax) < LEAST_P


@pytest.mark.parametrize("way", ["torch", "torch.func"])
def test_the_peers_in_torch_have_our_law(way):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra [bench])")
    run = stack_peers.by_torch if way == "torch" else stack_peers.by_torch_func
    for backward in (False, True):
        shape = stack_peers.Shape(4, 16, 3, backward)
        layer = 0 if backward else -1
        peer = run(torch, shape, "cpu", 128)
        assert same_law(our_stacks(shape, "conditioned", 256)[:, layer], peer[:, layer]) > LEAST_P
    if way == "torch.func":
        norms = fit_peers.decay_by_torch_func(torch, "cpu", 3, 100)
        assert same_law(fit_peers.decay_by_numpy(3, 100), norms) > LEAST_P
        assert same_law(fit_peers.decay_by_numpy(2, 100), norms) < LEAST_P
        weights = fit_peers.polynomial_by_torch_func(torch, "cpu", 4, 20, 100)[:, 0]
        assert same_law(fit_peers.polynomial_by_numpy(4, 20, 100)[:, 0], weights) > LEAST_P
        data = datasets.load("digits")
        losses = fit_peers.classifier_by_torch_func(torch, "cpu", data, 2, 256, 20)
        assert same_law(fit_peers.classifier_by_optax(data, 2, 256)(20), losses) > LEAST_P


def test_every_name_has_its_benchmark():
    for name in command.NAMES:
        if name != "scaling":
            module = importlib.import_module(f"experiments.benchmarks.{command.MODULES[name]}")
            assert callable(getattr(module, name))


def test_a_small_run_writes_tables_and_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(limits, "measure", lambda *_: {"normals": 1e8})
    assert command.main(("compilation",), out=tmp_path, rounds=1, scale=0.01) == 0
    (folder,) = tmp_path.iterdir()
    assert "0 compilations" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"benchmarks.json", "benchmarks.md"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": ("deepstack",)}, "deepstack"),
        ({"rounds": 0}, "rounds 0"),
        ({"scale": -1.0}, "scale -1"),
    ],
)
def test_wrong_words_are_refused(arguments, words, tmp_path):
    names = arguments.pop("names", ())
    with pytest.raises(ValueError, match=words):
        command.main(tuple(names), out=tmp_path, **arguments)


def test_memory_of_conditioned_stacks_does_not_grow_with_the_matrices():
    explicit = scaling.mebibytes("dense", depth=4, width=512)
    conditioned = scaling.mebibytes("conditioned", depth=4, width=512)
    assert conditioned < explicit / 2


def test_scaling_is_drawn():
    curves = {panel: {"explicit": [[1, 2.0], [10, 3.0]]} for panel in scaling.LABELS}
    curves["width"] = {"conditioned": [[64, 1.0], [128, 2.0]]}
    with figures.style():
        assert len(scaling.plot(curves).axes) == len(scaling.LABELS) + 1  # and the legend's
