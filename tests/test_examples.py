"""What is documented with examples prints what stands below them."""

import doctest
import math

import numpy as np
import pytest
import xarray as xr

import jaxstab

TAUGHT = [jaxstab.explain, jaxstab.quantiles, jaxstab.gain, jaxstab.critical_initialization]
TAUGHT += [getattr(jaxstab.theory, name) for name in jaxstab.theory.__all__]


@pytest.mark.parametrize("function", TAUGHT, ids=lambda function: function.__name__)
def test_examples_run_and_print_what_stands_below_them(function):
    names = {"jaxstab": jaxstab, "np": np, "xr": xr, "math": math, function.__name__: function}
    (examples,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=names)
    assert examples.examples
    report = []
    assert doctest.DocTestRunner().run(examples, out=report.append).failed == 0, "".join(report)
