"""One law cuts lanes into chunks, whoever asks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxstab.engine.cut import Cut

SIZES = st.builds(
    Cut, st.integers(1, 40), st.integers(1, 40), tile=st.integers(1, 9), tiles_per_chunk=st.integers(1, 9)
)


@given(SIZES)
def test_every_lane_stands_in_one_chunk_and_at_one_place(cut):
    chunks = [cut.chunk(number) for number in range(len(cut))]
    assert [lane for chunk in chunks for lane in chunk] == list(range(cut.configurations * cut.seeds))
    assert all(chunks)
    assert all(len(chunk) == cut.tile * cut.tiles_per_chunk for chunk in chunks[:-1])
    places = {
        pair for chunk in chunks for pair in zip(*map(np.ndarray.tolist, cut.places(chunk)), strict=True)
    }
    assert len(places) == cut.lanes


@given(SIZES, st.integers(1, 20))
def test_more_seeds_append_lanes_and_move_none(cut, more):
    grown = Cut(cut.configurations, cut.seeds + more, cut.tile, cut.tiles_per_chunk)
    for number in range(len(cut)):
        own = cut.chunk(number)
        for before, after in zip(cut.places(own), grown.places(grown.chunk(number)), strict=True):
            np.testing.assert_array_equal(before, after[: len(own)])
