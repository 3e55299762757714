"""Many processes, one store: no merge, no waiting for one another, the same files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxstab
from jaxstab.engine import cluster
from jaxstab.engine.store import Store

SCRIPT = """
import sys; sys.path.insert(0, {folder!r})
import jax, jaxstab
from jaxstab.engine import cluster
from families import descent
store, port, processes, process = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if processes > 1:
    cluster.join("localhost:" + port, processes, process)
assert (jax.process_index(), jax.process_count()) == (process, processes)
space = jaxstab.grid(steps=[200], learning_rate=[0.05, 0.5, 3.0])
data = jaxstab.sweep(descent, space, 400, store=None if store == "none" else store, tile=1)
print((data.status == -1).sum().item())
"""


def start(store: Path | str, processes: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(store), str(port), str(processes)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "NPROC": "4"}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen([*command, str(i)], stdout=pipe, stderr=pipe, env=environment, text=True)
        for i in range(processes)
    ]


def end(running: list[subprocess.Popen], code: int = 0) -> list[tuple[str, str]]:
    found = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [code] * len(running), found
    return found


def digest(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".npz", ".json")}


def wait_for_chunks(store: Path, count: int, running: list[subprocess.Popen]) -> None:
    for _ in range(4800):
        if len(list(store.glob("*.npz"))) >= count or any(p.poll() is not None for p in running):
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert end(start(folder, 1))[0][0] == "0\n"
    return digest(folder)


def test_two_processes_leave_the_files_of_one(tmp_path, alone):
    missing = [int(out) for out, _ in end(start(tmp_path, 2))]
    assert digest(tmp_path) == alone
    assert min(missing) == 0  # the one that ended last returned everything
    assert not jaxstab.open_store(tmp_path).status.isin([-1]).any()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_finishes_a_sweep(tmp_path, alone, before, after):
    running = start(tmp_path, before)
    wait_for_chunks(tmp_path, 1, running)
    running[-1].send_signal(signal.SIGKILL)
    for process in running[:-1]:
        process.send_signal(signal.SIGTERM)
    for process in running:
        process.communicate(timeout=120)
    assert running[-1].returncode == -signal.SIGKILL
    assert all(process.returncode == 75 for process in running[:-1])
    kept = digest(tmp_path)
    assert kept.items() <= alone.items()
    end(start(tmp_path, after))
    assert digest(tmp_path) == alone


def test_without_a_store_many_processes_are_refused():
    for _, errors in end(start("none", 2), code=1):
        assert "store=None with 2 processes" in errors.splitlines()[-1]


def test_who_may_hold_a_store_together(tmp_path):
    def refused(process: int, processes: int) -> bool:
        try:
            with Store(tmp_path).hold(process, processes):
                return False
        except jaxstab.UsageError as error:
            return "another process" in str(error)

    with Store(tmp_path).hold(0, 2):
        assert not refused(1, 2)
        assert all(refused(*other) for other in [(0, 2), (0, 1), (0, 4), (3, 4)])
    with Store(tmp_path).hold():
        assert refused(0, 1)
        assert refused(0, 2)
    assert not refused(3, 4)


def test_what_earlier_processes_left_half_written_is_cleared(tmp_path):
    left = [tmp_path / f".{process}-chunk" for process in range(4)]
    for path in left:
        path.touch()
    with Store(tmp_path).hold(1, 2):
        assert [path.exists() for path in left] == [True, False, True, False]
    with Store(tmp_path).hold():
        assert not any(path.exists() for path in left)


@pytest.mark.parametrize(
    ("by_hand", "words"),
    [
        (("localhost:1234", 2, None), "process=None"),
        ((None, 2, 0), "coordinator=None"),
        (("localhost", 2, 0), "HOST:PORT"),
        (("localhost:1234", 2, 2), "process=2"),
        ((None, None, None), "cannot be joined"),
    ],
)
def test_what_is_no_run_of_many_is_refused_in_one_line(by_hand, words):
    with pytest.raises(jaxstab.UsageError, match=words) as caught:
        cluster.join(*by_hand)
    assert "\n" not in str(caught.value)
