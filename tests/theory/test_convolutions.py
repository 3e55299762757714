"""Convolutions: pixel by pixel, against the recursion along one axis and the dense map."""

import doctest

import numpy as np
import pytest

from jaxstab.errors import UsageError
from jaxstab.theory import convolutions
from jaxstab.theory.convolutions import profiles
from jaxstab.theory.trajectories import trajectory


@pytest.mark.parametrize(
    ("side", "depth", "square"),
    [(8, 1, 0.8403), (8, 10, 0.3530), (8, 20, 0.1546), (16, 20, 0.4798), (32, 100, 0.3879)],
)
def test_zero_padding_is_a_product_of_two_axes(side, depth, square):
    """Mean over pixels of M^L 1 by axis, squared; digits as simulated elsewhere."""
    near = np.abs(np.subtract.outer(np.arange(side), np.arange(side))) <= 1
    axis = np.linalg.matrix_power(near / 3, depth) @ np.ones(side)
    for activation, sigma_w in (("linear", 1.0), ("relu", 2**0.5)):
        walked = profiles(activation, depth, sigma_w, side=side)
        np.testing.assert_allclose(np.exp(walked.log_profile[-1]), np.outer(axis, axis), rtol=1e-10)
        assert np.exp(walked.log_square[-1]) == pytest.approx(square, abs=6e-5)


@pytest.mark.parametrize(("side", "rate"), [(7, 0.901081), (8, 0.921207), (16, 0.977426), (32, 0.993972)])
def test_images_decay_at_the_largest_eigenvalue(side, rate):
    walked = profiles("linear", 400, 1.0, side=side)
    assert np.exp(walked.log_square[-1] - walked.log_square[-2]) == pytest.approx(
        rate, abs=2e-5 if side == 32 else 6e-7
    )
    assert rate == pytest.approx(((1 + 2 * np.cos(np.pi / (side + 1))) / 3) ** 2, abs=6e-7)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_circular_padding_is_the_dense_map(activation):
    numbers = (np.array([1.2, 1.7]), np.array([0.3, 0.0]))
    walked = profiles(
        activation, 9, *numbers, kernel=2, side=3, padding="circular", gains=np.linspace(0.9, 1.1, 9)
    )
    dense = trajectory(activation, 9, *numbers, c0=None, gains=np.linspace(0.9, 1.1, 9))
    np.testing.assert_allclose(walked.log_square, dense.log_square, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(walked.log_gradient, dense.log_gradient, rtol=1e-9, atol=1e-12)


def test_the_way_back_is_the_transpose_of_the_way_there():
    """sum_p g_p v_p is kept by linear layers, kernels of even side included."""
    for kernel in (2, 3, 4):
        there = profiles("linear", 1, 1.0, kernel=kernel, side=5).log_profile[0]
        back = np.exp(convolutions._log_patch_mean(np.zeros((5, 5)), kernel, "zero", is_back=True))
        assert np.exp(there).sum() == pytest.approx(back.sum())
        np.testing.assert_allclose(there, there.T, rtol=1e-12)
        assert (np.allclose(np.exp(there), back)) == (kernel % 2 == 1)


def test_examples_and_refusals():
    assert doctest.testmod(convolutions, extraglobs={"np": np}).failed == 0
    with pytest.raises(UsageError, match="unknown padding 'mirror'"):
        profiles("tanh", 2, 1.0, padding="mirror")
    with pytest.raises(UsageError, match="side=0"):
        profiles("tanh", 2, 1.0, side=0)
