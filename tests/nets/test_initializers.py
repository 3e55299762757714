"""Every scheme against its own law; tolerances are five standard errors of the sample."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab.errors import UsageError
from jaxstab.nets import initializers

SHAPE = (120, 480)
UNIFORM = ("lecun_uniform", "xavier_uniform", "kaiming_uniform", "torch_default")
GAUSSIAN = ("normal", "lecun_normal", "xavier_normal", "kaiming_normal")
DRAWN = (*GAUSSIAN, *UNIFORM, "truncated_normal", "lecun_truncated_normal")

# (120, 480): fan_in 120, fan_out 480, mean 300
NOMINAL_VAR = {
    "normal": 1.0,
    "lecun_normal": 1 / 120,
    "lecun_uniform": 1 / 120,
    "xavier_normal": 2 / 600,
    "xavier_uniform": 2 / 600,
    "kaiming_normal": 2 / 120,
    "kaiming_uniform": 2 / 120,
    "torch_default": 1 / 360,
    "truncated_normal": 1.0,
    "lecun_truncated_normal": 1 / 120,
}


def law(name, std):
    """The distribution of one entry, as scipy has it."""
    if name in UNIFORM:
        return stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std)
    if name in GAUSSIAN:
        return stats.norm(0, std)
    return stats.truncnorm(-2, 2, scale=std / stats.truncnorm(-2, 2).std())


def draw(name, shape=SHAPE, seed=0, dtype=jnp.float32, **options):
    return np.asarray(initializers.resolve(name)(**options)(jax.random.key(seed), shape, dtype))


def assert_moments(sample, var):
    """Mean 0 and variance `var`, each within five of the sample's own standard errors."""
    sample = np.asarray(sample, np.float64).ravel()
    squares = sample**2
    assert abs(sample.mean()) < 5 * sample.std() / math.sqrt(sample.size)
    assert abs(squares.mean() - var) < 5 * squares.std() / math.sqrt(sample.size)


@pytest.mark.parametrize("name", DRAWN)
def test_entries_follow_the_law(name):
    entries = draw(name, gain=1.5).ravel()
    std = 1.5 * math.sqrt(NOMINAL_VAR[name])
    assert_moments(entries, std**2)
    assert stats.kstest(entries, law(name, std).cdf).pvalue > 1e-3
    with pytest.raises(AssertionError):  # a 5 % error of the scale is seen
        assert_moments(1.05 * entries, std**2)
    assert stats.kstest(1.05 * entries, law(name, std).cdf).pvalue < 1e-3


@pytest.mark.parametrize("name", DRAWN)
def test_weight_std_is_the_std_of_an_entry(name):
    assert initializers.weight_std(name, 120, 480) == pytest.approx(math.sqrt(NOMINAL_VAR[name]), rel=1e-12)


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_stays_within_its_bound_and_reaches_it(name):
    largest = np.abs(draw(name)).max()
    bound = np.float32(math.sqrt(3 * NOMINAL_VAR[name]))
    assert bound * (1 - 20 / math.prod(SHAPE)) < largest <= bound


def test_torch_default_is_bounded_by_one_over_root_fan_in():
    assert np.abs(draw("torch_default", (100, 2000))).max() <= np.float32(0.1)


def test_truncated_normal_is_cut_at_two_sigma_of_the_uncut_normal():
    for name, std in (("truncated_normal", 1.0), ("lecun_truncated_normal", 1 / math.sqrt(120))):
        bound = 2 * std / 0.8796256610342398
        assert bound * 0.995 < np.abs(draw(name)).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_normals_are_not_truncated(name):
    assert np.abs(draw(name)).max() > 3.5 * math.sqrt(NOMINAL_VAR[name])


def test_plain_names_ignore_the_width():
    for name in ("normal", "truncated_normal"):
        assert draw(name, (3,)).shape == (3,)
        assert initializers.weight_std(name, 5, 700) == 1.0
    np.testing.assert_array_equal(draw("constant", (2, 3, 4), gain=0.3), np.full((2, 3, 4), np.float32(0.3)))
    assert initializers.weight_std("constant", 5, 5) == 0.0


@pytest.mark.parametrize(
    ("shape", "axes", "fans"),
    [
        ((3, 3, 4, 8), {}, (36, 72)),
        ((4, 3, 3, 8), {"in_axis": 0, "out_axis": 3}, (36, 72)),
        ((6, 3, 4, 8), {"batch_axis": 0}, (12, 24)),
        ((6, 5, 4, 8), {"in_axis": (1, 2), "out_axis": -1, "batch_axis": (0,)}, (20, 8)),
    ],
)
def test_convolutions_are_scaled_as_jax_scales_them(shape, axes, fans):
    assert initializers.compute_fans(shape, **axes) == fans
    peer = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", **axes)(jax.random.key(0), shape)
    np.testing.assert_allclose(draw("xavier_uniform", shape, **axes), peer, rtol=1e-6)


