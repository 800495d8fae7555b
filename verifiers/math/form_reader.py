"""Normalised text to forms: lists, sets, intervals, inequalities, equations, matrices, ratios.

One scan finds what stands outside of all brackets: first what separates the items of a list, then
relations, then the operations of sets; what is left is a thing in brackets or one expression.
Whatever the reader is not sure of is `Unreadable`, which nobody takes for wrong by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from rewardsvc.verifiers.arithmetic import RefusedError
from rewardsvc.verifiers.math.algebra import Algebra, one_budget, symbol
from rewardsvc.verifiers.math.forms import (
    EMPTY,
    REAL_LINE,
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
from rewardsvc.verifiers.math.normalise import text_key, without_outer_braces
from rewardsvc.verifiers.math.rational import decimal_places, split_percent
from rewardsvc.verifiers.math.reader import has_index_letters, read_expression
from rewardsvc.verifiers.math.real_sets import (
    MAX_PIECES,
    complement,
    end_at,
    infinite_end,
    intersection,
    interval,
    union,
)
from rewardsvc.verifiers.math.relations import Parts, combined, flat, related

MAX_ITEMS = 200
MAX_DEPTH = 20

_SYMBOLS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.ASCII), symbol_)
    for pattern, symbol_ in (
        (r"\\(?:text|textrm|mathrm|mbox)\s?\{\s?(and|or)\s?\}", r" \1 "),
        (r"\\(?:leq?|leqslant)(?![A-Za-z])|<=", "≤"),
        (r"\\(?:geq?|geqslant)(?![A-Za-z])|>=", "≥"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])|!=|\\not\s?=", "≠"),
        (r"\\in(?![A-Za-z])", "∈"),
        (r"\\cup(?![A-Za-z])", "∪"),
        (r"\\cap(?![A-Za-z])", "∩"),
        (r"\\(?:setminus|backslash)(?![A-Za-z])", "∖"),
        (r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])", "≈"),
        (r"\\l?brace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\infty(?![A-Za-z])|(?<![A-Za-z\\])(?:oo|infinity|inf)(?![A-Za-z])", "∞"),
        (r"\\mathbb\s?(?:\{\s?R\s?\}|R(?![A-Za-z]))|\\R(?![A-Za-z])", "ℝ"),
        (r"\\(?:emptyset|varnothing)(?![A-Za-z])|\\\{\s?\\\}", "∅"),
        (r"\\l?dots(?![A-Za-z])|\.\.\.", "…"),
        (r"(?<=[0-9.]) ?x ?(?=10\^)", r"\\times "),
        (r"(?<![0-9.,])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9])", "grouped"),
        (r"(?<![0-9/^.])([0-9]{1,9}) ([0-9]{1,9})/([0-9]{1,9})(?![0-9])", "mixed"),
    )
)
_TO_RESPELL = re.compile(r"[\\<>!]|oo|inf|\.\.|x ?10|[0-9] [0-9]")
_MARK = re.compile(
    r"\\begin\b|\\end\b|\\\{|\\\}|\\[lr]angle\b|\\\\|\\[A-Za-z]+|\\.|[][(){}]"
    r"|(?<![A-Za-z])(?:and|or)(?![a-z])|[,;:&=<>≤≥≠≈∈∪∩∖]",
    re.ASCII,
)
_OPENING = frozenset({"\\begin", "\\{", "\\langle", "(", "[", "{"})
_CLOSING = frozenset({"\\end", "\\}", "\\rangle", ")", "]", "}"})
_LISTING = frozenset({",", ";", "and", "or"})
_RELATIONS = frozenset("=∈≈<>≤≥≠")
_SET_OPERATIONS = frozenset("∪∩∖")
_GROUPED = re.compile(r"-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"(-?[0-9]+),([0-9]+)", re.ASCII)
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", re.ASCII)
_MATRIX = re.compile(
    r"[\[(]?\s?\\begin\s?\{(?P<kind>[pbB]?matrix|smallmatrix|array)\}(?:\s?\{[lcr| ]{1,40}\})?"
    r"(?P<body>.*)\\end\s?\{(?P=kind)\}\s?[\])]?",
    re.ASCII | re.DOTALL,
)
_TIME_OF_DAY = re.compile(r"(?:[01]?[0-9]|2[0-4])(?::[0-5][0-9]){1,2}", re.ASCII)
_FRENCH = re.compile(r"\][^][]{1,200}[][]|[][][^][]{1,200}\[")


def read_forms(text: str) -> list[Form]:
    """What a normalised text may say; several readings where commas may mean two things."""
    with one_budget():
        return _readings(_respelled(text))


def _readings(text: str) -> list[Form]:
    forms: list[Form] = []
    if _DECIMAL_COMMA.fullmatch(text) and not _GROUPED.fullmatch(text):
        forms.append(_scalar(text.replace(",", ".")))
    if _GROUPED.fullmatch(text):
        forms.append(_scalar(text))
    if _FRENCH.fullmatch(text):
        text = ("(" if text[0] == "]" else "[") + text[1:-1] + (")" if text[-1] == "[" else "]")
    forms.append(_read(text, 0))
    return forms


def count_items(text: str) -> int:
    """How many things a normalised text names: 3 of `1, 2, 3` or `x = 1, y = 2, z = 3`, else 1."""
    counts = [1]
    for form in read_forms(text):
        inner = form.form if isinstance(form, Named) else form
        if isinstance(inner, Group):
            counts.append(len(inner.items))
    return max(counts)


def _respelled(text: str) -> str:
    if not _TO_RESPELL.search(text):
        return text.strip()
    for pattern, replacement in _SYMBOLS:
        if replacement == "grouped":
            text = pattern.sub(lambda match: match[1].replace(" ", ""), text)
        elif replacement == "mixed":
            text = pattern.sub(_mixed, text)
        else:
            text = pattern.sub(replacement, text)
    return text.strip()


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = match.groups()
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else match.group()


def _read(text: str, depth: int) -> Form:
    text = without_outer_braces(text)
    if not text or depth > MAX_DEPTH:
        return Unreadable(text=text_key(text))
    if text == "∅":
        return EMPTY
    if text == "ℝ":
        return REAL_LINE
    try:
        marks = list(_marks(text))
        kinds = {symbol_ for symbol_, _, _ in marks}
        if kinds & _LISTING:
            return _list(text, marks, depth)
        if kinds & _RELATIONS and not (kinds & _SET_OPERATIONS and "∈" not in kinds):
            return related(text, _split(text, marks, _RELATIONS), partial(_read, depth=depth + 1))
        if kinds & _SET_OPERATIONS:
            return _set_operation(_split(text, marks, _SET_OPERATIONS), depth)
        if ":" in kinds:
            return _ratio(text, _split(text, marks, frozenset(":")))
        matrix = _MATRIX.fullmatch(text)
        if matrix is not None:
            return _matrix(matrix["body"], depth)
        return _bracketed(text, depth) or _signs(text)
    except RefusedError:
        return Unreadable(text=text_key(text))


def _marks(text: str) -> Iterator[tuple[str, int, int]]:
    """Symbol, start and end of what stands outside of all brackets and means something."""
    depth = 0
    for match in _MARK.finditer(text):
        symbol_ = match.group()
        if symbol_ in _OPENING:
            depth += 1
        elif symbol_ in _CLOSING:
            depth -= 1
        elif (depth == 0 and not symbol_.startswith("\\")) or (depth == 0 and symbol_ == "\\\\"):
            yield symbol_, match.start(), match.end()


def _split(text: str, marks: Sequence[tuple[str, int, int]], separators: frozenset[str]) -> Parts:
    parts: Parts = []
    start, before = 0, ""
    for symbol_, left, right in marks:
        if symbol_ in separators:
            parts.append((before, text[start:left]))
            start, before = right, symbol_
    parts.append((before, text[start:]))
    return parts


def split_top(text: str, *separators: str) -> list[str]:
    """`text` at every separator that stands outside of all brackets."""
    return [part for _, part in _split(text, list(_marks(text)), frozenset(separators))]


def _bracketed(text: str, depth: int) -> Form | None:
    """The form of a text that one pair of brackets encloses; None for any other."""
    opening = next((o for o in ("\\{", "\\langle", "(", "[") if text.startswith(o)), None)
    closing = next((c for c in ("\\}", "\\rangle", ")", "]") if text.endswith(c)), None)
    if opening is None or closing is None or not _is_one_pair(text, len(text) - len(closing)):
        return None
    inside = text[len(opening) : -len(closing)].strip()
    if opening == "\\{" and closing == "\\}":
        builder = re.split(r"\\mid(?![A-Za-z])|\||:", inside, maxsplit=1)
        if len(builder) == 2 and builder[0].strip() and not builder[0].strip()[0].isdigit():
            return _read(builder[1], depth + 1)
    parts = split_items(inside)
    if len(parts) > MAX_ITEMS:
        raise RefusedError(f"more than {MAX_ITEMS} items")
    if len(parts) == 1 and opening in ("(", "[") and {opening, closing} in ({"(", ")"}, {"[", "]"}):
        inner = _read(inside, depth + 1)
        return None if isinstance(inner, Scalar | Unreadable) else inner
    items = tuple(_read(part, depth + 1) for part in parts)
    if opening == "\\{":
        items = flat(items)
    match opening, closing:
        case "\\{", "\\}":
            return Group(grouping=Grouping.BRACES, items=items)
        case "\\langle", "\\rangle":
            return Group(grouping=Grouping.ANGLE, items=items)
        case "(", ")":
            return Group(grouping=Grouping.ROUND, items=items)
        case "[", "]":
            return Group(grouping=Grouping.SQUARE, items=items)
    if len(items) != 2:
        raise RefusedError("brackets of two kinds")
    return pair_as_interval(items, low_open=opening == "(", high_open=closing == ")")


def _is_one_pair(text: str, last: int) -> bool:
    """Whether the first bracket of a text is closed by its last, at `last`, and not before."""
    depth = 0
    for match in _MARK.finditer(text):
        symbol_ = match.group()
        if symbol_ in _OPENING:
            depth += 1
        elif symbol_ in _CLOSING:
            depth -= 1
            if depth == 0:
                return match.start() == last
    return False


def split_items(text: str) -> list[str]:
    """The items of a list. Where some commas are followed by a space, `1,000` is one item."""
    marks = [mark for mark in _marks(text) if mark[0] in (",", ";")]
    commas = [mark for mark in marks if mark[0] == ","]
    spaced = [mark for mark in commas if text[mark[2] : mark[2] + 1] == " "]
    if ";" in {mark[0] for mark in marks}:
        marks = [mark for mark in marks if mark[0] == ";"]
    elif spaced and len(spaced) < len(commas):
        thousands = {match.start() for match in _THOUSANDS_COMMA.finditer(text)}
        if all(mark in spaced or mark[1] in thousands for mark in commas):
            marks = spaced
    return [part.strip() for _, part in _split(text, marks, frozenset(",;"))]


def pair_as_interval(items: Sequence[Form], *, low_open: bool, high_open: bool) -> RealSet:
    """The interval between two numbers or infinities."""
    low, high = items
    if not isinstance(low, Scalar) or not isinstance(high, Scalar):
        raise RefusedError("an interval between what is no number")
    low_end = infinite_end(positive=False) if low.text == "-∞" else end_at(low, is_open=low_open)
    high_end = (
        infinite_end(positive=True) if high.text in ("∞", "+∞") else end_at(high, is_open=high_open)
    )
    if low_end.decimal > high_end.decimal:
        raise RefusedError("an interval whose ends are in the wrong order")
    return interval(low_end, high_end)


def as_real_set(form: Form) -> RealSet:
    """The set of real numbers that a form may be read as.

    Raises:
        RefusedError: If there is none.
    """
    match form:
        case RealSet():
            return form
        case Named():
            return as_real_set(form.form)
        case Group(grouping=Grouping.ROUND, items=(_, _)):
            return pair_as_interval(form.items, low_open=True, high_open=True)
        case Group(grouping=Grouping.SQUARE, items=(_, _)):
            return pair_as_interval(form.items, low_open=False, high_open=False)
        case Group(grouping=Grouping.BRACES | Grouping.LIST):
            return union([as_real_set(item) for item in form.items if _is_number(item)])
        case Scalar():
            end = end_at(form, is_open=False)
            return RealSet(pieces=((end, end),))
    raise RefusedError("no set of real numbers")


def _is_number(form: Form) -> bool:
    if not isinstance(form, Scalar):
        raise RefusedError("no set of real numbers")
    return True


def _set_operation(parts: Parts, depth: int) -> Form:
    if len(parts) > MAX_PIECES:
        raise RefusedError(f"more than {MAX_PIECES} sets")
    result: RealSet | None = None
    for operation, part in parts:
        one = as_real_set(_read(part, depth + 1))
        if result is None:
            result = one
        elif operation == "∪":
            result = union([result, one])
        elif operation == "∩":
            result = intersection(result, one)
        else:
            result = without(result, one)
    assert result is not None
    return result


def without(left: RealSet, right: RealSet) -> RealSet:
    """All that is in the first and not in the second."""
    return intersection(left, complement(right))


def _list(text: str, marks: Sequence[tuple[str, int, int]], depth: int) -> Form:
    read = partial(_read, depth=depth + 1)
    kinds = {symbol_ for symbol_, _, _ in marks}
    if {",", ";"} <= kinds:  # `p = 5, q = 2; p = 7, q = 2`
        rows = [read(part) for _, part in _split(text, marks, frozenset({";"}))]
        return Group(grouping=Grouping.LIST, items=tuple(rows))
    if kinds & _LISTING == {","}:
        parts = [("", part) for part in split_items(text)]
        parts[1:] = [(",", part) for _, part in parts[1:]]
    else:
        parts = _split(text, marks, _LISTING)
    if len(parts) > MAX_ITEMS:
        raise RefusedError(f"more than {MAX_ITEMS} items")
    return combined(parts, read)


def _matrix(body: str, depth: int) -> Form:
    lines = [line for line in split_top(body, "\\\\") if line.strip()]
    rows = [tuple(_read(cell, depth + 1) for cell in split_top(line, "&")) for line in lines]
    if not rows or len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > MAX_ITEMS:
        raise RefusedError("no matrix")
    return Matrix(rows=tuple(rows))


def _ratio(text: str, parts: Parts) -> Form:
    if len(parts) > MAX_ITEMS:
        raise RefusedError(f"more than {MAX_ITEMS} items")
    numbers = tuple(_scalar(part) for _, part in parts)
    if any(n.expression is None or n.percent or not n.expression.is_constant() for n in numbers):
        return Unreadable(text=text_key(text))
    return Ratio(parts=numbers, may_be_a_time=_TIME_OF_DAY.fullmatch(text) is not None)


def _signs(text: str) -> Form:
    """`1 \\pm 2` is a list of two; several signs go together."""
    if "\\pm" not in text and "\\mp" not in text:
        return _scalar(text)
    upper = re.sub(r"\\pm(?![a-z])", "+", re.sub(r"\\mp(?![a-z])", "-", text))
    lower = re.sub(r"\\pm(?![a-z])", "-", re.sub(r"\\mp(?![a-z])", "+", text))
    return Group(grouping=Grouping.LIST, items=(_scalar(upper), _scalar(lower)))


def _scalar(text: str) -> Scalar:
    key = text_key(text)
    if key.lstrip("+-") == "∞":
        infinite = symbol("∞")
        return Scalar(
            text=key.lstrip("+"),
            expression=Algebra().negate(infinite) if key[0] == "-" else infinite,
        )
    number, percent = split_percent(text)
    try:
        expression = read_expression(number, index_i=has_index_letters(number))
    except RefusedError:
        expression = None
    return Scalar(text=key, expression=expression, percent=percent, places=decimal_places(number))
