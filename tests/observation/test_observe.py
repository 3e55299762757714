"""Observation changes no bit, and what it says of a call is what the library itself says."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from models import CASES, WIDTH
from sightings import assert_close, assert_same_bits, observed, rms, rows

from jaxstab.observation import loops, mark, observe, walk

ALL = pytest.mark.parametrize("case", CASES)


@ALL
@pytest.mark.parametrize("at", ["calls", "operations"])
def test_outputs_and_gradients_keep_their_bits(case, at):
    """Where every operation is seen, XLA cannot fuse as without; which bits that moves hangs on the processor."""
    loss, params = CASES[case]()
    step = jax.value_and_grad(loss, argnums=(0, 1))
    out, seen = jax.jit(observe(step, at=at))(params, models.inputs())
    (assert_same_bits if at == "calls" else assert_close)(jax.jit(step)(params, models.inputs()), out)
    assert {site.direction for site in seen.sites} >= {"forward", "backward"}
    taken = [v for site, v in zip(seen.sites, seen.values, strict=True) if site.branch != "1"]
    assert all(np.isfinite(value).all() for value in taken)


def test_a_changed_bit_is_seen(monkeypatch):
    true = loops.bind
    monkeypatch.setattr(
        loops, "bind", lambda e, x: [y * 1.0000001 if is_product(e) else y for y in true(e, x)]
    )
    loss, params = CASES["linen"]()
    out, _ = jax.jit(observe(loss))(params, models.inputs())
    with pytest.raises(AssertionError):
        assert_same_bits(jax.jit(loss)(params, models.inputs()), out)


def is_product(eqn):
    return eqn.primitive.name == "dot_general"


@ALL
def test_seeds_under_vmap_are_as_one_by_one(case):
    loss, params = CASES[case]()
    step = observe(jax.value_and_grad(loss))
    batches = jnp.stack([models.inputs() * scale for scale in (0.5, 1.0, 2.0)])
    plain = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(params, batches)
    out, seen = jax.jit(jax.vmap(step, in_axes=(None, 0)))(params, batches)
    assert_same_bits(plain, out)
    together = seen.to_dataset(axes=("seed",))
    assert together.sizes["seed"] == 3
    for i, batch in enumerate(batches):
        alone = jax.jit(step)(params, batch)[1].to_dataset()
        for name in ("rms", "absmax"):
            np.testing.assert_allclose(together[name].isel(seed=i), alone[name], rtol=2e-5)


@ALL
def test_every_call_is_seen_once_in_each_direction(case):
    _, seen = observed(case)
    keys = [(s.path, s.direction, s.output, s.branch) for s in seen.sites]
    assert len(keys) == len({*keys})
    if case != "plain":
        forward = {k[0] for k in keys if k[1] == "forward"}
        assert forward == {k[0] for k in keys if k[1] == "backward"}


def test_activations_are_those_that_linen_captures():
    model = models.LinenMLP()
    _, params = CASES["linen"]()
    _, kept = model.apply(params, models.inputs(), capture_intermediates=True)
    wanted = {
        "/".join(("LinenMLP", *path)): rms(value[0])
        for path, value in nn_flat(kept["intermediates"], "__call__").items()
    }
    found = rows(observed("linen")[1])
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], [value], rtol=1e-5)


def nn_flat(tree, leaf):
    """Path of a module -> what linen kept under `leaf`."""
    found = {(): tree[leaf]} if leaf in tree else {}
    for name, inner in tree.items():
        if name != leaf:
            found |= {(name, *path): value for path, value in nn_flat(inner, leaf).items()}
    return found


@pytest.mark.parametrize("case", ["linen", "linen_remat"])
def test_gradients_are_those_of_perturb(case):
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(3):
                y = nn.Dense(WIDTH, name=f"layer_{i}")(x)
                x = jnp.tanh(self.perturb(f"at_{i}", y))
            return self.perturb("at_3", nn.Dense(2, name="head")(x))

    _, params = CASES[case]()
    zeros = Named().init(jax.random.key(0), models.inputs())["perturbations"]

    def loss(zeros):
        return jnp.mean(Named().apply({**params, "perturbations": zeros}, models.inputs()) ** 2)

    wanted = jax.grad(loss)(zeros)
    found = rows(observed(case)[1], "backward")
    for i, name in enumerate(("layer_0", "layer_1", "layer_2", "head")):
        np.testing.assert_allclose(found[f"LinenMLP/{name}"], [rms(wanted[f"at_{i}"])], rtol=1e-5)


def assert_gradients_in_scan_and_remat_are_right(factor=1.0):
    """tanh(h W_i), i = 0..2, and the mean square: gradients by hand, with marks in a rematerialized scan."""
    weights = np.asarray(models.plain()[1], np.float64)
    x = np.asarray(models.inputs(), np.float64)

    def loss(w, x):
        step = jax.checkpoint(lambda h, wi: (mark(jnp.tanh(h @ wi), "h"), None))
        return jnp.mean(jax.lax.scan(step, x, w)[0] ** 2)

    _, seen = jax.jit(observe(jax.value_and_grad(loss)))(jnp.float32(weights), jnp.float32(x))
    states = [x]
    for w in weights:
        states.append(np.tanh(states[-1] @ w))
    gradients = [2 * states[-1] / states[-1].size]
    for w, h in zip(weights[:0:-1], states[:1:-1], strict=True):
        gradients.append((gradients[-1] * (1 - h**2)) @ w.T)
    np.testing.assert_allclose(rows(seen)["h"], [factor * rms(h) for h in states[1:]], rtol=1e-5)
    np.testing.assert_allclose(rows(seen, "backward")["h"], [rms(g) for g in gradients[::-1]], rtol=1e-5)


def test_gradients_in_scan_and_remat():
    assert_gradients_in_scan_and_remat_are_right()
    with pytest.raises(AssertionError):
        assert_gradients_in_scan_and_remat_are_right(factor=1.001)


def test_a_recomputation_counted_twice_is_seen(monkeypatch):
    true = walk.Walk._marked

    def forget(self, e, x, here):
        return true(self, e, x, walk.Place(names=here.names))

    monkeypatch.setattr(walk.Walk, "_marked", forget)
    with pytest.raises(AssertionError):
        test_every_call_is_seen_once_in_each_direction("linen_scan")


def test_scopes_of_a_plain_function_in_scan_cond_and_while():
    loss, weights = models.plain()
    _, seen = jax.jit(observe(loss))(weights, models.inputs())
    h = np.asarray(models.inputs(), np.float64)
    states = []
    for w in np.asarray(weights, np.float64):
        h = np.tanh(h @ w)
        states.append(rms(h))
    found = rows(seen)
    np.testing.assert_allclose(found["stack/layer"], states, rtol=1e-5)
    np.testing.assert_allclose(found["stack"][0], states[-1], rtol=1e-5)
    np.testing.assert_allclose(found["choice/scaled"], [3 * states[-1]], rtol=1e-5)
    np.testing.assert_allclose(
        found["search/doubled"], [16 * 3 * states[-1]], rtol=1e-5
    )  # the largest: the last
    by_path = {site.path: site for site in seen.sites}
    assert by_path["choice/scaled"].branch == "0"
    assert by_path["search/doubled"].in_while


def test_a_branch_not_taken_and_a_loop_that_never_ran_are_nan():
    def f(x, n):
        x = jax.lax.cond(n > 0, lambda x: mark(x + 1, "yes"), lambda x: mark(x - 1, "no"), x)
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, mark(c[1] * 2, "loop")), (0, x))[1]

    _, seen = jax.jit(observe(f))(jnp.ones(3), 2)
    found = rows(seen)
    assert (found["yes"], found["loop"]) == (2.0, 8.0)
    assert np.isnan(found["no"]).all()
    found = rows(jax.jit(observe(f))(jnp.ones(3), 0)[1])
    assert found["no"] == 0.0
    assert np.isnan([*found["yes"], *found["loop"]]).all()


def test_the_observed_function_can_itself_be_differentiated_scanned_and_rematerialized():
    loss, params = CASES["linen_scan"]()
    x = models.inputs()
    plain = jax.jit(jax.value_and_grad(loss))(params, x)
    (value, seen), gradient = jax.jit(jax.value_and_grad(jax.checkpoint(observe(loss)), has_aux=True))(
        params, x
    )
    assert_same_bits(plain, (value, gradient))
    assert {site.direction for site in seen.sites} == {"forward"}

    def steps(params):
        def step(p, _):
            (value, gradient), seen = observe(jax.value_and_grad(loss))(p, x)
            return jax.tree.map(lambda p, g: p - 0.01 * g, p, gradient), (value, seen)

        return jax.lax.scan(step, params, length=2)[1]

    losses, seen = jax.jit(steps)(params)
    assert losses[1] < losses[0]
    assert seen.to_dataset(axes=("step",)).sizes["step"] == 2


def test_an_observed_function_inside_another():
    loss, params = CASES["linen"]()

    def outer(params, x):
        value, inner = observe(loss)(params, x)
        return value, inner

    (_, inner), around = jax.jit(observe(outer))(params, models.inputs())
    assert [site.path for site in inner.sites] == [site.path for site in around.sites]
    np.testing.assert_array_equal(np.stack(inner.values), np.stack(around.values))


def test_a_tangent_is_told_from_a_value():
    def f(x, t):
        return jax.jvp(lambda x: mark(x**2, "square"), (x,), (t,))

    _, seen = jax.jit(observe(f))(jnp.full(3, 3.0), jnp.ones(3))
    assert rows(seen)["square"] == 9.0
    assert rows(seen, "tangent")["square"] == 6.0


def test_one_module_called_twice_and_a_call_of_super():
    class Twice(nn.Module):
        def setup(self):
            self.layer = nn.Dense(WIDTH)
            self.attention = Attention(2)

        def __call__(self, x):
            return self.layer(self.attention(self.layer(x)[None])[0] * 3)

    class Attention(nn.MultiHeadDotProductAttention):
        @nn.compact
        def __call__(self, x):
            return super().__call__(x)

    model = Twice()
    params = model.init(jax.random.key(0), models.inputs())

    def loss(p, x):
        return jnp.sum(model.apply(p, x) ** 2)

    _, seen = jax.jit(observe(jax.grad(loss)))(params, models.inputs())
    forward = [s.path for s in seen.sites if s.direction == "forward"]
    assert forward[0] == "Twice/layer"
    assert forward[-2:] == ["Twice/layer#2", "Twice"]
    assert forward.count("Twice/attention") == 1
    assert [s.path for s in seen.sites if s.direction == "backward"][:2] == ["Twice", "Twice/layer#2"]


def test_user_scopes_are_part_of_the_path():
    class Scoped(nn.Module):
        @nn.compact
        def __call__(self, x):
            with jax.named_scope("encoder"):
                return nn.Dense(2, name="out")(x)

    model = Scoped()
    params = model.init(jax.random.key(0), models.inputs())
    _, seen = jax.jit(observe(model.apply))(params, models.inputs())
    assert [site.path for site in seen.sites] == ["Scoped/encoder/out", "Scoped"]
    assert all(Path(site.source.rsplit(":", 1)[0]) == Path(__file__) for site in seen.sites)
