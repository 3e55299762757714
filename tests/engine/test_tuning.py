"""Measuring tiles: every tile asked for, the rule's own among them, one table for each program."""

from __future__ import annotations

from families import descent

import jaxstab
from jaxstab.engine import tuning


def test_every_program_is_measured_at_every_tile_and_at_the_rule_s_own():
    space = jaxstab.grid(steps=[5, 7], learning_rate=[0.1, 0.2])
    found = tuning.measure_tiles(descent, space, seeds=16, tiles=(1, 4))
    assert [one.spec for one in found] == ["Spec(steps=5)", "Spec(steps=7)"]
    for one in found:
        assert set(one.rates) == {1, 4, one.ruled}
        assert all(rate > 0 for rate in one.rates.values())
        assert one.rates[one.fastest] == max(one.rates.values())
