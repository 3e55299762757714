"""Before jax starts: eight virtual devices, shapes checked at run time, warnings as errors."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAXSTAB_TEST_PLATFORM", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAXSTAB_CACHE", "off")  # tests count compilations

import hypothesis
import jaxtyping

hypothesis.settings.register_profile("jaxstab", deadline=None)  # how long a machine takes is no fault
hypothesis.settings.load_profile("jaxstab")

jaxtyping.install_import_hook("jaxstab", "typechecker.check")
