"""The store: what is written once comes back, and nothing that is damaged or another's is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from families import descent

import jaxstab
from jaxstab.engine.program import Program
from jaxstab.engine.store import MANIFEST, Store

SPACE = jaxstab.grid(steps=[20, 30], learning_rate=[0.05, 0.5, 3.0])
SEEDS = 60


def run(store=None, seeds=SEEDS, space=SPACE, **keywords):
    return jaxstab.sweep(descent, space, seeds, store=store, tile=2, **keywords)


def digest(folder: Path) -> dict[str, bytes]:
    """Names and contents of everything that counts in a store."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".npz", ".json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


@pytest.fixture
def copy(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())


def test_a_stored_sweep_is_the_unstored_one_and_opens_again(finished):
    folder, data = finished
    same(data, run())
    same(data, jaxstab.open_store(folder))
    only = jaxstab.open_store(folder, keep=["loss"])
    assert set(only.data_vars) == {"loss", "status"}


def test_the_same_call_runs_nothing_again(copy, finished, monkeypatch):
    monkeypatch.setattr(Program, "start", lambda *_: pytest.fail("a finished lane ran again"))
    same(run(copy), finished[1])


def test_lost_chunks_and_only_these_run_again(copy, finished):
    chunks = sorted(copy.glob("*.npz"))
    kept = {p: p.stat().st_mtime_ns for p in chunks[1:]}
    chunks[0].unlink()
    partial = jaxstab.open_store(copy)
    assert (partial.status == -1).any()
    assert np.isnan(partial.loss.where(partial.status == -1, drop=True)).all()
    same(run(copy), finished[1])
    assert digest(copy) == digest(finished[0])
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_chunk_does_not_count(copy, finished, damage):
    victim = sorted(copy.glob("*.npz"))[0]
    content = bytearray(victim.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    victim.write_bytes(
        {"truncated": content[: len(content) // 2], "flipped": content, "emptied": b""}[damage]
    )
    opened = jaxstab.open_store(copy)
    assert opened.attrs["damaged_chunks"] == 1
    assert (opened.status == -1).any()
    same(run(copy), finished[1])
    assert digest(copy) == digest(finished[0])


def test_more_seeds_grow_a_sweep(copy):
    same(run(copy, seeds=SEEDS + 15), run(seeds=SEEDS + 15))
    same(jaxstab.open_store(copy), run(seeds=SEEDS + 15))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"space": jaxstab.grid(steps=[20, 30], learning_rate=[0.05, 0.5, 4.0])},
            ["learning_rate[2]", "3.0", "4.0"],
        ),
        ({"seeds": [5, 60]}, ["seeds"]),
        ({"keep": []}, ["outputs"]),
    ],
)
def test_another_sweep_on_the_folder_is_refused_by_its_difference(copy, finished, change, words):
    with pytest.raises(jaxstab.UsageError) as caught:
        run(copy, **change)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in ["another sweep", *words])
    assert digest(copy) == digest(finished[0])


@pytest.mark.parametrize("field", ["versions", "thread_pool", "xla_flags", "compiler_options"])
def test_another_environment_is_refused(copy, field, monkeypatch):
    from jaxstab.engine import identity

    real = identity.environment(jax.devices()[0])
    monkeypatch.setattr(identity, "environment", lambda device: real | {field: "other"})
    with pytest.raises(jaxstab.UsageError, match=field):
        run(copy)


