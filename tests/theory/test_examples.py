"""The public names of `jaxstab.theory` are documented with examples, which run as they stand."""

import doctest

import numpy as np
import pytest

import jaxstab


@pytest.mark.parametrize("name", jaxstab.theory.__all__)
def test_examples_run_and_print_what_stands_below_them(name):
    finder, names = doctest.DocTestFinder(recurse=False), {"jaxstab": jaxstab, "np": np}
    (examples,) = finder.find(getattr(jaxstab.theory, name), name, globs=names)
    assert examples.examples
    report = []
    assert doctest.DocTestRunner().run(examples, out=report.append).failed == 0, "".join(report)
