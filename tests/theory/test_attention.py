"""Attention's closed forms: against simulation in plain numpy, at their limits, and NaN where they do not hold."""

import jax
import numpy as np
import pytest

from jaxstab import theory
from jaxstab.errors import UsageError
from jaxstab.nets.layers import register
from jaxstab.nets.layers.layer import Numbers
from jaxstab.nets.weights import Weights
from jaxstab.theory.attention import MOST_ERROR

WIDTH, DRAWS = 512, 48


def cosine_of(h):
    """Mean cosine over pairs of rows."""
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    return (np.sum(unit.sum(0) ** 2) - len(h)) / (len(h) * (len(h) - 1))


def simulate(seed, tokens, c, sigma, *, skip=0.0, branch=1.0, draws=DRAWS, width=WIDTH):
    """[draw, (mean square, cosine, entropy, T sum A^2)] of tokens behind attention with matrices of its own."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        common, own = rng.normal(size=(1, width)), rng.normal(size=(tokens, width))
        x = c**0.5 * common + (1 - c) ** 0.5 * own
        query, key, value = rng.normal(size=(3, width, width)) / width**0.5
        logits = sigma * (x @ query) @ (x @ key).T / width**0.5
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        h = skip * x + branch * share @ x @ value
        entropy = -np.sum(share * np.log(share), axis=1).mean()
        found.append([np.mean(h**2), cosine_of(h), entropy, tokens * np.mean(np.sum(share**2, axis=1))])
    return np.array(found)


def assert_holds(sample, wanted, allowed):
    """The mean is within five standard errors of what is wanted, and `allowed` of it for what is neglected."""
    error = 5 * sample.std(0, ddof=1) / np.sqrt(len(sample)) + allowed * np.abs(wanted)
    assert np.all(np.abs(sample.mean(0) - wanted) <= error), (sample.mean(0), wanted, error)


@pytest.mark.parametrize(
    ("tokens", "c", "sigma", "scales"),
    [
        (64, 0.3, 1.0, {}),
        (64, 0.7, 1.5, {}),
        (128, 0.0, 0.5, {}),
        (64, 0.1, 0.5, {"skip": 1.0, "branch": 2.0}),
        (16, 0.2, 0.0, {"skip": 0.7, "branch": 1.0}),
    ],
)
def test_a_layer_maps_tokens_as_simulated_ones(tokens, c, sigma, scales):
    square, cosine = theory.token_maps(
        1.0, c, tokens, sigma, skip_scale=scales.get("skip", 0.0), branch_scale=scales.get("branch", 1.0),
        width=WIDTH, head=WIDTH,
    )  # fmt: skip
    sample = simulate(1, tokens, c, sigma, **scales)[:, :2]
    assert_holds(sample, np.array([square, cosine]), 0.03)
    with pytest.raises(AssertionError):
        assert_holds(sample, np.array([1.15 * square, cosine]), 0.03)
    with pytest.raises(AssertionError):
        assert_holds(sample, np.array([square, cosine - 0.15]), 0.03)


def test_one_layers_printed_numbers():
    assert theory.token_maps(1.0, 0.3, 64, 1.0) == pytest.approx((0.3220, 0.9735), abs=5e-5)
    assert theory.token_maps(1.0, 0.7, 64, 1.0)[1] == pytest.approx(0.9992, abs=5e-5)
    assert theory.token_maps(3.0, 0.3, 64, 1.0)[0] == pytest.approx(3 * 0.32203, abs=2e-4)
    assert theory.token_maps(1.0, np.array([0.0, 0.5, 0.9]), 8, 0.0)[1] == pytest.approx(np.ones(3))


def test_logits_grow_as_the_mean_square_of_tokens():
    """sigma = qk_scale gain^2 q, of the library's own layer; sigma that grew as the root of q would be seen."""
    tokens, width, q, numbers = 64, 256, 4.0, Numbers(gain=1.5, qk_scale=0.5 / (1.5**2 * 4))
    (layer,) = register.make_layers("attention", width, "tanh", Weights("lecun_normal"), heads=2)

    def one(key):
        drawn, inputs = jax.random.split(key)
        x = q**0.5 * jax.random.normal(inputs, (1, tokens, width))
        return layer(layer.draw(drawn, numbers), x, numbers)[0]

    h = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 32)), np.float64)
    sample = np.array([[np.mean(x**2), cosine_of(x)] for x in h])
    square, cosine = theory.token_maps(q, 0.0, tokens, 0.5, branch_scale=1.5**2, width=width, head=width // 2)
    assert_holds(sample, np.array([square, cosine]), 0.08)
    for wrong in (0.25, 1.0):
        with pytest.raises(AssertionError):
            assert_holds(sample[:, 1], np.exp(-(wrong**2)), 0.08)


def test_near_one_the_distance_is_cubed():
    c = 1 - np.array([4e-3, 1e-3])
    _, after = theory.token_maps(1.0, c, 32, 1.5)
    np.testing.assert_allclose(1 - after, 1.5**2 * (1 - c) ** 3 / 32, rtol=0.02)
    with_skip = theory.token_maps(1.0, c, 32, 0.0, skip_scale=1.0)[1]
    np.testing.assert_allclose((1 - with_skip) / (1 - c), 0.5, rtol=0.01)


def test_where_a_few_keys_take_all_maps_are_silent():
    """Simulated, sigma = 2 and 64 tokens: the mean square is off by more than a tenth, the cosine too."""
    assert np.isnan(theory.token_maps(1.0, 0.3, 64, 2.0)).all()
    leading = 0.3 + 0.7 * np.exp(4 * 0.7) / 64
    assert simulate(2, 64, 0.3, 2.0)[:, 0].mean() < (1 - MOST_ERROR) * leading
    assert np.isfinite(theory.token_maps(1.0, 0.3, 64, 0.8, width=512)).all()
    assert np.isnan(
        theory.token_maps(1.0, 0.0, 64, 0.5, width=64)
    ).all()  # more tokens than their space has room for
    assert np.isnan(theory.token_maps(1.0, np.array([1.5, -2.0, 0.0]), np.array([8, 8, 0]), 0.1)).all()
    assert theory.token_maps(2.0, 0.0, 1, 5.0) == (2.0, 1.0)


def test_tokens_with_a_skip_approach_the_limit_in_depth():
    """s = L^-1/2 from orthogonal tokens, uniform: (e - 1)/(e + T - 1)."""
    for depth, tokens, wanted in ((100, 16, 0.0963), (24, 64, 0.0253)):
        walked = theory.token_trajectory(
            depth, tokens, qk_scale=0.0, skip_scale=1.0, branch_scale=depth**-0.5
        )
        assert float(walked.correlation[-1]) == pytest.approx(wanted, abs=5e-5)
    many = theory.token_trajectory(
        4000, np.array([16, 64]), qk_scale=0.0, skip_scale=1.0, branch_scale=4000**-0.5
    )
    assert many.correlation[:, -1] == pytest.approx([0.09698, 0.02615], abs=5e-5)


def test_a_walk_is_its_layers_one_by_one():
    q, c, sigma_w, qk = 1.0, 0.2, 1.1, 0.3
    walked = theory.token_trajectory(3, 64, sigma_w, qk_scale=qk, skip_scale=0.9, branch_scale=0.4, c0=c)
    for i in range(3):
        scales = {"skip_scale": 0.9, "branch_scale": 0.4 * sigma_w**2}
        q, c = theory.token_maps(q, c, 64, qk * sigma_w**2 * q, **scales)
        assert (np.exp(walked.log_square[i]), walked.correlation[i]) == pytest.approx((q, c))
    grown = theory.token_trajectory(40, 64, qk_scale=0.5, skip_scale=1.0)  # logits grow with the signal
    speaks = np.isfinite(grown.log_square)
    assert speaks[:5].all()
    assert not speaks[np.argmin(speaks) :].any()


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_entropy_and_concentration_are_the_simulated_ones(sigma):
    tokens, c = 256, 0.2
    sample = simulate(3, tokens, c, sigma, draws=16)[:, 2:]
    wanted = np.array(
        [f(tokens, sigma, c) for f in (theory.attention_entropy, theory.attention_concentration)]
    )
    assert_holds(sample, wanted, [0.002, 0.05])
    with pytest.raises(AssertionError):
        assert_holds(sample, wanted * [1.02, 1], [0.002, 0.05])
    with pytest.raises(AssertionError):
        assert_holds(sample, wanted * [1, 1.3], [0.002, 0.05])


def test_entropys_printed_numbers():
    entropy, concentration = theory.attention_entropy, theory.attention_concentration
    assert entropy(1024, np.array([1.0, 2.0])) == pytest.approx([6.4315, 4.9315], abs=5e-5)
    assert concentration(1024, 1.0) == pytest.approx(2.718, abs=5e-4)
    assert np.isnan([entropy(1024, 3.0), concentration(1024, 2.0), concentration(1024, 3.0)]).all()
    assert entropy(1, 7.0) == 0
    assert np.isnan(entropy(0, 1.0))
    assert entropy(64, 1.0, c=1.0) == pytest.approx(np.log(64))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_tokens_of_equal_shares_are_those_of_uniform_blocks(order):
    told = theory.uniform_blocks(order, 12, 16, branch_scale=0.8, c0=0.1)
    walked = theory.token_trajectory(
        12, 16, qk_scale=0.0, skip_scale=1.0, branch_scale=0.8, order=order, c0=0.1
    )
    np.testing.assert_allclose(np.exp(walked.log_square), told.square[1:], rtol=1e-12)
    np.testing.assert_allclose(walked.correlation, told.correlation[1:], rtol=1e-12)
    without = theory.token_trajectory(12, 16, qk_scale=0.0, skip_scale=1.0, branch_scale=0.8, c0=0.1)
    assert np.max(np.abs(np.exp(without.log_square) - told.square[1:])) > 0.1


def test_uniform_blocks_printed_numbers():
    pre = theory.uniform_blocks("pre", 100, 16)
    for depth, square, cosine in ((12, 7.377, 0.8644), (24, 18.399, 0.9456), (100, 92.82, 0.9892)):
        assert float(pre.square[depth]) == pytest.approx(square, rel=1e-4)
        assert float(pre.correlation[depth]) == pytest.approx(cosine, abs=5e-5)
    for tokens, middle in ((16, 0.0630), (64, 0.0161)):
        post = theory.uniform_blocks("post", 24, tokens)
        assert float(post.gradient[12]) == pytest.approx(middle, abs=5e-5)
        assert float(post.gradient[0]) == pytest.approx(1.0)
    assert np.isnan(theory.uniform_blocks("post", 2, 0).gradient).all()


@pytest.mark.parametrize("order", ["pre", "post"])
def test_uniform_blocks_are_the_simulated_ones(order):
    """Forward by its recursion, backward by a vector-Jacobian product written out; errors of order depth / width."""
    depth, tokens, width, rng = 6, 8, 512, np.random.default_rng(4)
    told = theory.uniform_blocks(order, depth, tokens, branch_scale=0.8)
    found = np.zeros((24, 3, depth + 1))

    def norm(x):
        centred = x - x.mean(1, keepdims=True)
        return centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True))

    def pull(x, g):
        y, g = norm(x), g - g.mean(1, keepdims=True)
        return (g - y * np.mean(g * y, axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)

    for sample in found:
        states, weights = [rng.normal(size=(tokens, width))], rng.normal(size=(depth, width, width))
        sums = []
        for w in weights / width**0.5:
            x = states[-1]
            mixed = (norm(x) if order == "pre" else x).mean(0, keepdims=True) @ w
            sums.append(x + 0.8 * mixed)
            states.append(sums[-1] if order == "pre" else norm(sums[-1]))
        g = rng.normal(size=(tokens, width))
        g = pull(states[-1], g) if order == "pre" else g
        sample[:, depth] = np.mean(states[-1] ** 2), cosine_of(states[-1]), np.mean(g**2)
        for i in reversed(range(depth)):
            g = pull(sums[i], g) if order == "post" else g
            back = 0.8 * np.broadcast_to(g.mean(0, keepdims=True) @ weights[i].T / width**0.5, g.shape)
            g = g + (pull(states[i], back) if order == "pre" else back)
            sample[:, i] = np.mean(states[i] ** 2), cosine_of(states[i]), np.mean(g**2)
    assert_holds(found, np.array(told), 3 * depth / width)
    with pytest.raises(AssertionError):
        assert_holds(found, np.array(told) * [[1], [1], [1.2]], 3 * depth / width)


def test_a_stack_has_a_layer():
    for wrong in (lambda: theory.token_trajectory(0, 8), lambda: theory.uniform_blocks("pre", 0, 8)):
        with pytest.raises(UsageError, match="depth=0: at least 1 is wanted"):
            wrong()
    with pytest.raises(UsageError, match="'midle'"):
        theory.uniform_blocks("midle", 2, 8)
