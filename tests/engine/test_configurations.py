"""Configurations in columns are those that a loop over them one by one would make."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxstab
from jaxstab.engine.configurations import by_spec
from jaxstab.trials.family import Family

SPACES = {
    "one": jaxstab.grid(gain=1.5),
    "grid": jaxstab.grid(gain=[0.5, 1.0, 2.0], activation=["relu", "tanh"], depth=[3, 4]),
    "aliases are one Spec": jaxstab.grid(init=["he_normal", "orthogonal", "xavier_normal"], gain=[1, 2])
    * jaxstab.zipped(width=[8, 9], sigma_b=[0.0, 0.1]),
    "sample": jaxstab.sample(
        9,
        jax.random.key(1),
        gain=jaxstab.uniform(0.5, 2.0),
        activation=jaxstab.choice(["relu", "tanh"]),
        depth=jaxstab.choice([2, 3]),
    ),
}


def one_by_one(family, space):
    found = {}
    for number, settings in enumerate(space.configurations()):
        spec, hparams = family.configure(settings)
        found.setdefault(spec, []).append((number, hparams))
    return found


@pytest.mark.parametrize("name", SPACES)
def test_columns_are_the_configurations_one_by_one(name):
    groups = by_spec(jaxstab.propagation, SPACES[name])
    wanted = one_by_one(jaxstab.propagation, SPACES[name])
    assert [jaxstab.propagation.settle([own.spec])[0][0] for own in groups] == list(wanted)
    for own, lanes in zip(groups, wanted.values(), strict=True):
        assert own.members.tolist() == [number for number, _ in lanes]
        assert [own.one(i) for i in range(len(lanes))] == [hparams for _, hparams in lanes]


def test_a_tuple_is_a_column_for_each_of_its_numbers():
    axes = {"hidden": {"one": (4,), "two": (4, 5)}, "learning_rate": [0.1, 0.2]}
    space = jaxstab.zipped(dropout={"a": (0.5,), "b": (0.1, 0.2)}, hidden=axes["hidden"])
    groups = by_spec(jaxstab.training, space * jaxstab.grid(learning_rate=[0.1, 0.2]))
    assert [own.one(1).dropout for own in groups] == [(0.5,), (0.1, 0.2)]
    with pytest.raises(jaxstab.UsageError, match="dropout: 1 rates; one for each of 2 hidden layers"):
        jaxstab.train(1, hidden={"two": (4, 5)}, dropout={"a": (0.5,), "b": (0.1,)})
    with pytest.raises(jaxstab.UsageError, match=r"dropout: .* hold \[1, 2\] numbers; one length"):
        jaxstab.train(1, hidden={"two": (4, 5)}, dropout={"a": (0.5,), "b": (0.1, 0.2)})


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"gian": [1.0]}, "'gian'.*gain"),
        ({"gain": [1.0, "high"]}, "gain='high': a number"),
        ({"sigma_b": [0.1, -0.5]}, "sigma_b=-0.5: a standard deviation"),
        ({"depth": [3, 0]}, "depth=0: at least 1"),
    ],
)
def test_what_cannot_be_meant_is_named(axes, words):
    with pytest.raises(jaxstab.UsageError, match=words) as refusal:
        by_spec(jaxstab.propagation, jaxstab.grid(**axes))
    assert "\n" not in str(refusal.value)


def test_the_work_grows_with_the_values_of_the_axes_and_not_with_their_product(monkeypatch):
    calls = []
    real = Family.coerce
    monkeypatch.setattr(Family, "coerce", lambda *given: calls.append(given[1]) or real(*given))
    space = jaxstab.grid(
        gain=np.linspace(1, 2, 300), sigma_b=np.linspace(0, 1, 200), activation=["relu", "tanh"]
    )
    groups = by_spec(jaxstab.propagation, space)
    assert len(calls) == 300 + 200 + 2
    assert [len(own.members) for own in groups] == [60_000, 60_000]
