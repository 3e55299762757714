"""Rounding to a format is what the format's own conversion does, and what an independent rounding in float64 does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxstab import formats
from jaxstab.errors import UsageError
from jaxstab.formats import FORMATS, Format, format_of, name_of_format, round_to

TINY = float(np.finfo(np.float32).tiny)
NARROW = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
}
PAIRS = [(2, 1), (3, 2), (4, 3), (5, 2), (5, 10), (6, 9), (7, 8), (7, 23), (8, 7), (8, 10), (8, 1)]


def numbers(narrow: Format) -> np.ndarray:
    """float32 values of all magnitudes, and those where a rounding of this format is decided: its numbers, the
    middle between neighbours, one float32 beside each; both ends of its range; zeros, infinities, NaN."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=12_000) * 2.0 ** rng.uniform(-126, 127, 12_000)
    centre = rng.normal(size=6_000) * 2.0 ** rng.uniform(-30, 18, 6_000)
    low = narrow.smallest_normal * narrow.epsilon * rng.uniform(-8, 8, 4_000)
    halves = np.arange(0, 257) * narrow.smallest_normal * narrow.epsilon / 2
    exponents = rng.uniform(np.log2(narrow.smallest_normal), np.log2(narrow.largest), 4_000).astype(int)
    steps = rng.integers(0, 2 ** min(narrow.mantissa_bits + 1, 23), exponents.size)
    ties = (1 + steps * narrow.epsilon / 2) * 2.0**exponents
    ends = narrow.largest * np.array([1, 1 + narrow.epsilon / 4, 1 + narrow.epsilon / 2, 1.5, 2])
    small = narrow.smallest_normal * np.array([1, 1 - narrow.epsilon / 2, 0.5, narrow.epsilon / 2])
    with np.errstate(over="ignore"):
        whole = np.float32(np.concatenate([spread, centre, low, halves, ties, ends, small]))
        beside = [np.nextafter(whole, np.float32(side)) for side in (0, np.inf)]
    special = np.float32([0, np.inf, np.nan, TINY, np.finfo(np.float32).max])
    x = np.concatenate([whole, *beside, special])
    return np.concatenate([x, -x])


def rounded_by_numpy(x: np.ndarray, narrow: Format) -> np.ndarray:
    """Ties to even at the spacing of x's binade, or of the subnormals, in float64."""
    wide = x.astype(np.float64)
    finite = np.isfinite(wide)
    _, exponent = np.frexp(np.where(finite, wide, 1.0))
    floor = round(np.log2(narrow.smallest_normal)) + 1
    spacing = np.ldexp(1.0, np.maximum(exponent, floor) - 1 - narrow.mantissa_bits)
    y = np.where(finite, np.rint(np.where(finite, wide, 0) / spacing) * spacing, wide)
    return np.where(np.abs(y) > narrow.largest, np.copysign(narrow.beyond, y), y).astype(np.float32)


def assert_same(x: np.ndarray, found: jax.Array, wanted: np.ndarray) -> None:
    """The same numbers with the same signs of zeros, and NaN where NaN is.

    Below float32's normal numbers a processor may take an operand or a result for zero, so that there, and there
    only, zero is right too.
    """
    got = np.asarray(found)
    is_nan = np.isnan(wanted)
    same = (got == wanted) & (np.signbit(got) == np.signbit(wanted)) | (np.isnan(got) & is_nan)
    flushed = (got == 0) & ((np.abs(x) < TINY) | (np.abs(wanted) < TINY))
    bad = ~(same | flushed)
    assert not bad.any(), np.stack([x[bad], got[bad], wanted[bad]])[:, :5]


def assert_rounds_as_its_own_type(name: str) -> None:
    narrow = format_of(name)
    x = numbers(narrow)
    assert x.size > 20_000
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(NARROW[name]).astype(np.float32)
    assert_same(x, round_to(x, narrow), wanted)
    cast = jax.jit(lambda x: jax.lax.optimization_barrier(x.astype(name)).astype(jnp.float32))
    assert_same(x, round_to(x, narrow), np.asarray(cast(x)))


@pytest.mark.parametrize("name", NARROW)
def test_rounding_is_the_conversion_of_the_type(name):
    assert_rounds_as_its_own_type(name)


