"""Quantities with a unit: `5 h` is 300 min, and 10 cm is not 10 m."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_TABLE: dict[str, dict[str, Fraction]] = {
    "time": {
        "ms millisecond milliseconds": Fraction(1, 1000),
        "s sec secs second seconds": Fraction(1),
        "min mins minute minutes": Fraction(60),
        "h hr hrs hour hours": Fraction(3600),
        "day days": Fraction(86400),
        "week weeks": Fraction(604800),
    },
    "length": {
        "mm millimeter millimeters millimetre millimetres": Fraction(1, 1000),
        "cm centimeter centimeters centimetre centimetres": Fraction(1, 100),
        "m meter meters metre metres": Fraction(1),
        "km kilometer kilometers kilometre kilometres": Fraction(1000),
        "inch inches": Fraction(254, 10000),
        "ft foot feet": Fraction(3048, 10000),
        "yd yard yards": Fraction(9144, 10000),
        "mi mile miles": Fraction(1609344, 1000),
    },
    "mass": {
        "mg milligram milligrams": Fraction(1, 1000),
        "g gram grams": Fraction(1),
        "kg kilogram kilograms": Fraction(1000),
        "lb lbs pound pounds": Fraction(45359237, 100000),
    },
    "volume": {
        "mL ml milliliter milliliters millilitre millilitres": Fraction(1, 1000),
        "L l liter liters litre litres": Fraction(1),
    },
}

_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, factor)
    for dimension, units in _TABLE.items()
    for names, factor in units.items()
    for name in names.split()
}

_UNIT = re.compile(
    r"(?:\\(?:text|mathrm|textrm|mbox)\s?\{\s?(?P<wrapped>[A-Za-z]{1,20})\.?\s?\}"
    r"|(?<![A-Za-z\\])(?P<bare>[A-Za-z]{1,20}))(?:\^\{?(?P<power>[1-9])\}?)?\Z",
    re.ASCII,
)

_NOUN = re.compile(
    r"(?:\s\\(?:text|mathrm|textrm|mbox)\s?|\\(?:text|mathrm|textrm|mbox)\s?|\s)"
    r"(?:\{\s?(?P<wrapped>[A-Za-z]{3,20}(?: [A-Za-z]{2,20})?)\s?\}"
    r"|(?P<bare>[A-Za-z]{3,20}(?: [A-Za-z]{2,20})?))\Z",
    re.ASCII,
)
_NOT_NOUNS = frozenset(
    """
    hundred thousand million billion trillion dozen half halves third thirds quarter quarters
    percent squared cubed pi plus minus times over and or
    not no none never wrong false incorrect unsolvable impossible undefined
    """.split()  # noqa: SIM905 - thirty words read better than thirty strings
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number of something.

    Attributes:
        number: What stands before the unit.
        dimension: For instance "length^2".
        factor: The size of the unit in the dimension's base unit.
        surely: Whether the unit can be nothing else; a bare single letter may be a variable.
    """

    number: str
    dimension: str
    factor: Fraction
    surely: bool


def parse_quantity(text: str) -> Quantity | None:
    """Splits a normalised text into number and unit; None if it ends in no unit of the table."""
    match = _UNIT.search(text)
    if match is None:
        return None
    name = match["wrapped"] or match["bare"]
    unit = _UNITS.get(name) or _UNITS.get(name.lower() if len(name) > 2 else name)
    number = text[: match.start()].rstrip()
    if unit is None or not number:
        return None
    dimension, factor = unit
    power = int(match["power"] or 1)
    return Quantity(
        number=number,
        dimension=f"{dimension}^{power}",
        factor=factor**power,
        surely=match["wrapped"] is not None or len(name) > 1,
    )


def without_noun(text: str) -> str:
    """`5 apples` → `5`: a normalised text without the one or two plain words after its number.

    Words that change the number ("million", "not") keep the text as it is.
    """
    match = _NOUN.search(text)
    if match is None:
        return text
    said = (match["wrapped"] or match["bare"]).lower().split()
    return text if _NOT_NOUNS.intersection(said) else text[: match.start()].rstrip()
