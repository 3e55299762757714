"""jaxstab: is this network numerically stable, and how sure are we?

Names are loaded when they are first used (the stub beside this file says from where), so that the command
line answers before JAX is up.
"""

import os
import sys

import lazy_loader


def _give_each_core_a_device() -> None:
    """Let JAX see one CPU device a core, unless the user said otherwise or JAX already runs.

    XLA executes a loop of small operations on one core; one device a core, with lanes sharded over the
    devices, is what uses the others. JAX reads this once, when its backend starts.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cores))
        return
    jax = sys.modules["jax"]
    if jax.config.jax_num_cpu_devices == -1:
        try:
            jax.config.update("jax_num_cpu_devices", cores)
        except RuntimeError:  # the backend is up: the sweep will use the devices there are
            return


_give_each_core_a_device()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