@pytest.mark.parametrize("pair", PAIRS)
def test_rounding_to_a_pair_is_that_of_numpy(pair):
    narrow = format_of(pair)
    x = numbers(narrow)
    assert_same(x, jax.jit(lambda x: round_to(x, narrow))(x), rounded_by_numpy(x, narrow))


@pytest.mark.parametrize("name", NARROW)
def test_the_rounding_of_numpy_is_the_conversion_of_the_type(name):
    x = numbers(format_of(name))
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(NARROW[name]).astype(np.float32)
    np.testing.assert_array_equal(rounded_by_numpy(x, format_of(name)), wanted)


def test_rounding_twice_is_rounding_once():
    for dtype in (*NARROW, *PAIRS):
        x = numbers(format_of(dtype))
        once = round_to(x, format_of(dtype))
        assert_same(np.asarray(once), round_to(once, format_of(dtype)), np.asarray(once))


def test_float32_is_as_it_is():
    x = numbers(format_of("float32"))
    np.testing.assert_array_equal(round_to(x, format_of("float32")), x)


@pytest.mark.parametrize(
    "planted",
    [
        lambda x, f: jax.lax.reduce_precision(x, 8, f.mantissa_bits - 1),  # a bit less
        lambda x, f: jax.lax.reduce_precision(x, f.exponent_bits, f.mantissa_bits),  # no subnormals
        lambda x, f: jax.lax.reduce_precision(x, 8, f.mantissa_bits),  # no end of the range
        lambda x, f: jnp.where(jnp.isnan(x), 0.0, formats.round_to(x, f)),
    ],
)
def test_a_planted_fault_is_seen(planted, monkeypatch):
    monkeypatch.setitem(globals(), "round_to", planted)
    with pytest.raises(AssertionError):
        assert_rounds_as_its_own_type("float16")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float16", "float16"), ("half", "float16"), ("fp16", "float16"), ("bf16", "bfloat16"),
        (jnp.float16, "float16"), (np.float16, "float16"), (jnp.bfloat16, "bfloat16"),
        (np.dtype("float16"), "float16"), (jnp.dtype(jnp.float8_e5m2), "float8_e5m2"),
        (jnp.float8_e4m3fn, "float8_e4m3fn"), ("float32", "float32"), ((4, 3), "e4m3"), ((5, 10), "e5m10"),
    ],
)  # fmt: skip  # a word and its name
def test_names(dtype, name):
    assert name_of_format(dtype) == name


def test_the_numbers_of_formats():
    assert format_of("float16") == format_of((5, 10)) == Format(5, 10, 65504.0, np.inf, 2.0**-14, 2.0**-10)
    assert format_of((8, 7)) == format_of("bfloat16")
    assert format_of("float8_e5m2") == format_of((5, 2))
    assert format_of("float8_e4m3fn").largest == 448
    assert np.isnan(format_of("float8_e4m3fn").beyond)
    assert format_of((4, 3)).largest == 240
    for name, kind in NARROW.items():
        info = ml_dtypes.finfo(kind)
        found = format_of(name)
        assert (found.largest, found.epsilon) == (float(info.max), float(info.eps))
        assert found.smallest_normal == float(info.smallest_normal)
    assert set(FORMATS) == {*NARROW, "float32"}


@pytest.mark.parametrize(
    "dtype",
    ["float64", "flaot16", "", "int8", np.int32, np.float64, float, None, 16, object(), [5, 10], {}, (5,), (5, 10, 1),
     (1, 3), (9, 3), (5, 0), (5, 24), (5.0, 10), ("5", "10"), (True, True)],
)  # fmt: skip  # many short words
def test_what_is_no_format_gets_one_line(dtype):
    for function in (format_of, name_of_format):
        with pytest.raises(UsageError) as caught:
            function(dtype)
        said = str(caught.value)
        assert "\n" not in said
        assert "dtype" in said


def test_a_quotient_is_rounded_as_it_is_where_it_is_zero():
    """XLA would divide by the product of both divisors, which is below float32's range, and give 0 / 0."""
    f = jax.jit(lambda a, b: round_to(a / b, format_of("bfloat16")))
    assert f(jnp.zeros(8), jnp.full(8, 0.02)).tolist() == [0.0] * 8
