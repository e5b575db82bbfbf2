"""Operations in turn that C has as one, and how few temporary arrays they need.

Each operation that C is spared is spared loading and storing the values in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from optplug._optplug import lib


@dataclass(frozen=True)
class Instruction:
    """What is done to arrays: see ``optplug_instruction``."""

    elementwise: int
    end: int
    to: int
    a: int = -1
    b: int = -1
    c: int = -1
    v: int = -1
    u: int = -1


#: What C has as one operation: one and the next, which reads its result as this operand.
_MERGED = {
    (lib.ELEMENTWISE_MUL_SCALAR, lib.ELEMENTWISE_ADDCMUL_FMA): (lib.ELEMENTWISE_MUL_ADDCMUL_FMA, "a"),
    (lib.ELEMENTWISE_MUL_SCALAR, lib.ELEMENTWISE_ADD_FMA): (lib.ELEMENTWISE_MUL_ADD_FMA, "a"),
    (lib.ELEMENTWISE_ADD_SCALAR, lib.ELEMENTWISE_ADDCDIV): (lib.ELEMENTWISE_ADDCDIV_ADDED, "c"),
    (lib.ELEMENTWISE_DIV_SCALAR, lib.ELEMENTWISE_MUL_SCALAR): (lib.ELEMENTWISE_DIV_MUL_SCALAR, "a"),
    (lib.ELEMENTWISE_ADD_SCALAR, lib.ELEMENTWISE_RECIPROCAL): (lib.ELEMENTWISE_ADD_RECIPROCAL, "a"),
    (lib.ELEMENTWISE_ADD_RECIPROCAL, lib.ELEMENTWISE_MUL_SCALAR): (
        lib.ELEMENTWISE_ADD_RECIPROCAL_MUL,
        "a",
    ),
    (lib.ELEMENTWISE_DIV, lib.ELEMENTWISE_MUL): (lib.ELEMENTWISE_DIV_MUL, "a"),
    (lib.ELEMENTWISE_MUL, lib.ELEMENTWISE_MUL_SCALAR): (lib.ELEMENTWISE_MUL_MUL_SCALAR, "a"),
    (lib.ELEMENTWISE_MUL_MUL_SCALAR, lib.ELEMENTWISE_ADD_FMA): (lib.ELEMENTWISE_ADD_PRODUCT_FMA, "b"),
    (lib.ELEMENTWISE_ABS, lib.ELEMENTWISE_ADD_SCALAR): (lib.ELEMENTWISE_ABS_ADD_SCALAR, "a"),
    (lib.ELEMENTWISE_ABS_ADD_SCALAR, lib.ELEMENTWISE_MAXIMUM): (lib.ELEMENTWISE_MAXIMUM_ABS_ADDED, "b"),
    (lib.ELEMENTWISE_ABS_ADD_SCALAR, lib.ELEMENTWISE_MAXIMUM_FIRST): (
        lib.ELEMENTWISE_MAXIMUM_FIRST_ABS_ADDED,
        "b",
    ),
    (lib.ELEMENTWISE_MUL_SCALAR, lib.ELEMENTWISE_MAXIMUM_ABS_ADDED): (
        lib.ELEMENTWISE_MUL_MAXIMUM_ABS_ADDED,
        "a",
    ),
    (lib.ELEMENTWISE_MUL_SCALAR, lib.ELEMENTWISE_MAXIMUM_FIRST_ABS_ADDED): (
        lib.ELEMENTWISE_MUL_MAXIMUM_FIRST_ABS_ADDED,
        "a",
    ),
}


def merged(instructions: list[Instruction], lists: int) -> list[Instruction]:
    """Make one operation of some in turn, where C has them as one and nobody else reads what is in between.

    Args:
        lists: how many arrays are no temporary ones.
    """
    made = list[Instruction]()
    for i, one in enumerate(instructions):
        made.append(one)
        while len(made) > 1 and (both := _as_one(made[-2], made[-1], lists, instructions[i + 1 :])):
            made[-2:] = [both]
    return made


def _as_one(first: Instruction, one: Instruction, lists: int, later: list[Instruction]) -> Instruction | None:
    """Return two operations in turn as one; None if C has none."""
    number, operand = _MERGED.get((first.elementwise, one.elementwise), (0, ""))
    end, same = _MERGED.get((first.end, one.end), (0, ""))
    if not number or operand != same:
        return None
    arrays = {name: getattr(one, name) for name in "abc"}
    is_over = one.to == first.to or (first.to >= lists and not _is_read(first.to, later))
    if arrays.pop(operand) != first.to or first.to in arrays.values() or not is_over:
        return None
    # What the first one has beside its first array goes where the other has nothing.
    arrays[operand] = first.a
    if first.b >= 0:
        arrays[next(name for name in "bc" if arrays[name] < 0)] = first.b
    v, u, scalar = one.v, one.u, max(first.v, first.u)
    v, u = (v, scalar) if u < 0 else (scalar, u)
    return Instruction(number, end, one.to, **arrays, v=v, u=u)


def _is_read(number: int, instructions: list[Instruction]) -> bool:
    """Tell whether an array is read before it is written."""
    for one in instructions:
        if number in (one.a, one.b, one.c):
            return True
        if number == one.to:
            return False
    return False


def packed(instructions: list[Instruction], lists: int) -> tuple[list[Instruction], int]:
    """Let temporary arrays take the place of others that nobody reads any more."""
    last = {number: i for i, one in enumerate(instructions) for number in (one.a, one.b, one.c, one.to)}
    places: dict[int, int] = {}
    packed, free, count = [], list[int](), 0

    def place(number: int) -> int:
        return places[number] if number >= lists else number

    for i, one in enumerate(instructions):
        a, b, c = place(one.a), place(one.b), place(one.c)
        for number in {one.a, one.b, one.c} - {one.to}:
            if number >= lists and last[number] == i:
                free.append(places[number])
        if one.to >= lists and one.to not in places:
            if not free:
                free, count = [lists + count], count + 1
            places[one.to] = free.pop()
        packed.append(replace(one, to=place(one.to), a=a, b=b, c=c))
    return packed, count
