"""Where the benchmarks run: device, PyTorch if it is there, how much of everything."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """device: torch's name of it, cpu or cuda. scale: 1 for the full work, less for a trial.

    fashion_mnist: the folder of that dataset, where one was named on the command line.
    """

    device: str
    torch: Any
    scale: float
    rounds: int
    dataset: str
    fashion_mnist: Path | None = None


def import_torch() -> Any:
    """The torch module, or None."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def absent_torch(setting: Setting) -> dict[str, str]:
    """What the table says of peers that are not there."""
    return {} if setting.torch is not None else {"torch": "not installed (pip install 'jaxstab[bench]')"}


def best_threads(setting: Setting, run: Callable[[], Any]) -> int:
    """Set torch to the number of threads, 1 or all, with which `run` is the faster."""
    if setting.device != "cpu":
        return 1
    seconds = {}
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        setting.torch.set_num_threads(threads)
        run()
        began = time.perf_counter()
        run()
        seconds[threads] = time.perf_counter() - began
    best = min(seconds, key=seconds.__getitem__)
    setting.torch.set_num_threads(best)
    return best
