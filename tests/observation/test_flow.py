"""Where values come from: through calls, loops and branches of traced programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxstab.observation.flow import ALL, Flow, Origin


def flow_of(f, *args):
    return Flow(jax.make_jaxpr(f)(*args))


X = jnp.ones(3)


def kinds(flow, origins):
    return [
        flow.equation(o.position[:-1]).primitive.name if o.kind == "operation" else o.kind for o in origins
    ]


def test_an_output_comes_of_the_operation_that_made_it_and_that_of_its_inputs():
    flow = flow_of(lambda x, y: jnp.sin(x * y) + 2.0, X, X)
    ((out,),) = flow.outputs()
    assert kinds(flow, [out]) == ["add"]
    left, right = flow.inputs(out.position[:-1], ())
    assert kinds(flow, left) == ["sin"]
    assert right[0].kind == "constant"
    assert right[0].constant == 2.0
    ((product,),) = flow.inputs(left[0].position[:-1], ())
    assert [o[0] for o in flow.inputs(product.position[:-1], ())] == [
        Origin("argument", (0,)),
        Origin("argument", (1,)),
    ]


def test_what_moves_or_selects_is_looked_through_and_a_condition_is_no_origin():
    flow = flow_of(lambda x, y: jnp.where(x > 0, jnp.exp(x), y).reshape(3, 1).T, X, X)
    (origins,) = flow.outputs()
    assert sorted(kinds(flow, origins)) == ["argument", "exp"]


def test_a_call_is_entered():
    flow = flow_of(lambda x: jax.jit(jnp.exp)(jax.checkpoint(jnp.sin)(x)), X)
    ((out,),) = flow.outputs()
    assert kinds(flow, [out]) == ["exp"]
    assert kinds(flow, flow.inputs(out.position[:-1], ())[0]) == ["sin"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_carry_comes_from_the_iteration_before_and_first_from_outside(reverse):
    flow = flow_of(
        lambda x: jax.lax.scan(lambda c, a: (jnp.sin(c) * a, c), x, jnp.ones(4), reverse=reverse), X
    )
    ((last,), rows) = flow.outputs()
    first, step = (3, -1) if reverse else (0, 1)
    assert kinds(flow, [last]) == ["mul"]
    assert last.iteration == (first + 3 * step,)
    ((sine,), _) = flow.inputs(last.position[:-1], last.iteration)
    ((before,),) = flow.inputs(sine.position[:-1], sine.iteration)
    assert before == Origin("operation", last.position, (first + 2 * step,))
    assert flow.inputs(sine.position[:-1], (first,))[0] == [Origin("argument", (0,))]
    assert {o.kind for o in rows} == {"argument"} or all(o.iteration == (ALL,) for o in rows)
    times = [flow.order(last.position, (first + k * step,)) for k in range(4)]
    assert times == sorted(times)


def test_both_branches_of_a_cond_are_origins_and_a_while_leads_back_to_itself():
    flow = flow_of(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), X)
    assert sorted(kinds(flow, flow.outputs()[0])) == ["cos", "sin"]
    flow = flow_of(lambda x: jax.lax.while_loop(lambda x: x[0] < 9, jnp.exp, x), X)
    (origins,) = flow.outputs()
    assert "exp" in kinds(flow, origins)
