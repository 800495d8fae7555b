"""When two outputs are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardsvc.verifiers.code import TextComparison, Whitespace

TOLERANT = TextComparison(rel_tol=1e-5, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("3\n", b"3", True),
        ("3", b"3\n\n", True),
        ("1 2 \n3", b"1 2\n3\n", True),
        ("1\r\n2", b"1\n2\n", True),
        ("3", b"3 4", False),
        ("1\n2", b"1\n", False),
        ("1\n2", b"1\n2\n3", False),
        ("1\n\n2", b"1\n2", False),
        ("1", b"\n1", False),
        ("1", b" 1", False),
        ("1  2", b"1 2", False),
        ("", b"", True),
        ("", b"x", False),
        ("x", b"", False),
        ("a\x0bb", b"a\nb", False),
        ("1", b"1\xff", False),
        ("1", b"1\x00", False),
        ("2", b"9\r2", False),
        ("é", "é".encode(), True),
    ],
)
def test_default_forgives_blanks_at_ends_only(expected: str, actual: bytes, same: bool) -> None:
    assert (TextComparison().difference(expected, actual) is None) is same


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("1000000007", b"1000000006", False),
        ("0.5", b"0.500001", True),
        ("0.5", b"0.5001", False),
        ("0.0005", b"0.0001", False),
        ("1e3", b"1000.001", True),
        ("2.0", b"2", True),
        ("2", b"2.0", False),
        ("2.0", b"nan", False),
        ("2.0", b"inf", False),
        ("2.0", b"1e999", False),
        ("2.0 x", b"2.000001 x", True),
        ("2.0 x", b"2.000001 y", False),
        ("2.0", b"2.0 2.0", False),
        ("2.0", b"0x1p1", False),
        ("2.0", b"2_0.0", False),
        ("2.0", "٢.٠".encode(), False),
        ("2.0", b"2." + b"0" * 10_000, False),
    ],
)
def test_tolerance_is_for_numbers_with_a_point(expected: str, actual: bytes, same: bool) -> None:
    assert (TOLERANT.difference(expected, actual) is None) is same


def test_exact_and_tokens() -> None:
    exact = TextComparison(whitespace=Whitespace.EXACT)
    assert exact.difference("1\n", b"1\n") is None
    assert exact.difference("1\n", b"1") is not None
    tokens = TextComparison(whitespace="tokens")  # type: ignore[arg-type]
    assert tokens.difference("1 2\n3", b"1\n2   3\n") is None
    assert tokens.difference("1 2", b"12") is not None


def test_difference_names_the_line() -> None:
    assert TextComparison().difference("1\n2\n", b"1\n3\n") == "line 2: expected '2', got '3'"


@given(st.text(max_size=50))
def test_every_text_is_itself(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    for whitespace in Whitespace:
        assert TextComparison(whitespace=whitespace).difference(text, data) is None


@given(st.text(max_size=30), st.binary(max_size=30))
def test_comparison_is_total(expected: str, actual: bytes) -> None:
    for comparison in (TextComparison(), TOLERANT, TextComparison(whitespace=Whitespace.TOKENS)):
        comparison.difference(expected, actual)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_tolerance_must_make_sense(value: float) -> None:
    with pytest.raises(ValueError, match="rel_tol"):
        TextComparison(rel_tol=value)
    with pytest.raises(ValueError, match="needs whitespace="):
        TextComparison(whitespace=Whitespace.EXACT, abs_tol=0.1)
