"""Lists, and the relations in them: `x = 1 or x = 2`, `x < 1 or x > 3`, `a = b = 7`, `x \\ne 0`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import TypeAlias

from rewardsvc.verifiers.arithmetic import RefusedError
from rewardsvc.verifiers.math.algebra import Algebra, rational
from rewardsvc.verifiers.math.forms import (
    End,
    Equation,
    Form,
    Group,
    Grouping,
    Named,
    RealSet,
    Scalar,
    Unreadable,
)
from rewardsvc.verifiers.math.normalise import text_key
from rewardsvc.verifiers.math.real_sets import (
    complement,
    end_at,
    infinite_end,
    intersection,
    interval,
    mirrored,
    point,
    union,
)

Parts: TypeAlias = list[tuple[str, str]]
"""What stood before each part ("" before the first), and the part."""

Read: TypeAlias = Callable[[str], Form]

CONTRADICTION = "it says that different numbers are equal"
UNSOLVED = "it is not solved for one variable"
_UPWARD, _DOWNWARD = frozenset("<≤"), frozenset(">≥")
_SUBSCRIPT = re.compile(r"_\s?(?:\{[^{}]*\}|[A-Za-z0-9])|\^\s?\{-1\}|[A-Za-z]\([^()]*\)", re.ASCII)
_NO_NAME = re.compile(r"[0-9+*/^!∞ℝ∅-]|\\(?:pi|cdot|times|pm|mp|sqrt)(?![A-Za-z])", re.ASCII)
_LETTER = re.compile(r"[A-Za-z]", re.ASCII)
_ABSOLUTE = re.compile(r"\|[^|]+\|")
_DECIMAL = re.compile(r"-?(?=\.?[0-9])[0-9]*(?:\.(?P<places>[0-9]*))?", re.ASCII)
_PRECISION = 60
_MAX_NAME_CHARS = 60
_MAX_SIDES = 200


def is_name(text: str) -> bool:
    """Whether a text may name a quantity: `x`, `a_{37}`, `f(2)`, `\\angle ABC`, `|AB|`."""
    text = text.strip()
    if len(text) > _MAX_NAME_CHARS or not _LETTER.search(text):
        return False
    return not _NO_NAME.search(_SUBSCRIPT.sub("n", text))


def name_key(text: str) -> str:
    """What two spellings of one name share."""
    return re.sub(r"[\s{}]", "", text_key(text))


def combined(parts: Parts, read: Read) -> Form:
    """A list: of values, of what several names stand for, or of conditions on one name."""
    forms = [read(part) for _, part in parts if part.strip()]
    if not forms:
        raise RefusedError("an empty list")
    separators = {separator for separator, _ in parts[1:]}
    names = [form.names for form in forms if isinstance(form, Named)]
    if all(_is_condition(form) for form in forms):
        return _conditions(parts, forms, separators)
    if names and isinstance(forms[0], Named) and _same_names(names):
        # `x = 1, x = 2`, or `x = 1, 2`
        values = [form.form if isinstance(form, Named) else form for form in forms]
        return Named(names=names[0], form=_listed(values))
    return _listed(forms)


def flat(forms: Sequence[Form]) -> tuple[Form, ...]:
    """The items of a list, in which `1 \\pm 2` counts as two."""
    items: list[Form] = []
    for form in forms:
        if isinstance(form, Group) and form.grouping is Grouping.LIST:
            items.extend(form.items)
        else:
            items.append(form)
    return tuple(items)


def _listed(forms: Sequence[Form]) -> Group:
    return Group(grouping=Grouping.LIST, items=flat(forms))


def _same_names(names: Sequence[tuple[str, ...]]) -> bool:
    return all(name == names[0] for name in names)


def _is_condition(form: Form) -> bool:
    return isinstance(form, Named) and isinstance(form.form, RealSet)


def _conditions(parts: Parts, forms: Sequence[Form], separators: set[str]) -> Form:
    named = [form for form in forms if isinstance(form, Named)]
    if not _same_names([form.names for form in named]):
        return _listed(forms)
    sets = [form.form for form in named if isinstance(form.form, RealSet)]
    excluding = any("≠" in part or "∈" in part for _, part in parts)
    if "or" in separators and not separators & {"and"}:
        return Named(names=named[0].names, form=union(sets))
    if separators == {"and"} or excluding:
        result = sets[0]
        for one in sets[1:]:
            result = intersection(result, one)
        return Named(names=named[0].names, form=result)
    return _listed(forms)  # a comma may mean either


def related(text: str, parts: Parts, read: Read) -> Form:
    """What a chain of relations says.

    Args:
        text: The chain.
        parts: Its sides, each with the relation before it.
        read: Reads a side.
    """
    relations = [relation for relation, _ in parts[1:]]
    sides = [side.strip() for _, side in parts]
    if not all(sides):
        raise RefusedError("a relation without two sides")
    if len(sides) > _MAX_SIDES:
        raise RefusedError(f"a chain of more than {_MAX_SIDES} sides")
    kinds = set(relations)
    if kinds == {"∈"} and len(sides) == 2 and is_name(sides[0]):
        return Named(names=(name_key(sides[0]),), form=read(sides[1]))
    if kinds == {"≠"} and len(sides) == 2 and is_name(sides[0]):
        return _named(sides[0], complement(_points(read(sides[1]))))
    if kinds <= _UPWARD or kinds <= _DOWNWARD:
        if kinds <= _DOWNWARD:
            sides.reverse()
            relations = ["<" if relation == ">" else "≤" for relation in reversed(relations)]
        return _inequality(text, sides, relations, read)
    if "≈" in kinds:
        return _approximate(sides, relations, read)
    if kinds == {"="}:
        return _equal(text, sides, read)
    return Unreadable(text=text_key(text))


def _named(name: str, form: Form) -> Named:
    return Named(names=(name_key(name),), form=form)


def _points(form: Form) -> RealSet:
    items = form.items if isinstance(form, Group) else (form,)
    return union([point(item) for item in items if isinstance(item, Scalar)])


def _inequality(text: str, sides: list[str], relations: list[str], read: Read) -> Form:
    """Sides in increasing order; solved only if one of them is a name and the others numbers."""
    unsolved = Unreadable(text=text_key(text), why=UNSOLVED)
    places = [place for place, side in enumerate(sides) if is_name(side)]
    if len(sides) > 3 or len(places) != 1 or (len(sides) == 3 and places != [1]):
        return unsolved
    place = places[0]
    try:
        low = high = None
        if place > 0:
            low = _end(read(sides[place - 1]), relations[place - 1])
        if place < len(sides) - 1:
            high = _end(read(sides[place + 1]), relations[place])
        found = interval(low or infinite_end(positive=False), high or infinite_end(positive=True))
    except RefusedError:
        return unsolved
    name = sides[place]
    if _ABSOLUTE.fullmatch(name):
        found = intersection(found, interval(_zero(), infinite_end(positive=True)))
        found = union([found, mirrored(found)])
        name = name[1:-1]
    return _named(name, found)


def _end(form: Form, relation: str) -> End:
    if not isinstance(form, Scalar):
        raise RefusedError("an inequality with what is no number")
    if form.text in ("∞", "-∞"):
        return infinite_end(positive=form.text == "∞")
    return end_at(form, is_open=relation == "<")


def _zero() -> End:
    return end_at(Scalar(text="0", expression=rational(Fraction(0))), is_open=False)


def _equal(text: str, sides: list[str], read: Read) -> Form:
    """`x = 2 + 3 = 5`: the names, and the last thing that they are."""
    names = [side for side in sides[:-1] if is_name(side)]
    values = [side for side in sides[:-1] if not is_name(side)]
    if is_name(sides[-1]) and not names and len(values) == 1:
        return _named(sides[-1], read(values[0]))
    last = read(sides[-1])
    forms = [read(value) for value in values]
    if _disagree([*forms, last]):
        return Unreadable(text=text_key(text), why=CONTRADICTION)
    if is_name(sides[0]):
        return Named(names=tuple(map(name_key, names)), form=last)
    if all(map(_is_number, [*forms, last])):
        return last
    if len(sides) == 2:
        return _equation(text, forms[0] if forms else read(sides[0]), last)
    return Unreadable(text=text_key(text))


def _is_number(form: Form) -> bool:
    return (
        isinstance(form, Scalar) and form.expression is not None and form.expression.is_constant()
    )


def _disagree(forms: Sequence[Form]) -> bool:
    """Whether there are numbers among them, all plain, that are not the same number."""
    numbers = [form for form in forms if isinstance(form, Scalar) and _is_number(form)]
    algebra = Algebra()
    for number in numbers[1:]:
        left, right = numbers[0].expression, number.expression
        if left is None or right is None or number.percent != numbers[0].percent:
            continue
        if algebra.equal(left, right) is False and not _rounds_to(numbers[0], number):
            return True
    return False


def _rounds_to(exact: Form, rounded: Form) -> bool:
    """Whether a plain decimal is what a number rounds to, at as many places as it has."""
    if not isinstance(exact, Scalar) or not isinstance(rounded, Scalar):
        return False
    match = _DECIMAL.fullmatch(rounded.text)
    if match is None or exact.expression is None:
        return False
    value = exact.expression.decimal()
    if value is None:
        return False
    with localcontext(Context(prec=_PRECISION)):  # the caller's may trap anything
        half_a_unit = Decimal(5).scaleb(-len(match["places"] or "") - 1)
        return abs(value - Decimal(rounded.text)) <= half_a_unit


def _approximate(sides: list[str], relations: list[str], read: Read) -> Form:
    """`x = 1/3 ≈ 0.33`: the exact number counts, and the decimal if it is honest."""
    first = relations.index("≈")
    exact_sides = sides[: first + 1]
    rounded = read(sides[-1])
    if all(map(is_name, exact_sides)):
        return Named(names=tuple(map(name_key, exact_sides)), form=rounded)
    exact = read("=".join(exact_sides))
    names: tuple[str, ...] = ()
    if isinstance(exact, Named):
        names, exact = exact.names, exact.form
    honest = _rounds_to(exact, rounded)
    return Named(names=names, form=exact, rounded=rounded if honest else None)


def _equation(text: str, left: Form, right: Form) -> Equation:
    difference = None
    if (
        isinstance(left, Scalar)
        and isinstance(right, Scalar)
        and left.expression is not None
        and right.expression is not None
    ):
        difference = Algebra().subtract(left.expression, right.expression)
    return Equation(difference=difference, text=text_key(text))
