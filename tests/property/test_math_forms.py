"""What the exact stages of the mathematics verifier decide is total, reflexive and consistent."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rewardsvc.verifiers.math.form_reader import read_forms
from rewardsvc.verifiers.math.forms import Named, Unreadable
from rewardsvc.verifiers.math.normalise import normalised
from rewardsvc.verifiers.math.same import is_read, same
from rewardsvc.verifiers.math.stages import Question, decide
from rewardsvc.verifiers.types import Status, Verdict

FRAGMENTS = [
    "1", "2", "-3", "0.5", "10", "x", "y", "f(x)", "i", "e", "\\pi", "\\frac", "\\frac{1}{2}",
    "\\sqrt", "\\sqrt{2}", "{", "}", "(", ")", "[", "]", "\\{", "\\}", "^", "_", "+", "-", "*", "/",
    "=", "<", ">", "\\le ", "\\ge ", "\\ne ", "\\in ", "\\cup ", "\\cap ", "\\setminus ", "\\pm ",
    ",", ", ", ";", ":", " or ", "\\text{ and }", "|", "!", "\\infty", "\\mathbb{R}", "\\emptyset",
    "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\ln ", "\\sin ", "\\log_2 ", "\\approx ",
    "0.\\overline{3}", "-", "--", ".", "1.", "1,000", "\\langle", "\\rangle", "\\%", "^\\circ",
    " cm", "\\ldots",
    "\\binom{5}{2}", "\x00", "٣", "9" * 400, "^{9999}",
]  # fmt: skip
any_notation = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=25).map("".join)

numbers = st.one_of(
    st.integers(-999, 999).map(str),
    st.fractions(-9, 9, max_denominator=40).map(
        lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}"
    ),
    st.tuples(st.integers(1, 9), st.sampled_from([2, 3, 5, 6, 7])).map(
        lambda pair: rf"{pair[0]}\sqrt{{{pair[1]}}}"
    ),
    st.integers(1, 9).map(lambda n: rf"{n}\pi"),
)
SIGNS = {True: "<", False: r"\le"}
lists = st.lists(numbers, min_size=2, max_size=5)
expressions = st.recursive(
    st.one_of(numbers, st.sampled_from(["x", "y", "2x", "x^2"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot "]), inner).map(
            lambda parts: f"({parts[0]}){parts[1]}({parts[2]})"
        ),
        st.tuples(inner, st.integers(2, 3)).map(lambda parts: f"({parts[0]})^{parts[1]}"),
    ),
    max_leaves=5,
)


def decided(reference: str, answer: str) -> bool | None:
    verdict = decide(Question(reference=normalised(reference), answer=normalised(answer)))
    return verdict.status is Status.ACCEPTED if isinstance(verdict, Verdict) else None


@given(any_notation, any_notation)
@example("1", r"1\approx -")
@example("1", r"1\approx .")
@example("x", r"\sin(x*9^{2500}*9^{2500})")
@example(r"\sqrt" * 390 + "2", "2")
@settings(max_examples=300)
def test_any_two_texts_are_decided_or_left_open(reference: str, answer: str) -> None:
    result = decide(Question(reference=normalised(reference), answer=normalised(answer)))
    assert isinstance(result, Verdict | Question)


@given(any_notation)
@settings(max_examples=300)
def test_what_is_read_is_the_same_as_itself(text: str) -> None:
    for form in read_forms(normalised(text)):
        inner = form.form if isinstance(form, Named) else form
        if isinstance(inner, Unreadable) or not is_read(form):
            assert same(form, form) is not False or inner.why  # type: ignore[union-attr]
        else:
            assert same(form, form) is True


@given(st.one_of(numbers, expressions), st.one_of(numbers, expressions))
def test_sameness_of_expressions_is_symmetrical(left: str, right: str) -> None:
    assert decided(left, right) == decided(right, left)


@given(lists, st.randoms(use_true_random=False))
def test_the_order_of_a_set_does_not_matter_and_that_of_a_point_does(
    items: list[str], random: object
) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for left, right in ((items, shuffled), (shuffled, items)):
        assert decided(rf"\{{{','.join(left)}\}}", rf"\{{{', '.join(right)}\}}") is True
        in_order = decided(f"({', '.join(left)}, 7)", f"({', '.join(right)}, 7)")
        equal_pairs = [decided(a, b) for a, b in zip(left, right, strict=True)]
        assert in_order == all(equal_pairs)


@given(lists, numbers)
def test_one_guess_too_many_is_wrong(items: list[str], guess: str) -> None:
    assume(not any(decided(item, guess) for item in items))
    reference = rf"\{{{', '.join(items)}\}}"
    assert decided(reference, rf"\{{{', '.join([*items, guess])}\}}") is False
    assert decided(rf"\{{{', '.join([*items, guess])}\}}", reference) is False


@given(expressions, st.integers(1, 60))
def test_a_perturbed_expression_is_another_one(expression: str, digits: int) -> None:
    perturbed = f"({expression})+10^{{-{digits}}}"
    assert decided(expression, perturbed) in (False, None)
    assert decided(perturbed, f"10^{{-{digits}}}+({expression})") in (True, None)


@given(numbers, numbers, st.booleans(), st.booleans())
def test_an_interval_is_its_inequality(
    low: str, high: str, low_open: bool, high_open: bool
) -> None:
    signs = " ".join([low, SIGNS[low_open], "x", SIGNS[high_open], high])
    interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
    found = decided(interval, signs)
    if _value(low) < _value(high):
        assert found is True
        assert decided(signs, interval) is True
        other = f"{'[' if low_open else '('}{low}, {high}{')' if high_open else ']'}"
        assert decided(other, signs) is False
    elif _value(low) > _value(high):
        assert found is not True


def _value(text: str) -> float:
    [form, *_] = read_forms(normalised(text))
    return float(form.expression.decimal())  # type: ignore[union-attr, arg-type]


@given(st.fractions(-5, 5, max_denominator=99), st.fractions(-5, 5, max_denominator=99))
def test_distinct_rationals_stay_distinct_under_roots_and_pi(a: Fraction, b: Fraction) -> None:
    for form in (r"{}\sqrt{{2}}", r"{}\pi", r"({})^3", r"{}+\sqrt{{3}}"):
        left, right = (form.format(f"({value.numerator}/{value.denominator})") for value in (a, b))
        assert decided(left, right) is (a == b)
