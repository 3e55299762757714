"""Spaces: what an axis may be, and how configurations are walked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxstab
from jaxstab.engine.space import parse_seeds


def test_a_grid_is_the_product_of_its_lists_at_its_scalars():
    space = jaxstab.grid(a=[1, 2], b=np.array([0.5, 1.5, 2.5]), c=7)
    assert space.shape == (2, 3)
    found = list(space.configurations())
    assert found[0] == {"a": 1, "b": 0.5, "c": 7}
    assert found[1] == {"a": 1, "b": 1.5, "c": 7}
    assert len(space) == len(found) == 6


def test_values_that_are_no_scalars_have_labels():
    space = jaxstab.grid(hidden={"small": (8,), "deep": (8, 8)}, activation=[jnp.tanh, "relu"])
    assert space.axes[0].labels == ("small", "deep")
    assert space.axes[1].labels == ("tanh", "relu")


def test_zipped_axes_advance_together():
    space = jaxstab.zipped(a=[1, 2, 3], b=[4, 5, 6], c=0)
    assert [c["a"] + c["b"] + c["c"] for c in space.configurations()] == [5, 7, 9]
    assert space.dimensions[0].name == "configuration"


def test_products_of_spaces():
    space = jaxstab.zipped(a=[1, 2], b=[3, 4]) * jaxstab.grid(c=[5, 6, 7])
    assert space.shape == (2, 3)
    assert [(x["a"], x["b"], x["c"]) for x in space.configurations()][:4] == [
        (1, 3, 5),
        (1, 3, 6),
        (1, 3, 7),
        (2, 4, 5),
    ]


def test_samples_follow_their_distributions_and_do_not_depend_on_each_other():
    key = jax.random.key(3)
    space = jaxstab.sample(
        2000,
        key,
        gain=jaxstab.log_uniform(0.01, 100),
        sigma=jaxstab.uniform(1, 3),
        init=jaxstab.choice(["a", "b"]),
        tail=stats.expon(),
        fixed=4,
    )
    found = list(space.configurations())
    assert stats.kstest(np.log10([c["gain"] for c in found]), stats.uniform(-2, 4).cdf).pvalue > 1e-3
    assert stats.kstest([c["sigma"] for c in found], stats.uniform(1, 2).cdf).pvalue > 1e-3
    assert stats.kstest([c["tail"] for c in found], stats.expon().cdf).pvalue > 1e-3
    assert 850 < sum(c["init"] == "a" for c in found) < 1150
    assert {c["fixed"] for c in found} == {4}
    alone = jaxstab.sample(2000, key, sigma=jaxstab.uniform(1, 3))
    assert [c["sigma"] for c in alone.configurations()] == [c["sigma"] for c in found]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: jaxstab.grid(gain=[]), ["'gain'", "empty"]),
        (lambda: jaxstab.grid(gain=[1, 2, 1]), ["'gain'", "1", "twice"]),
        (lambda: jaxstab.grid(gain=[[1, 2]]), ["'gain'", "label"]),
        (lambda: jaxstab.grid(gain=np.ones((2, 2))), ["'gain'", "2 dimensions"]),
        (lambda: jaxstab.grid(seed=[1]), ["'seed'", "seeds="]),
        (lambda: jaxstab.zipped(a=[1, 2], b=[1]), ["{'a': 2, 'b': 1}"]),
        (lambda: jaxstab.zipped(a=1), ["list"]),
        (lambda: jaxstab.grid(a=[1, 2]) * jaxstab.grid(a=[3]), ["'a'", "twice"]),
        (lambda: jaxstab.sample(0, jax.random.key(0), a=jaxstab.uniform(0, 1)), ["n=0"]),
        (lambda: jaxstab.sample(3, jax.random.key(0), a=[1, 2]), ["a=[1, 2]", "choice"]),
        (lambda: jaxstab.uniform(2, 1), ["uniform(2, 1)"]),
        (lambda: jaxstab.log_uniform(0, 1), ["log_uniform(0, 1)"]),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(make, words):
    with pytest.raises(jaxstab.UsageError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_seeds():
    assert parse_seeds(3).tolist() == [0, 1, 2]
    assert parse_seeds([7, 2]).tolist() == [7, 2]
    assert parse_seeds(np.array([2**31 - 1])).tolist() == [2**31 - 1]
    wrong = [
        (0, "seeds=0"),
        (True, "True"),
        (1.5, "1.5"),
        ("ab", "ab"),
        ([], "empty"),
        ([1, 2, 1], "1 repeats"),
    ]
    wrong += [([-1], "-1"), ([2**31], str(2**31)), ([0.5], "0.5")]
    for bad, word in wrong:
        with pytest.raises(jaxstab.UsageError, match=word.replace("^", r"\^")):
            parse_seeds(bad)