@pytest.mark.parametrize("name", initializers.NAMES)
def test_a_traced_gain_multiplies_and_compiles_once(name):
    traces = []

    @jax.jit
    def weights(gain):
        traces.append(name)
        return initializers.resolve(name)(gain)(jax.random.key(3), (6, 9))

    unit, double = weights(1.0), weights(2.0)
    np.testing.assert_array_equal(double, 2 * unit)
    assert len(traces) == 1
    lanes = jax.vmap(weights)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(lanes[1], double, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_gain_is_the_draw():
    kernel = initializers.lecun_normal
    slope = jax.jacobian(lambda gain: kernel(gain)(jax.random.key(4), (5, 7)))(2.0)
    np.testing.assert_array_equal(slope, kernel()(jax.random.key(4), (5, 7)))


@pytest.mark.parametrize("name", initializers.NAMES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_float32_rounded_once(name, dtype):
    exact = initializers.resolve(name)(1.7)(jax.random.key(5), (33, 20))
    cast = initializers.resolve(name)(1.7)(jax.random.key(5), (33, 20), dtype)
    assert cast.dtype == dtype
    np.testing.assert_array_equal(cast, exact.astype(dtype))


def test_the_scale_itself_is_not_rounded_to_bfloat16():
    # the half-width sqrt(6 / 384) x 1.003 is no bfloat16 number: rounded, it is 0.3 % off in every weight
    exact = initializers.xavier_uniform(1.003)(jax.random.key(6), (192, 192))
    ratio = initializers.xavier_uniform(1.003)(jax.random.key(6), (192, 192), jnp.bfloat16) / exact
    assert abs(float(jnp.median(ratio)) - 1) < 1e-3


def test_x64_changes_no_weight():
    plain = draw("xavier_normal", (7, 5))
    with jax.enable_x64(True):
        wide = initializers.xavier_normal(jnp.asarray(1.0))(jax.random.key(0), (7, 5), jnp.float64)
        assert wide.dtype == jnp.float64
        np.testing.assert_array_equal(np.asarray(wide), plain.astype(np.float64))


@pytest.mark.parametrize("shape", [(40, 40), (40, 25), (25, 40), (100, 70), (3, 3, 4, 5), (1, 1)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape):
    matrix = draw("orthogonal", shape, gain=3.0).reshape(-1, shape[-1]) / 3
    product = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, np.eye(len(product)), atol=2e-6)
    assert initializers.weight_std("orthogonal", *matrix.shape) == pytest.approx(np.sqrt(np.mean(matrix**2)))


@pytest.mark.parametrize("out_axis", [0, 1, -1])
def test_orthogonal_lies_along_the_axis_of_jax(out_axis):
    weights = draw("orthogonal", (6, 5, 4), in_axis=(out_axis + 1) % 3, out_axis=out_axis)
    matrix = np.moveaxis(weights, out_axis, -1).reshape(-1, weights.shape[out_axis])
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=2e-6)


def test_orthogonal_draws_one_matrix_for_each_batch_index():
    weights = draw("orthogonal", (8, 3, 8), in_axis=0, out_axis=2, batch_axis=1)
    for index in range(3):
        np.testing.assert_allclose(weights[:, index].T @ weights[:, index], np.eye(8), atol=2e-6)
    assert np.abs(weights[:, 0] - weights[:, 1]).max() > 0.1


def test_biases_of_torch_default():
    biases = initializers.bias_initializer("torch_default", 25)(jax.random.key(9), (5000,))
    assert np.abs(biases).max() <= np.float32(0.2)
    assert_moments(biases, initializers.bias_std("torch_default", 25) ** 2)
    assert initializers.bias_std("torch_default", 25) == pytest.approx(0.2 / math.sqrt(3))
    assert initializers.bias_initializer("kaiming_uniform", 25) is None
    assert initializers.bias_std("kaiming_uniform", 25) == 0.0


def test_two_keys_draw_two_arrays():
    for name in set(initializers.NAMES) - {"constant"}:
        assert np.any(draw(name, (4, 4), seed=0) != draw(name, (4, 4), seed=1))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="xavier_normal"):
        initializers.resolve("xavier_norml")
    with pytest.raises(UsageError, match="lecun_uniform"):
        initializers.weight_std(None, 1, 1)
    with pytest.raises(UsageError, match="fan_avg"):
        initializers.variance_scaling(1.0, "fan_mean", "normal")


@pytest.mark.parametrize("gain", ["two", None, True, 1j, np.ones(2), np.array("2"), np.array(1j)])
def test_a_gain_that_is_no_number_is_refused(gain):
    with pytest.raises(UsageError, match="gain must be one real number"):
        initializers.require_gain(gain)