def edit(folder: Path, **changes) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def test_manifests_that_cannot_be_trusted(copy, tmp_path):
    for change, word in [({"groups": []}, "by hand"), ({"schema": 99}, "schema 99")]:
        before = (copy / MANIFEST).read_text()
        edit(copy, **change)
        for call in (run, jaxstab.open_store):
            with pytest.raises(jaxstab.UsageError, match=word):
                call(copy)
        (copy / MANIFEST).write_text(before)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(jaxstab.UsageError, match="damaged"):
        jaxstab.open_store(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(jaxstab.UsageError, match="no sweep"):
        jaxstab.open_store(copy)
    with pytest.raises(jaxstab.UsageError, match="chunks but no"):
        run(copy)
    with pytest.raises(jaxstab.UsageError, match="no sweep"):
        jaxstab.open_store(tmp_path / "nowhere")


def test_a_folder_that_another_process_holds_is_refused(copy):
    holder = (
        "from jaxstab.engine.store import Store\n"
        f"with Store({str(copy)!r}).hold(): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(jaxstab.UsageError, match="another process"):
            run(copy)
        other.communicate(b"\n")
    run(copy)


def test_a_disk_that_is_full_loses_no_good_chunk(tmp_path, monkeypatch, finished):
    writes, real = [], os.fsync

    def full_after_three(descriptor):
        writes.append(descriptor)
        if len(writes) == 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_three)
    with pytest.raises(jaxstab.UsageError, match="No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.npz"))) == 1
    assert not list(tmp_path.glob(".*"))
    run(tmp_path)
    assert digest(tmp_path) == digest(finished[0])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(jaxstab.UsageError, match="cannot be written"):
        run(tmp_path / "file" / "store")


def test_memory_that_runs_out_changes_no_bit(finished, monkeypatch):
    real, calls = Program.start, []
    for failing in range(2):
        calls.clear()

        def start(self, *arguments, failing=failing):
            calls.append(self.capacity)
            if len(calls) == failing + 1:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return real(self, *arguments)

        monkeypatch.setattr(Program, "start", start)
        same(run(), finished[1])
        assert len(calls) > failing


def test_too_little_memory_names_the_tile_that_would_fit():
    devices = jax.local_device_count()
    for room, words in [
        (1200, r"a tile of 2 lanes does not fit.*tile=1 would"),  # known once it is compiled
        (750, r"steps=20: an array of 1 KiB, and a device has room for 750 bytes; tile=1 would fit"),
        (125, r"an array of 1 KiB, and a device has room for 125 bytes; smaller sizes might"),
    ]:
        with pytest.raises(jaxstab.UsageError, match=words):
            run(memory=devices * room)
    for bad in (0, -1, float("nan")):
        with pytest.raises(jaxstab.UsageError, match="memory="):
            run(memory=bad)


SCRIPT = """
import sys; sys.path.insert(0, {folder!r})
import jaxstab
from families import descent
space = jaxstab.grid(steps=[400], learning_rate=[0.05, 0.5, 3.0])
print("running", flush=True)
jaxstab.sweep(descent, space, 2000, store=sys.argv[1], tile=1)
print("finished", flush=True)
"""


def start_process(store: Path) -> subprocess.Popen:
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def wait_for_chunks(store: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(2400):
        if len(list(store.glob("*.npz"))) >= count or process.poll() is not None:
            return
        time.sleep(0.05)


def finish(store: Path) -> bytes:
    with start_process(store) as process:
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert b"finished" in finish(folder)
    return digest(folder)


def test_a_kill_loses_no_chunk_and_the_end_is_the_same(tmp_path, uninterrupted):
    before = 0
    for kill in range(3):
        with start_process(tmp_path) as process:
            wait_for_chunks(tmp_path, before + 1, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        kept = digest(tmp_path)
        assert all(uninterrupted[name] == content for name, content in kept.items()), kill
        before = len(list(tmp_path.glob("*.npz")))
    finish(tmp_path)
    assert digest(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_chunk_and_exits_with_75(tmp_path, uninterrupted, number):
    with start_process(tmp_path) as process:
        wait_for_chunks(tmp_path, 1, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors.decode()
    assert 1 <= len(list(tmp_path.glob("*.npz"))) < len(uninterrupted) - 1
    finish(tmp_path)
    assert digest(tmp_path) == uninterrupted


def test_a_store_can_be_read_while_it_is_held(copy, finished):
    with Store(copy).hold():
        same(jaxstab.open_store(copy), finished[1])
