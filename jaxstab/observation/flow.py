"""Where the inputs of an operation come from: a traced program read backwards, into calls, loops and branches.

Nothing runs here. A value of a scan's carry comes from the iteration before, or from outside in the first; what only
moves or selects values (`twins.EXACT`) is looked through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, primitives

from jaxstab.observation import loops
from jaxstab.observation.marks import mark_p
from jaxstab.observation.twins import ENTERED, EXACT

ALL = slice(None)
Iteration = tuple[Any, ...]
"""Of each scan around a value, outermost first: an iteration, or ALL of them."""


class Origin(NamedTuple):
    """Where a value comes from. `kind` is "operation", "argument" or "constant".

    `position` is the equation's, with the index of its output last, or that of the argument; `constant` the value.
    """

    kind: str
    position: tuple[int, ...] = ()
    iteration: Iteration = ()
    constant: Any = None


@dataclasses.dataclass(eq=False)
class Frame:
    """A program inside an equation of another. `shift` is how many of the equation's inputs come before its own."""

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    position: tuple[int, ...] = ()
    eqn: Any = None
    parent: Frame | None = None
    shift: int = 0

    @property
    def is_scan(self) -> bool:
        return self.eqn is not None and self.eqn.primitive is primitives.scan_p


class Flow:
    """The values of one traced program and what they are made of."""

    def __init__(self, closed: ClosedJaxpr):
        self.root = Frame(closed.jaxpr, tuple(closed.consts))
        self._frames: dict[tuple[int, ...], Frame] = {(): self.root}
        self._makers: dict[int, dict[Any, tuple[int, int]]] = {}

    def outputs(self) -> list[list[Origin]]:
        """Origins of each output of the program."""
        return [self._resolve(v, self.root, ()) for v in self.root.jaxpr.outvars]

    def inputs(self, position: tuple[int, ...], iteration: Iteration) -> list[list[Origin]]:
        """Origins of each input of the equation at a position (without the index of an output)."""
        frame = self._frame(position[:-1])
        eqn = frame.jaxpr.eqns[position[-1]]
        return [self._resolve(v, frame, iteration) for v in eqn.invars]

    def equation(self, position: tuple[int, ...]) -> Any:
        """The equation at a position."""
        return self._frame(position[:-1]).jaxpr.eqns[position[-1]]

    def branch(self, position: tuple[int, ...]) -> tuple[int, ...] | None:
        """Position of the innermost branch of a cond around an equation, with the branch's number last."""
        frame: Frame | None = self._frame(position[:-1])
        while frame is not None and frame.eqn is not None:
            if frame.eqn.primitive is primitives.cond_p:
                return frame.position
            frame = frame.parent
        return None

    def order(self, position: tuple[int, ...], iteration: Iteration) -> tuple[int, ...]:
        """What sorts values by the time at which they are computed. ALL stands for the last iteration."""
        key: list[int] = []
        steps = list(iteration)
        for depth in range(1, len(position) + 1):
            key.append(position[depth - 1])
            frame = self._frames.get(position[:depth]) or self._opened_at(position[:depth])
            if frame is not None and frame.is_scan and depth < len(position) and steps:
                step = steps.pop(0)
                number = frame.eqn.params["length"] - 1 if step is ALL else step
                key.append(-number if frame.eqn.params["reverse"] else number)
        return tuple(key)

    def _opened_at(self, position: tuple[int, ...]) -> Frame | None:
        try:
            return self._frame(position)
        except (LookupError, ValueError):
            return None

    def _frame(self, position: tuple[int, ...]) -> Frame:
        """The program that holds equations at `position` + (index,)."""
        if position in self._frames:
            return self._frames[position]
        for size in (1, 2):  # the branch of a cond has a number of its own
            parent = self._frames.get(position[:-size]) if len(position) >= size else None
            parent = parent or (self._opened_at(position[:-size]) if len(position) > size else None)
            if parent is None:
                continue
            eqn = parent.jaxpr.eqns[position[-size]]
            is_cond = eqn.primitive is primitives.cond_p
            if is_cond == (size == 2):
                frame = self._open(parent, eqn, position, position[-1] if is_cond else 0)
                if frame is not None:
                    self._frames[position] = frame
                    return frame
        raise LookupError(f"no program at {position}")

    def _open(self, parent: Frame, eqn: Any, position: tuple[int, ...], branch: int) -> Frame | None:
        known = eqn.params
        if not is_open(eqn):
            return None
        if eqn.primitive is primitives.remat_p:
            return Frame(known["jaxpr"], (), position, eqn, parent)
        if eqn.primitive is primitives.cond_p:
            closed, shift = known["branches"][branch], 1
        elif eqn.primitive is primitives.while_p:
            closed, shift = known["body_jaxpr"], known["cond_nconsts"]
        else:
            closed, shift = known.get("jaxpr") or known.get("call_jaxpr") or known["fun_jaxpr"], 0
        return Frame(closed.jaxpr, tuple(closed.consts), position, eqn, parent, shift)

    def _resolve(
        self, v: Any, frame: Frame, iteration: Iteration, seen: frozenset = frozenset()
    ) -> list[Origin]:
        if isinstance(v, Literal):
            return [Origin("constant", constant=v.val)]
        if v in frame.jaxpr.constvars:
            k = frame.jaxpr.constvars.index(v)
            return [Origin("constant", constant=frame.consts[k] if k < len(frame.consts) else None)]
        maker = self._maker(frame).get(v)
        if maker is None:
            return self._argument(frame.jaxpr.invars.index(v), frame, iteration, seen)
        return self._made(*maker, frame, iteration, seen)

    def _maker(self, frame: Frame) -> dict[Any, tuple[int, int]]:
        if id(frame) not in self._makers:
            self._makers[id(frame)] = {
                v: (i, k) for i, eqn in enumerate(frame.jaxpr.eqns) for k, v in enumerate(eqn.outvars)
            }
        return self._makers[id(frame)]

    def _argument(self, k: int, frame: Frame, iteration: Iteration, seen: frozenset) -> list[Origin]:
        """Origins of a program's own argument: in the program around it, or in the iteration before."""
        if frame.parent is None:
            return [Origin("argument", (k,))]
        eqn, outer = frame.eqn, iteration
        around = eqn.invars[k + frame.shift]
        if frame.is_scan:
            known = eqn.params
            outer, carry = iteration[:-1], k - known["num_consts"]
            if 0 <= carry < known["num_carry"]:
                return self._carry(carry, around, frame, iteration, seen)
            if carry >= known["num_carry"] and (made := self._stacked(around, frame.parent)):
                return self._made(*made, frame.parent, outer, seen, row=iteration[-1])
        elif eqn.primitive is primitives.while_p and k >= eqn.params["body_nconsts"]:
            carry = k - eqn.params["body_nconsts"]
            if (frame.position, k) in seen:
                return []
            seen = seen | {(frame.position, k)}
            last = self._resolve(frame.jaxpr.outvars[carry], frame, iteration, seen)
            return self._resolve(around, frame.parent, outer, seen) + last
        return self._resolve(around, frame.parent, outer, seen)

    def _stacked(self, v: Any, frame: Frame) -> tuple[int, int] | None:
        """The maker of `v` if it is what a scan stacked up, so that a row of it belongs to one iteration."""
        made = None if isinstance(v, Literal) else self._maker(frame).get(v)
        if made is None:
            return None
        eqn = frame.jaxpr.eqns[made[0]]
        is_rows = eqn.primitive is primitives.scan_p and made[1] >= eqn.params["num_carry"]
        return made if is_rows and is_open(eqn) else None

    def _carry(
        self, carry: int, around: Any, frame: Frame, iteration: Iteration, seen: frozenset
    ) -> list[Origin]:
        assert frame.parent is not None
        known, step = frame.eqn.params, iteration[-1]
        before, first = (1, known["length"] - 1) if known["reverse"] else (-1, 0)
        if step is ALL or step == first:
            return self._resolve(around, frame.parent, iteration[:-1], seen)
        return self._resolve(frame.jaxpr.outvars[carry], frame, (*iteration[:-1], step + before), seen)

    def _made(
        self, i: int, k: int, frame: Frame, iteration: Iteration, seen: frozenset, row: Any = ALL
    ) -> list[Origin]:
        """Origins of output k of equation i; of that row where a scan stacks it up."""
        eqn, position = frame.jaxpr.eqns[i], (*frame.position, i)
        if is_open(eqn):
            inside = self._inside(eqn, k, position, iteration, row)
            return [o for f, at in inside for o in self._resolve(f.jaxpr.outvars[k], f, at, seen)]
        if eqn.primitive is mark_p or eqn.primitive.name in EXACT:
            read = eqn.invars[1:] if eqn.primitive.name == "select_n" else eqn.invars
            numbers = [v for v in read if np.issubdtype(getattr(v.aval, "dtype", int), np.inexact)] or read[
                :1
            ]
            return [o for v in numbers for o in self._resolve(v, frame, iteration, seen)]
        return [Origin("operation", (*position, k), iteration)]

    def _inside(
        self, eqn: Any, k: int, position: tuple[int, ...], iteration: Iteration, row: Any
    ) -> Iterator[tuple[Frame, Iteration]]:
        """(program, iteration) that an equation's output k is an output of."""
        if eqn.primitive is primitives.cond_p:
            for number in range(len(eqn.params["branches"])):
                yield self._frame((*position, number)), iteration
        elif eqn.primitive is primitives.scan_p:
            last = 0 if eqn.params["reverse"] else eqn.params["length"] - 1
            yield self._frame(position), (*iteration, last if k < eqn.params["num_carry"] else row)
        else:
            yield self._frame(position), iteration


def is_open(eqn: Any) -> bool:
    """Whether the walk goes into an equation, so that its operations have sites of their own."""
    return (eqn.primitive in ENTERED or eqn.primitive.name in ENTERED) and loops.can_enter(eqn)
