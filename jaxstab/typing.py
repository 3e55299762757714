"""Names of the kinds of value that signatures speak of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np

Scalar: TypeAlias = float | int | np.number | np.ndarray | jax.Array
"""One real number, concrete or traced."""

Function: TypeAlias = Callable[..., jax.Array]
"""An elementwise JAX function of one array."""

Activation: TypeAlias = str | Function
"""A name of `jaxstab.theory.activations.ACTIVATIONS`, or any elementwise JAX function of one array."""