@pytest.mark.parametrize("name", initializers.NAMES)
def test_factories_refuse_a_vector_for_a_gain(name):
    with pytest.raises(UsageError, match="gain"):
        initializers.resolve(name)(np.ones(2))


@pytest.mark.parametrize("name", sorted(set(initializers.NAMES) - {"normal", "truncated_normal", "constant"}))
@pytest.mark.parametrize(("shape", "axes"), [((5,), {}), ((), {}), ((5, 0), {}), ((5, 5), {"in_axis": 2})])
def test_a_shape_without_fans_is_refused(name, shape, axes):
    with pytest.raises(UsageError) as refusal:
        initializers.resolve(name)(**axes)(jax.random.key(0), shape)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", initializers.NAMES)
def test_integer_weights_are_refused(name):
    with pytest.raises(UsageError, match="int32"):
        initializers.resolve(name)()(jax.random.key(0), (4, 4), jnp.int32)


@pytest.mark.parametrize("name", ["kaiming_normal", "kaiming_uniform"])
def test_kaiming_keeps_the_signal_or_the_gradient(name):
    for mode, fan in (("fan_in", 300), ("fan_out", 40)):
        weights = initializers.resolve(name)(mode=mode)(jax.random.key(0), (300, 40))
        ratio = float(jnp.mean(weights**2)) / (2 / fan)
        assert abs(ratio - 1) < 5 * math.sqrt(2 / 12000)
    with pytest.raises(UsageError, match=r"mode of Kaiming's initialization 'fan_avg'.*fan_in, fan_out"):
        initializers.resolve(name)(mode="fan_avg")


@pytest.mark.parametrize("axes", [{"in_axis": -1}, {"batch_axis": 0, "in_axis": 0}, {"in_axis": (0, 0)}])
def test_an_axis_named_twice_is_refused(axes):
    with pytest.raises(UsageError, match="named twice"):
        initializers.compute_fans((3, 4), **axes)


def grouped(mode: str, groups: int):
    """Flax's kernel (3, 3, in / groups, out) of 4 inputs and 8 outputs a group, as the docstring says."""

    def draw_kernel(key):
        init = initializers.variance_scaling(1.0, mode, "normal", in_axis=2, out_axis=4, batch_axis=3)
        return init(key, (3, 3, 4, groups, 8)).reshape(3, 3, 4, groups * 8)

    return draw_kernel


def depthwise(mode: str, channels: int):
    def draw_kernel(key):
        init = initializers.variance_scaling(1.0, mode, "normal", out_axis=(), batch_axis=-1)
        return init(key, (3, 3, 1, channels))

    return draw_kernel


@pytest.mark.parametrize(
    ("make", "channels", "groups"),
    [(grouped, 16, 4), (grouped, 4, 1), (depthwise, 24, 24)],
    ids=["4", "1", "depthwise"],
)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_convolutions_keep_the_signal_by_fan_in_and_the_gradient_by_fan_out(make, channels, groups, mode):
    draw_kernel = make(mode, channels if make is depthwise else groups)

    def factor(key):
        keys = jax.random.split(key, 3)
        x, kernel = jax.random.normal(keys[0], (4, 16, 16, channels)), draw_kernel(keys[1])

        def convolve(x):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=layout, feature_group_count=groups
            )

        y, pull = jax.vjp(convolve, x)
        gradient = pull(jax.random.normal(keys[2], y.shape))[0][
            :, 2:-2, 2:-2
        ]  # inside, where all taps meet it
        return jnp.mean(y**2) if mode == "fan_in" else jnp.mean(gradient**2)

    factors = np.asarray(jax.lax.map(factor, jax.random.split(jax.random.key(0), 200)))
    assert abs(factors.mean() - 1) < 5 * factors.std() / math.sqrt(200)


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_transposed_convolutions_keep_the_signal_with_the_stride_in_the_gain(transpose_kernel):
    stride = 2
    axes = {"in_axis": -1, "out_axis": -2} if transpose_kernel else {}
    shape = (4, 4, 12, 8) if transpose_kernel else (4, 4, 8, 12)

    def factor(key):
        keys = jax.random.split(key)
        x = jax.random.normal(keys[0], (4, 10, 10, 8))
        kernel = initializers.lecun_normal(gain=stride, **axes)(keys[1], shape)
        y = jax.lax.conv_transpose(x, kernel, (stride, stride), "SAME", transpose_kernel=transpose_kernel)
        return jnp.mean(y[:, 4:-4, 4:-4] ** 2)

    factors = np.asarray(jax.lax.map(factor, jax.random.split(jax.random.key(0), 200)))
    assert abs(factors.mean() - 1) < 5 * factors.std() / math.sqrt(200)


def test_the_docstrings_examples_hold():
    assert doctest.testmod(initializers).failed == 0
