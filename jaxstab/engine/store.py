"""A sweep on disk: one manifest and immutable chunks, so that it can be left running and taken up again.

    FOLDER/manifest.json               what the sweep is, and everything its bits depend on
    FOLDER/0-000012-<SHA-256>.npz      chunk 12 of group 0

A chunk counts when its content agrees with its name. Nothing is ever unpickled. Files are written under a
temporary name, flushed, renamed, and the folder flushed, so that a kill at any moment loses the chunk in hand and
nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine.cut import Cut
from jaxstab.engine.label import WORDS, Layout, Table
from jaxstab.errors import UsageError
from jaxstab.names import CALLABLE

SCHEMA = 2
MANIFEST = "manifest.json"
CHUNK_NAME = re.compile(r"(\d+)-(\d{6})-([0-9a-f]{64})\.npz")


class StoreError(UsageError):
    """A folder that cannot be used as asked; one line says why. Good chunks stay as they are."""


class Store:
    """One sweep's folder, held by one process (or by the processes of one distributed run)."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.process = 0

    @contextlib.contextmanager
    def hold(self, process: int = 0, processes: int = 1) -> Iterator[None]:
        """Keep every other sweep off the folder; the processes of one distributed run hold it together."""
        self.process = process
        with contextlib.ExitStack() as held:
            # one process alone excludes all others; process i of N excludes it, and any other i of N
            self._lock(held, "lock", fcntl.LOCK_SH if processes > 1 else fcntl.LOCK_EX)
            if processes > 1:
                own = f"lock-{process}-of-{processes}"
                self._lock(held, own, fcntl.LOCK_EX)
                for other in sorted(self.path.glob("lock-*-of-*")):  # and every run of another N
                    if other.name.rsplit("-", 1)[1] != str(processes):
                        self._lock(held, other.name, fcntl.LOCK_SH)
            # what a kill left behind, by this process or an earlier run's
            for left in self.path.glob(".[0-9]*-*"):
                number = left.name[1:].partition("-")[0]
                if processes == 1 or (number.isdigit() and int(number) % processes == process):
                    left.unlink(missing_ok=True)
            yield

    def _lock(self, held: contextlib.ExitStack, name: str, kind: int) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((self.path / name).open("a"))
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"store {self.path}: another process is running a sweep in this folder."
            ) from None
        except OSError as error:
            raise StoreError(f"store {self.path}: cannot be written or locked: {error.strerror}.") from None

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest of a new sweep, or make sure that the folder holds the same one.

        More seeds after the old ones are the same sweep grown: its manifest is replaced.
        """
        wanted = seal(manifest)
        # looked for first: another process may be writing the manifest and then a chunk
        orphans = bool(self.chunks())
        if not (self.path / MANIFEST).exists():
            if orphans:
                raise StoreError(
                    f"store {self.path}: there are chunks but no {MANIFEST}; choose another folder."
                )
            self._write(MANIFEST, (json.dumps(wanted, indent=1) + "\n").encode())
            return
        found = self.read_manifest()
        old, new = found["layout"]["seeds"], wanted["layout"]["seeds"]
        grown = len(new) > len(old) and new[: len(old)] == old
        if grown:
            found["layout"]["seeds"] = new
        difference = _first_difference(found, wanted)
        if difference:
            raise StoreError(
                f"store {self.path} holds another sweep: {difference}. Give the same call, or another folder."
            )
        if grown:
            self._write(MANIFEST, (json.dumps(wanted, indent=1) + "\n").encode())

    def seeds(self) -> np.ndarray | None:
        """The seeds of the sweep that the folder holds, int64; None where it holds none."""
        if not (self.path / MANIFEST).exists():
            return None
        return np.array(self.read_manifest()["layout"]["seeds"], np.int64)

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or one line why there is none to read."""
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            schema = manifest["schema"]
        except FileNotFoundError:
            raise StoreError(f"store {self.path}: no {MANIFEST} there, so no sweep.") from None
        except OSError as error:
            raise StoreError(f"store {self.path}: {MANIFEST} cannot be read: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"store {self.path}: {MANIFEST} is damaged (not the JSON that was written)."
            ) from None
        if schema != SCHEMA:
            which = "a later" if isinstance(schema, int) and schema > SCHEMA else "an earlier"
            raise StoreError(
                f"store {self.path}: schema {schema}, written by {which} jaxstab; this one knows {SCHEMA}."
            )
        if _digest(manifest) != manifest.get("digest"):
            raise StoreError(
                f"store {self.path}: {MANIFEST} was changed by hand (its digest does not agree)."
            )
        return manifest

    def write_chunk(
        self, group: int, number: int, values: Mapping[str, np.ndarray], replaced: Sequence[Path] = ()
    ) -> None:
        """Write one chunk; it is there as a whole or not at all. Then the files of this number that it replaces go.

        These are damaged, or the shorter last chunk of a sweep that has grown since.
        """
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **dict(values))
        content = buffer.getvalue()
        name = f"{group}-{number:06d}-{hashlib.sha256(content).hexdigest()}.npz"
        self._write(name, content)
        for path in replaced:
            if path.name != name:
                path.unlink(missing_ok=True)

    def chunks(self) -> dict[tuple[int, int], list[Path]]:
        """Files that bear the name of a chunk, by (group, number)."""
        found: dict[tuple[int, int], list[Path]] = {}
        for path in sorted(self.path.iterdir()):
            match = CHUNK_NAME.fullmatch(path.name)
            if match:
                found.setdefault((int(match[1]), int(match[2])), []).append(path)
        return found

    def read_chunk(
        self, path: Path, lanes: int, keep: Sequence[str] | None = None
    ) -> dict[str, np.ndarray] | None:
        """A chunk's arrays, or None where its content does not agree with its name or it has not `lanes` lanes.

        With `keep`, only those arrays are read, each against its own checksum inside the file.
        """
        match = CHUNK_NAME.fullmatch(path.name)
        try:
            if keep is None:
                content = path.read_bytes()
                if match is None or hashlib.sha256(content).hexdigest() != match[3]:
                    return None
                source: Any = io.BytesIO(content)
            else:
                source = path
            with np.load(source, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in (arrays.files if keep is None else keep)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return values if all(len(value) == lanes for value in values.values()) else None

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f".{self.process}-{name[:40]}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StoreError(
                f"store {self.path}: cannot be written: {error.strerror}; good chunks are kept."
            ) from None


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its digest, by which a change by hand is seen."""
    plain = json.loads(json.dumps({"schema": SCHEMA, **manifest}))
    return {**plain, "digest": _digest(plain)}


def open_store(path: str | os.PathLike[str], keep: Sequence[str] | None = None) -> xr.Dataset:
    """What a finished or an interrupted sweep holds; lanes that have not run have status `not_run` and NaN.

    Args:
        path: the sweep's folder.
        keep: outputs wanted, and no others are read; None for all.

    Raises:
        UsageError: one line, where the folder holds no sweep or the manifest cannot be trusted.
    """
    store = Store(path)
    manifest = store.read_manifest()
    layout = Layout.from_record(manifest["layout"])
    names = sorted({name for group in manifest["groups"] for name in group["outputs"]})
    if keep is not None:
        strangers = sorted(set(keep) - set(names))
        if strangers:
            raise StoreError(f"store {path}: no output {strangers[0]!r}. Choices: {', '.join(names)}.")
        keep = sorted({*keep, "status"})
    shapes = [
        {
            n: np.zeros(o["shape"], o["dtype"])
            for n, o in group["outputs"].items()
            if keep is None or n in keep
        }
        for group in manifest["groups"]
    ]
    table = Table(layout, shapes)
    found, damaged = store.chunks(), 0
    for (number, chunk), paths in found.items():
        group = manifest["groups"][number]
        members = np.array(group["members"])
        cut = Cut(len(members), len(manifest["layout"]["seeds"]), group["tile"], group["tiles_per_chunk"])
        lanes = cut.chunk(chunk)
        values = next(
            (v for v in (store.read_chunk(p, len(lanes), keep) for p in paths) if v is not None), None
        )
        damaged += values is None
        if values is not None:
            configuration, seed = cut.places(lanes)
            table.fill((members[configuration], seed), values)
    return table.dataset({"store": str(path), "damaged_chunks": damaged})


def _digest(manifest: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in manifest.items() if k != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


UNCOMPARED = frozenset({"digest", WORDS, CALLABLE})
"""What two manifests of one sweep may differ in: what is said of the numbers, and what callables are called."""
EXPLAINED = {
    "program": "the program is another (a callable, the trial or jaxstab itself has changed)",
    "data": "the data that every lane reads are others",
    "hparams": "the numbers of its configurations are others",
}


def _first_difference(found: Any, wanted: Any, place: str = "") -> str:
    """Where two manifests differ first, in words; '' where they do not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in found if k not in wanted)]:
            if key in UNCOMPARED:
                continue
            name = f"{place}.{key}" if place else key
            if key not in found or key not in wanted:
                return f"{name} is only in {'this call' if key in wanted else 'the store'}"
            difference = _first_difference(found[key], wanted[key], name)
            if difference:
                return f"{place}: {EXPLAINED[key]}" if key in EXPLAINED else difference
        return ""
    if isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{place} had {len(found)} values and now has {len(wanted)}"
        pairs = zip(found, wanted, strict=True)
        return next(
            (d for i, pair in enumerate(pairs) if (d := _first_difference(*pair, f"{place}[{i}]"))), ""
        )
    texts = json.dumps(found), json.dumps(wanted)
    if found == wanted or texts[0] == texts[1]:  # NaN equals itself here
        return ""
    return f"{place} was {_excerpt(*texts)} and is now {_excerpt(*texts[::-1])}"


def _excerpt(text: str, other: str) -> str:
    """`text` if it is short, else the part where it begins to differ from `other`."""
    if len(text) <= 60:
        return text
    same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    )
    start = max(0, same - 20)
    return "..." * (start > 0) + text[start : start + 54] + "..." * (start + 54 < len(text))
