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
        "oz ounce ounces": Fraction(45359237, 1600000),
        "lb lbs pound pounds": Fraction(45359237, 100000),
    },
    "volume": {
        "mL ml milliliter milliliters millilitre millilitres": Fraction(1, 1000),
        "L l liter liters litre litres": Fraction(1),
        "gal gallon gallons": Fraction(3785411784, 10**9),
    },
    "angle": {"degree degrees deg": Fraction(1)},
    "radians": {"rad radian radians": Fraction(1)},
    "money": {"dollar dollars USD": Fraction(1), "cent cents": Fraction(1, 100)},
    "euros": {"euro euros EUR": Fraction(1)},
    "degrees Celsius": {"celsius": Fraction(1)},
    "degrees Fahrenheit": {"fahrenheit": Fraction(1)},
}

_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, factor)
    for dimension, units in _TABLE.items()
    for names, factor in units.items()
    for name in names.split()
}
_SPEEDS = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_LITRES_IN_A_CUBIC_METRE = 1000
_CUBE = 3

_WRAP = r"\\(?:text|mathrm|textrm|mbox|textnormal|textbf|mathbf|operatorname)"
_POWER = r"(?:\s?\^\s?\{?\s?(?P<power>[1-9])\s?\}?)?"
_UNIT = re.compile(
    rf"(?:{_WRAP}\s?\{{\s?(?P<wrapped>[A-Za-z][A-Za-z/ ]{{0,39}})\.?\s?\}}"
    r"|(?<![A-Za-z\\])(?P<bare>[A-Za-z]{1,20}(?:(?: per |/| )[A-Za-z]{1,20}){0,2}))"
    rf"{_POWER}\Z",
    re.ASCII,
)
_DEGREES = re.compile(
    rf"\s?(?:\^\s?\{{?\s?\\circ\s?\}}?|°)\s?(?:{_WRAP}\s?\{{\s?)?(?P<scale>[CF])?\s?\}}?\Z",
    re.ASCII,
)
_FUNCTION = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_SPLIT = re.compile(r" per |/")

_NOUN = re.compile(
    rf"(?:\s{_WRAP}\s?|{_WRAP}\s?|\s)"
    r"(?:\{\s?(?P<wrapped>[A-Za-z]{3,20}(?: [A-Za-z]{2,20})?)\s?\}"
    r"|(?P<bare>[A-Za-z]{3,20}(?: [A-Za-z]{2,20})?))\Z",
    re.ASCII,
)
_SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NOT_NOUNS = frozenset(
    """
    half halves third thirds quarter quarters
    percent squared cubed pi plus minus times over and or
    not no none never wrong false incorrect unsolvable impossible undefined
    """.split()  # noqa: SIM905 - thirty words read better than thirty strings
)
_MODULUS = re.compile(r"\s?\\(?:pmod|mod|bmod)\s?(?:\{[^{}]{1,40}\}|[A-Za-z0-9])\Z", re.ASCII)
_ORDINAL = re.compile(
    rf"(?P<number>[0-9][0-9,]{{0,20}})\s?\^?\s?\{{?\s?(?:{_WRAP}\s?\{{)?\s?(?:st|nd|rd|th)\s?\}}{{0,2}}",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number of something.

    Attributes:
        number: What stands before the unit.
        dimension: For instance "length^2" or "length/time".
        factor: The size of the unit in the dimension's base unit.
        surely: Whether the unit can be nothing else; a bare single letter may be a variable.
    """

    number: str
    dimension: str
    factor: Fraction
    surely: bool


def parse_quantity(text: str) -> Quantity | None:
    """Splits a normalised text into number and unit; None if it ends in no unit of the table."""
    degrees = _DEGREES.search(text)
    if degrees is not None and not _FUNCTION.search(text):
        scales = {None: "angle", "C": "degrees Celsius", "F": "degrees Fahrenheit"}
        return _quantity(text[: degrees.start()], scales[degrees["scale"]], Fraction(1), True)
    match = _UNIT.search(text)
    if match is None:
        return None
    name = " ".join((match["wrapped"] or match["bare"]).split())
    unit = _unit(name, int(match["power"] or 1))
    if unit is None:
        return None
    surely = match["wrapped"] is not None or len(name) > 1
    number = text[: match.start()]
    if "," in number:  # "3 cm, 4 cm"
        number = number.replace(match.group(), "")
    return _quantity(number, *unit, surely)


def _quantity(number: str, dimension: str, factor: Fraction, surely: bool) -> Quantity | None:
    number = number.rstrip()
    if not number:
        return None
    return Quantity(number=number, dimension=dimension, factor=factor, surely=surely)


def _unit(name: str, power: int) -> tuple[str, Fraction] | None:
    """Dimension and factor of `m`, `square feet`, `km/h`, `miles per hour`."""
    parts = _SPLIT.split(_SPEEDS.get(name.lower(), name))
    if len(parts) > 2:
        return None
    first = _simple_unit(parts[0].strip(), power if len(parts) == 1 else 1)
    if first is None or len(parts) == 1:
        return first
    second = _simple_unit(parts[1].strip(), power)
    if second is None:
        return None
    return f"{first[0]}/{second[0]}", first[1] / second[1]


def _simple_unit(name: str, power: int) -> tuple[str, Fraction] | None:
    before, _, rest = name.partition(" ")
    if before.lower() in _POWERS and rest:
        name, power = rest, _POWERS[before.lower()]
    unit = _UNITS.get(name) or _UNITS.get(name.lower() if len(name) > 2 else name)
    if unit is None:
        return None
    dimension, factor = unit
    if dimension == "length" and power == _CUBE:
        return "volume", factor**power * _LITRES_IN_A_CUBIC_METRE
    return dimension if power == 1 else f"{dimension}^{power}", factor**power


def without_noun(text: str) -> str:
    """`5 apples` → `5`: a normalised text without the one or two plain words after its number.

    Words that change the number ("half", "not") keep the text as it is.
    """
    match = _NOUN.search(text)
    if match is None:
        return text
    said = (match["wrapped"] or match["bare"]).lower().split()
    return text if _NOT_NOUNS.intersection(said) else text[: match.start()].rstrip()


def without_modulus(text: str) -> str:
    """`9 \\pmod{11}` → `9`."""
    return _MODULUS.sub("", text)


def scaled(text: str) -> str:
    """`5 million` → `5*1000000`, `7^{th}` → `7`; other texts as they are."""
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal is not None:
        return ordinal["number"]
    match = _NOUN.search(text)
    if match is None:
        return text
    first, _, rest = (match["wrapped"] or match["bare"]).lower().partition(" ")
    if first not in _SCALES:
        return text
    number = f"{text[: match.start()].rstrip()}*{_SCALES[first]}"
    return f"{number} {rest}" if rest else number
