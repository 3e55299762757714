"""Joining a distributed run: JAX's own runtime says who is process i of N.

Nothing else is asked of it, since a sweep's processes exchange no number. Once all of them know which they are,
the runtime is left again: while it is there, it ends every process when one of them was killed, or when one was done
five minutes before another.
"""

from __future__ import annotations

import jax

from jaxstab.errors import UsageError


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Become one process of a run of many, before JAX has done anything else; waits for the others to be there.

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
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if coordinator is None else "deactivate",
        )
        jax.devices()  # the backend learns which process it is, with all N there
        jax.distributed.shutdown()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the distributed run cannot be joined: {reason}") from None
