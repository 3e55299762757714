"""Checks of samples whose tolerance is the sample's own standard error."""

from __future__ import annotations

import numpy as np
from scipy import stats

STANDARD_ERRORS = 5.0


def assert_mean_matches(sample, predicted, axis=0):
    """The mean of `sample` over `axis` is within five of its own standard errors of `predicted`."""
    sample = np.asarray(sample, np.float64)
    error = sample.std(axis, ddof=1) / np.sqrt(sample.shape[axis])
    distance = np.abs(sample.mean(axis) - predicted)
    worst = np.max(distance / error)
    assert np.all(distance <= STANDARD_ERRORS * error), f"{worst:.1f} standard errors apart"


def assert_same_law(a, b, least_p=1e-4):
    """Two samples pass the two-sample Kolmogorov-Smirnov test."""
    p = stats.ks_2samp(np.asarray(a).ravel(), np.asarray(b).ravel()).pvalue
    assert p > least_p, f"Kolmogorov-Smirnov p = {p:.1e}"


def assert_law(sample, cdf, least_p=1e-4):
    """A sample passes the Kolmogorov-Smirnov test against a distribution function."""
    p = stats.kstest(np.asarray(sample).ravel(), cdf).pvalue
    assert p > least_p, f"Kolmogorov-Smirnov p = {p:.1e}"
