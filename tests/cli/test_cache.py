"""Programs kept from one process to the next: the same numbers, nothing compiled again, no other cache touched."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from jaxstab.cli import cache

COMMAND = [
    sys.executable,
    "-m",
    "jaxstab",
    "propagate",
    "--depth",
    "3",
    "--width",
    "16",
    "--batch",
    "2",
    "--seeds",
    "2",
    "--json",
]  # fmt: skip - a command


def run(**environment):
    asked = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAXSTAB_CACHE", "JAX_COMPILATION_CACHE_DIR")
    }
    done = subprocess.run(COMMAND, env=asked | environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_program_that_was_kept_gives_the_same_bits_and_is_not_compiled_again(tmp_path):
    plain = run(JAXSTAB_CACHE="off")
    folder = tmp_path / "kept"
    assert run(JAXSTAB_CACHE=str(folder)) == plain
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*-cache")}
    assert len(kept) >= 1
    assert run(JAXSTAB_CACHE=str(folder)) == plain
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*-cache")} == kept


def test_the_users_folder_is_where_it_is_looked_for(tmp_path):
    run(XDG_CACHE_HOME=str(tmp_path / "home"))
    assert list((tmp_path / "home" / "jaxstab").rglob("*-cache"))


@pytest.fixture
def configuration():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
             "jax_persistent_cache_min_entry_size_bytes", "jax_compilation_cache_max_size")  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_off_and_jaxs_own_are_left_as_they_are(monkeypatch, tmp_path, configuration):
    monkeypatch.setenv("JAXSTAB_CACHE", "OFF")
    assert cache.keep_programs() is None
    assert not jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAXSTAB_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert cache.keep_programs() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")


def test_a_folder_that_cannot_be_made_costs_nothing(monkeypatch, tmp_path, configuration):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXSTAB_CACHE", str(tmp_path / "file" / "below"))
    assert cache.keep_programs() is None
    assert not jax.config.jax_compilation_cache_dir


def test_the_library_keeps_nothing_unasked():
    code = "import jax, jaxstab; jaxstab.propagate(1, depth=1); print(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
