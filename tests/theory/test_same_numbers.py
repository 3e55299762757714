"""Maps, fixed points, depth scales and trajectories give the numbers that an earlier derivation of them gave.

`before.npz` holds those of the code before maps, moments and root finders were shared. Run as a program, this file
writes what the present code gives.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxstab import theory
from jaxstab.theory import finite_width
from jaxstab.theory.activations import ACTIVATIONS

KINDS = ("plain", "residual", "normalized")
BEFORE = Path(__file__).with_name("before.npz")
SIGMA_W, SIGMA_B = np.array([0.5, 0.9, 1.7, 3.0])[:, None], np.array([0.0, 0.3])
COLUMNS = ("log_square", "log_gradient", "correlation", "saturated_fraction", "relative_mean")
Q, C = np.array([1e-6, 0.1, 1.0, 30.0]), np.array([-0.5, 0.0, 0.6, 0.95])


def numbers(name):
    """Name -> array, of one activation."""
    point = theory.fixed_point(name, SIGMA_W, SIGMA_B)
    found = {
        "q_map": theory.q_map(name, Q[:, None, None], SIGMA_W, SIGMA_B),
        "chi": theory.chi(name, Q, SIGMA_W),
        "c_map": theory.c_map(name, C[:, None, None], Q[1:3, None], 1.7, SIGMA_B),
        "q": point.q,
        "chi_star": point.chi,
        "slope": point.slope,
        "correlation": theory.correlation_fixed_point(name, SIGMA_W, SIGMA_B),
        "depth_scale_gradient": theory.depth_scale_gradient(name, SIGMA_W, SIGMA_B),
        "depth_scale_length": theory.depth_scale_length(name, SIGMA_W, SIGMA_B),
        "depth_scale_correlation": theory.depth_scale_correlation(name, SIGMA_W, SIGMA_B),
    }
    for kind in KINDS:
        walked = theory.trajectory(name, 5, np.array([0.5, 1.7, 3.0]), 0.1, kind=kind, c0=0.2)
        found |= {f"{kind}_{what}": getattr(walked, what) for what in COLUMNS}
    interval = finite_width.log10_rms_interval(name, 16, 5)
    return found | {
        "interval_low": interval.low,
        "interval_median": interval.median,
        "interval_high": interval.high,
    }


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_numbers_are_those_of_before(name):
    with np.load(BEFORE, allow_pickle=False) as before:
        for what, now in numbers(name).items():
            close = 1e-7 if "correlation" in what else 1e-9
            then = before[what][list(ACTIVATIONS).index(name)]
            if what.startswith("depth_scale"):  # the rates: where they are 0, scales are inf up to rounding
                now, then = 1 / now, 1 / then
            np.testing.assert_allclose(now, then, rtol=close, atol=close / 10, err_msg=what)


if __name__ == "__main__":
    columns = [numbers(name) for name in ACTIVATIONS]
    np.savez_compressed(sys.argv[1], **{what: np.stack([c[what] for c in columns]) for what in columns[0]})
