"""What any JAX function does inside: outputs as they were, and statistics of every module call or operation."""

from jaxstab.observation.marks import mark as mark
from jaxstab.observation.seen import Seen as Seen
from jaxstab.observation.sites import Site as Site
from jaxstab.observation.statistics import STATISTICS as STATISTICS
from jaxstab.observation.transform import observe as observe
from jaxstab.observation.whatif import WhatIf as WhatIf
from jaxstab.observation.whatif import what_if as what_if
