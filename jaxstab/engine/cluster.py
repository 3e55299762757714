"""Joining a distributed run: JAX's own runtime says who is process i of N.

Nothing else is asked of it: a sweep's processes exchange no number, so one may end, or be killed, long before
another. JAX's own time limits are made for programs that need each other at every step, and are set aside.
"""

from __future__ import annotations

import jax

from jaxstab.errors import UsageError

A_MONTH = 30 * 24 * 3600


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Become one process of a run of many, before JAX has done anything else.

    Args:
        coordinator: HOST:PORT at which process 0 listens; None, with the others, where the cluster (Slurm, Open
            MPI, Kubernetes, Cloud TPU) says so itself.
        processes: how many there are, N.
        process: which of 0..N-1 this one is.

    Raises:
        UsageError: one line, where the three do not fit together or no cluster is found.
    """
    by_hand = (coordinator, processes, process)
    if any(x is None for x in by_hand) and any(x is not None for x in by_hand):
        raise UsageError(
            f"coordinator={coordinator!r}, processes={processes}, process={process}: give all three, or none on a"
            " cluster that JAX knows."
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UsageError(f"coordinator={coordinator!r}: HOST:PORT is wanted.")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UsageError(f"process={process} of processes={processes}: one of 0 to N - 1 is wanted.")
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if coordinator is None else "deactivate",
            shutdown_timeout_seconds=A_MONTH, **__import__("json").loads(__import__("os").environ.get("XX","{}")),
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the distributed run cannot be joined: {reason}") from None
