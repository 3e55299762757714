"""The table of outputs reaches every variable and coordinate, in memory and on disk."""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp
import pytest
import xarray as xr

import jaxstab
from jaxstab.report.record import Record, write_netcdf
from jaxstab.trials.outputs import Doc, Output, measured, predicted


def everything_said(data: xr.Dataset) -> list[str]:
    """Variables without a long name, numbers without a unit, and names with one."""
    return [
        name
        for name, one in data.variables.items()
        if "long_name" not in one.attrs or (one.dtype.kind in "biuf") != ("units" in one.attrs)
    ]


def test_every_variable_and_coordinate_says_what_it_is(tmp_path):
    data = jaxstab.propagate(seeds=2, depth=[2, 3], width=4, batch=2, gain=[1.0, 2.0], activation="relu")
    assert everything_said(data) == []
    assert data.gain.attrs["long_name"] == "factor on the weights"
    write_netcdf(Record(data), tmp_path / "data.nc")
    read = xr.load_dataset(tmp_path / "data.nc", engine="scipy")
    assert everything_said(read) == []
    assert read.correlation.attrs == data.correlation.attrs
    assert "undefined" in read.correlation.attrs
    trained = jaxstab.train(seeds=1, epochs=1, hidden=4, batch_size=512)
    assert everything_said(trained) == []
    assert trained.test_accuracy.attrs["diverged_counts_as"] == float("-inf")


def test_theorys_rows_say_so():
    data = jaxstab.predict(depth=3, width=8, batch=2)
    assert everything_said(data) == []
    assert data.forward_rms.attrs["long_name"].endswith("predicted")


def test_a_users_family_says_what_it_is_told_and_its_names_else():
    @jaxstab.family(dims={"path": ("step",)}, outputs={"score": Output((), "final score", "m")})
    def walk(key, *, size: Annotated[float, Doc("step size", "m")] = 1.0, number_of_steps: int = 3):
        return {"path": size * jnp.ones(number_of_steps), "score": size}

    data = jaxstab.sweep(walk, jaxstab.grid(size=[1.0, 2.0]), 2)
    assert everything_said(data) == []
    assert data.score.attrs == {"long_name": "final score", "units": "m"}
    assert data["size"].attrs == {"long_name": "step size", "units": "m"}
    assert data.path.attrs["long_name"] == "path"


@pytest.mark.parametrize("family", [jaxstab.propagation, jaxstab.training], ids=lambda f: f.name)
def test_the_table_names_exactly_what_is_measured(family):
    seeds, small = (
        1,
        {"depth": 2, "width": 4, "batch": 2}
        if family is jaxstab.propagation
        else {"epochs": 1, "hidden": (4,), "batch_size": 512},
    )
    import jax

    outputs = jax.eval_shape(lambda key: family(key, **small), jax.random.key(seeds))
    assert set(outputs) - {"status"} == set(measured(family.outputs)) - {"forward_profile"}


def test_theory_names_exactly_what_the_table_says():
    told = jaxstab.predict(depth=2, width=4, batch=2)
    of_images = jaxstab.predict(depth=2, width=4, batch=2, kind="convolution", side=2)
    assert set(of_images.data_vars) == set(predicted(jaxstab.propagation.outputs))
    assert set(of_images.data_vars) - set(told.data_vars) == {"forward_profile"}
