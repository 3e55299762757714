"""The wheel holds the library and the experiments; the sdist what builds and tests them."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from experiments.__main__ import NAMES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))))


def test_the_wheel_holds_what_runs(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxstab").rglob("*") if path.suffix != ".pyc"}
    files = {name for name in ours if (ROOT / name).is_file()}
    assert {"jaxstab/py.typed", "jaxstab/report/page.html", "jaxstab/report/jaxstab.mplstyle"} <= files
    assert files <= held
    tops = {name.split("/")[0] for name in held}
    assert tops == {"jaxstab", next(name for name in tops if name.endswith(".dist-info"))}
    assert not any("benchmarks" in name or "gallery" in name for name in held)


def test_experiments_run_from_a_wheel_far_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "JAXSTAB_CACHE": "off"}
    words = [sys.executable, "-m", "jaxstab", "experiments"]
    run = lambda *more: subprocess.run(  # noqa: E731
        [*words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert list(json.loads(run("--list", "--json").stdout)) == [*NAMES]
    (one,) = {
        c["experiment"] for c in json.loads(run("gain_table", "--scale", "smoke", "--json").stdout)["claims"]
    }
    assert one == "gain_table"
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000


def test_the_metadata_say_who_what_and_under_which_licence(wheel):
    with zipfile.ZipFile(wheel) as held:
        (name,) = [name for name in held.namelist() if name.endswith("/METADATA")]
        said = email.message_from_bytes(held.read(name))
    for field in (
        "Name",
        "Version",
        "Summary",
        "Author",
        "License-Expression",
        "Keywords",
        "Requires-Python",
    ):
        assert said[field], field


def test_the_sdist_builds_and_tests(tmp_path):
    path = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path)))
    with tarfile.open(path) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "experiments/tour.ipynb"} <= held
    assert "experiments/gallery/stack.png" in held
    assert not any(name.startswith((".ci", "results")) for name in held)
