"""Roots of functions with and without a change of sign."""

import numpy as np
import pytest

from jaxstab.theory.roots import root_between


def test_roots_of_several_functions():
    wanted = np.array([0.3, -2.0, 5.0])
    found = root_between(
        lambda x, at: (x - at) ** 3 + (x - at), np.full(3, -10.0), np.full(3, 10.0), [wanted]
    )
    assert found == pytest.approx(wanted, abs=1e-11)


def test_an_end_that_is_the_root_up_to_rounding():
    low, high = np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 2.0])
    found = root_between(lambda x, at: x - at, low, high, [np.array([-1e-18, 1 + 1e-15, np.nan])])
    assert found[:2].tolist() == [0.0, 1.0]
    assert np.isnan(found[2])


def test_a_jump_is_a_change_of_sign():
    found = root_between(lambda x: np.where(x < 0.123, -1.0, 1.0), np.zeros(1), np.ones(1), error=1e-15)
    assert found == pytest.approx(0.123, abs=1e-14)


def test_a_large_root_is_found_to_rounding():
    found = root_between(
        lambda x: np.where(x < 1.23e9, -1.0, 1.0), np.zeros(1), np.full(1, 1e10), error=1e-15
    )
    assert found == pytest.approx(1.23e9, rel=1e-15)


def test_none_of_nothing():
    assert root_between(lambda x: x, np.zeros(0), np.ones(0)).shape == (0,)
