"""Whether two forms are the same: yes, no, or not known.

The reference comes first. Only three things are not symmetrical in the two: an answer with more
than a few times as many items is not looked at, a list of the reference that names something twice
is matched item by item, and an answer that is not solved where the reference is, is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rewardsvc.verifiers.arithmetic import RefusedError
from rewardsvc.verifiers.math.algebra import Algebra, Expression
from rewardsvc.verifiers.math.form_reader import as_real_set
from rewardsvc.verifiers.math.forms import (
    End,
    Equation,
    Form,
    Group,
    Grouping,
    Matrix,
    Named,
    Ratio,
    RealSet,
    Scalar,
    Unreadable,
)
from rewardsvc.verifiers.math.reader import read_expression
from rewardsvc.verifiers.math.same_numbers import cross_equal, same_quotient, same_scalar

_MAX_GUESSES = 4
"""How many times as many items as the reference an answer may list."""
_MAX_PAIRS = 10_000
_ARGUMENT = re.compile(r"(?<=[A-Za-z])\([a-z]\)\Z", re.ASCII)
_UNORDERED = (Grouping.BRACES, Grouping.LIST)


def same(reference: Form, answer: Form) -> bool | None:
    """Whether `answer` is `reference`; None if that is not known."""
    try:
        return _same(reference, answer)
    except RefusedError:
        return None


def _same(reference: Form, answer: Form) -> bool | None:
    if isinstance(answer, Unreadable) or isinstance(reference, Unreadable):
        return _same_text(reference, answer)
    if isinstance(reference, Equation) or isinstance(answer, Equation):
        return _same_equation(reference, answer)
    if isinstance(reference, Named) or isinstance(answer, Named):
        return _same_named(reference, answer)
    match reference, answer:
        case Scalar(), Scalar():
            return same_scalar(reference, answer)
        case Matrix(), Matrix():
            return _same_matrix(reference, answer)
        case Matrix(), Group():
            return _same_vector(reference, answer)
        case Group(), Matrix():
            return _same_vector(answer, reference)
        case Ratio(), Ratio():
            return _same_ratio(reference, answer)
        case Ratio(), Scalar():
            return same_quotient(reference, answer)
        case Scalar(), Ratio():
            return same_quotient(answer, reference)
        case Group(), Group():
            return _same_group(reference, answer)
        case (RealSet(), _) | (_, RealSet()):
            return _same_set(reference, answer)
        case Group(items=(item,)), Scalar() if reference.grouping in _UNORDERED:
            return _same(item, answer)
        case Scalar(), Group(items=(item,)) if answer.grouping in _UNORDERED:
            return _same(reference, item)
    return _no_if_read(reference, answer)


def _same_text(reference: Form, answer: Form) -> bool | None:
    if isinstance(answer, Unreadable) and isinstance(reference, Unreadable):
        if answer.text == reference.text:
            return True
        return None if reference.why or not answer.why else False
    if isinstance(answer, Unreadable) and answer.why:
        return False
    return None


def _same_named(reference: Form, answer: Form) -> bool | None:
    if isinstance(reference, Named) and isinstance(answer, Named):
        if _conflict(reference.names, answer.names):
            return _same_equation(reference, answer) is True
        pairs = [(reference.form, answer.form)]
        if answer.rounded is not None:
            pairs.append((reference.form, answer.rounded))
        if reference.rounded is not None:
            pairs.append((reference.rounded, answer.form))
        return _any(_same(left, right) for left, right in pairs)
    if isinstance(reference, Named):
        values = _by_name(reference.names, answer)
        known = (
            [reference.form] if reference.rounded is None else [reference.form, reference.rounded]
        )
        return _any(_same(left, values or answer) for left in known)
    assert isinstance(answer, Named)
    values = _by_name(answer.names, reference)
    given = [answer.form] if answer.rounded is None else [answer.form, answer.rounded]
    return _any(_same(values or reference, right) for right in given)


def _conflict(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two sets of names are of different things: `x` and `y`, but not `y` and `f(x)`."""
    if not names or not others or set(names) & set(others):
        return False
    stems, other_stems = ({_ARGUMENT.sub("()", name) for name in side} for side in (names, others))
    if stems & other_stems:
        return False
    return any(("(" in name) == ("(" in other) for name in stems for other in other_stems)


def _by_name(names: Sequence[str], form: Form) -> Group | None:
    """The values of `x = 1, y = 2` in the order of the name `(x,y)`, if that is what it is."""
    wanted = next((name[1:-1].split(",") for name in names if name.startswith("(")), None)
    values = assignments(form)
    if wanted is None or values is None or set(wanted) != set(values):
        return None
    return Group(grouping=Grouping.ROUND, items=tuple(values[name] for name in wanted))


def assignments(form: Form) -> dict[str, Form] | None:
    """Name → value of `x = 1, y = 2`; None for anything else."""
    if not isinstance(form, Group) or form.grouping is not Grouping.LIST:
        return None
    found: dict[str, Form] = {}
    for item in form.items:
        if not isinstance(item, Named) or not item.names or item.names[0] in found:
            return None
        found[item.names[0]] = item.form
    return found


def _same_equation(reference: Form, answer: Form) -> bool | None:
    same_kind = isinstance(reference, Equation) and isinstance(answer, Equation)
    if same_kind and reference.text == answer.text:  # type: ignore[union-attr]
        return True
    left, right = _difference(reference), _difference(answer)
    if left is not None and right is not None:
        return Algebra().proportional(left, right) or None
    return None if _may_be_equation(reference) and _may_be_equation(answer) else False


def _may_be_equation(form: Form) -> bool:
    return isinstance(form, Equation) or (isinstance(form, Named) and isinstance(form.form, Scalar))


def _difference(form: Form) -> Expression | None:
    """Left side minus right side of an equation, also of one that is solved for a variable."""
    if isinstance(form, Equation):
        return form.difference
    if not isinstance(form, Named) or not isinstance(form.form, Scalar):
        return None
    expression = form.form.expression
    if expression is None or len(form.names) != 1:
        return None
    try:
        return Algebra().subtract(read_expression(form.names[0]), expression)
    except RefusedError:
        return None


def _same_matrix(reference: Matrix, answer: Matrix) -> bool | None:
    if [len(row) for row in reference.rows] != [len(row) for row in answer.rows]:
        return False
    return _all(
        _same(left, right)
        for row, other in zip(reference.rows, answer.rows, strict=True)
        for left, right in zip(row, other, strict=True)
    )


def _same_vector(matrix: Matrix, group: Group) -> bool | None:
    """Whether a matrix of one row or column is a point."""
    if group.grouping in _UNORDERED:
        return False
    if len(matrix.rows) == 1:
        items = matrix.rows[0]
    elif len(matrix.rows[0]) == 1:
        items = tuple(row[0] for row in matrix.rows)
    else:
        return False
    return _in_order(items, group.items)


def _same_ratio(reference: Ratio, answer: Ratio) -> bool | None:
    if len(reference.parts) != len(answer.parts):
        return False
    same_parts = _in_order(reference.parts, answer.parts)
    if same_parts is not False or reference.may_be_a_time or answer.may_be_a_time:
        return same_parts
    return _all(
        cross_equal(reference.parts[0], answer.parts[0], left, right)
        for left, right in zip(reference.parts[1:], answer.parts[1:], strict=True)
    )


def _same_group(reference: Group, answer: Group) -> bool | None:
    named, given = assignments(reference), assignments(answer)
    if named is not None and given is not None:
        if set(named) != set(given):
            return False
        return _all(_same(named[name], given[name]) for name in named)
    if named is not None or given is not None:
        if Grouping.BRACES in (reference.grouping, answer.grouping):
            return False
        return _in_order(_values(reference), _values(answer))
    ordered = [group.grouping not in _UNORDERED for group in (reference, answer)]
    if all(ordered):
        pairs = {reference.grouping, answer.grouping}
        if pairs == {Grouping.ROUND, Grouping.SQUARE} and len(reference.items) == 2:
            return False  # an open interval and a closed one
        return _in_order(reference.items, answer.items)
    if any(ordered):
        pairs = {reference.grouping, answer.grouping}
        if Grouping.BRACES in pairs or (Grouping.SQUARE in pairs and len(reference.items) == 2):
            return False
        return _in_order(reference.items, answer.items)
    return _same_items(reference, answer)


def _values(group: Group) -> tuple[Form, ...]:
    return tuple(item.form if isinstance(item, Named) else item for item in group.items)


def _in_order(reference: Sequence[Form], answer: Sequence[Form]) -> bool | None:
    if len(reference) != len(answer):
        return False
    return _all(_same(left, right) for left, right in zip(reference, answer, strict=True))


def _same_items(reference: Group, answer: Group) -> bool | None:
    """Whether two sets are the same; a list that names something twice wants it twice."""
    wanted, given = reference.items, answer.items
    if len(given) > _MAX_GUESSES * max(1, len(wanted)):
        return False
    if len(wanted) * len(given) > _MAX_PAIRS:
        return None
    Algebra().charge(len(wanted) * len(given))  # sets may hold sets
    table = [[_same(left, right) for right in given] for left in wanted]
    found = _all(_any(row) for row in table)
    found = _all([found, *(_any(row[place] for row in table) for place in range(len(given)))])
    if not found or reference.grouping is not Grouping.LIST:
        return found
    repeated = any(
        _same(left, right) is True for place, left in enumerate(wanted) for right in wanted[:place]
    )
    if not repeated:
        return True
    left_over = set(range(len(given)))
    for row in table:
        place = next((place for place in left_over if row[place] is True), None)
        if place is None:
            return False
        left_over.remove(place)
    return not left_over


def _same_set(reference: Form, answer: Form) -> bool | None:
    try:
        left, right = as_real_set(reference), as_real_set(answer)
    except RefusedError:
        return _no_if_read(reference, answer)
    if len(left.pieces) != len(right.pieces):
        return False
    return _all(
        _same_end(end, other)
        for piece, others in zip(left.pieces, right.pieces, strict=True)
        for end, other in zip(piece, others, strict=True)
    )


def _same_end(reference: End, answer: End) -> bool | None:
    if reference.is_open != answer.is_open:
        return False
    if reference.value is None or answer.value is None:
        return reference.decimal == answer.decimal
    return same_scalar(reference.value, answer.value)


def _no_if_read(reference: Form, answer: Form) -> bool | None:
    """Forms of different kinds are different, if it is known what they are."""
    return False if is_read(reference) and is_read(answer) else None


def is_read(form: Form) -> bool:
    """Whether nothing in a form is beyond the reader."""
    match form:
        case Scalar():
            return form.expression is not None
        case Group():
            return all(map(is_read, form.items))
        case Matrix():
            return all(is_read(entry) for row in form.rows for entry in row)
        case Named():
            return is_read(form.form)
        case Equation():
            return form.difference is not None
        case Unreadable():
            return False
    return True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown |= verdict is None
    return None if unknown else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict:
            return True
        unknown |= verdict is None
    return None if unknown else False
