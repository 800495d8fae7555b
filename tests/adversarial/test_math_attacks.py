"""One case an attack on the mathematics verifier, named by the attack, with the verdict it owes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewardsvc.verifiers import ErrorKind, MathVerifier, Status
from rewardsvc.verifiers.math.process import PoolLimits

DOCS = Path(__file__).parents[2] / "docs"
VERIFIER = MathVerifier(limits=PoolLimits(num_workers=1, cpu_seconds=1.0))


def boxed(answer: str) -> str:
    return rf"so it is \boxed{{{answer}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to be paid for a wrong answer.

    Attributes:
        number: In the catalogue; None for one that came later.
        name: What it does.
        completion: What the policy says.
        reference: What it should have said.
        status: What it is owed; the reward is 0.
    """

    number: int | None = None
    name: str
    completion: str
    reference: str = "3"
    status: Status = Status.WRONG_ANSWER


NO_ANSWER, TIME_LIMIT = Status.NO_ANSWER, Status.TIME_LIMIT
A_MILLION = ",".join(map(str, range(1_000_000)))
DEEP = "(" * 3000 + "1" + ")" * 3000
CODE = "__import__('os').system('true')"

ATTACKS = [
    Attack(number=85, name="many boxes", completion=r"\boxed{1} \boxed{2} \boxed{3}"),
    Attack(
        number=85,
        name="many boxes for a list of fewer",
        completion=r"\boxed{1} \boxed{2} \boxed{3}",
        reference="1, 2",
    ),
    Attack(number=86, name='"2 or 3"', completion=boxed("2 or 3")),
    Attack(number=86, name='"2 or 3" as text', completion=boxed(r"2 \text{ or } 3")),
    Attack(number=86, name='"2 or 3" without a box', completion="The answer is $2$ or $3$."),
    Attack(
        number=87,
        name="a set of a million guesses",
        completion=boxed(rf"\{{{A_MILLION}\}}"),
        reference="5",
    ),
    Attack(number=87, name="a set of guesses", completion=boxed(r"\{1, 2, 3, 4, 5\}")),
    Attack(
        number=87,
        name="a set of guesses for a set",
        completion=boxed(r"\{1, 2, 3, 4, 5\}"),
        reference=r"\{1, 2\}",
    ),
    Attack(number=87, name="a list of guesses", completion=boxed("1, 2, 3, 4, 5")),
    Attack(
        number=88,
        name="a power tower",
        completion=boxed("9^{9^{9^{9^9}}}"),
        status=TIME_LIMIT,
    ),
    Attack(number=89, name="(10^9)!", completion=boxed("(10^9)!"), status=TIME_LIMIT),
    Attack(number=90, name="3000 nested parentheses", completion=boxed(DEEP), reference="2"),
    Attack(number=90, name="3000 nested parentheses in words", completion=f"answer: {DEEP}"),
    Attack(
        number=91,
        name=r"20,000 unclosed \boxed{",
        completion=r"\boxed{" * 20_000,
        status=NO_ANSWER,
    ),
    Attack(
        number=91,
        name=r"20,000 unclosed \boxed{ and an answer",
        completion=r"\boxed{" * 20_000 + "3}",
        reference="4",
    ),
    Attack(
        number=91,
        name="20,000 boxes in each other",
        completion=r"\boxed{" * 20_000 + "3" + "}" * 20_000,
        reference="4",
    ),
    Attack(number=92, name="`__import__` in an answer", completion=boxed(CODE)),
    Attack(number=93, name="tiny powers", completion=boxed("10^{-20}"), reference="10^{-21}"),
    Attack(
        number=93,
        name="tiny fractions",
        completion=boxed(r"\frac{1}{2^{99}}"),
        reference=r"\frac{1}{2^{98}}",
    ),
    Attack(
        number=93,
        name="tiny factorials",
        completion=boxed(r"\frac{1}{2006!}"),
        reference=r"\frac{1}{2004!}",
    ),
    Attack(
        number=93,
        name="tiny irrational numbers",
        completion=boxed(r"\pi/2^{99}"),
        reference=r"\pi/2^{98}",
    ),
    Attack(
        number=93,
        name="tiny differences",
        completion=boxed(r"\arctan 2 + 10^{-20}"),
        reference=r"\arctan 2",
    ),
    Attack(number=94, name="units swapped", completion=boxed("10 cm"), reference="10 m"),
    Attack(number=94, name="hours for minutes", completion=boxed("5 h"), reference="5 min"),
    Attack(
        number=95,
        name="restating the inequality",
        completion=boxed("x^2 < 4"),
        reference="-2 < x < 2",
    ),
    Attack(
        number=95,
        name="restating it for an interval",
        completion=boxed("2x > 4"),
        reference=r"(2, \infty)",
    ),
    Attack(
        number=96,
        name='"unsolvable" after a right box',
        completion=r"\boxed{3} \boxed{\text{unsolvable}}",
    ),
    Attack(
        number=98,
        name="an answer only inside `<think>`",
        completion=r"<think>\boxed{3}</think> Hm.",
        status=NO_ANSWER,
    ),
    Attack(
        number=98,
        name="thoughts without an end",
        completion=r"<think>\boxed{3}",
        status=NO_ANSWER,
    ),
    Attack(
        number=99,
        name="an unterminated last box",
        completion=r"\boxed{3} or rather \boxed{4",
        status=NO_ANSWER,
    ),
    Attack(name="injected braces", completion=boxed(r"3} = 3 \text{"), reference="4"),
    Attack(name="dollar signs", completion=boxed("3$ and $4"), reference="4"),
    Attack(name="a huge integer", completion=boxed("9" * 100_000), reference="9"),
    Attack(name="digits of another script", completion=boxed("٣")),
    Attack(name="NUL and surrogates", completion=boxed("3\x00\ud800")),
    Attack(name="something undefined", completion=boxed(r"\frac{1}{0}")),
    Attack(name="infinity", completion=boxed(r"\infty")),
    Attack(name="spaces before a second answer", completion=boxed("3" + " " * 60_000 + ", 4")),
    Attack(name="words that are read over", completion=boxed(r"\text{not } 3")),
    Attack(name="a contradiction", completion=boxed("4 = 3")),
]
UNREADABLE = ["", "  ", "[1, 2", r"\frac{1}{", "???", r"\boxed{}"]
BY_TEST = {97: ("a reference that cannot be read", "error, no reward")}
"""Number → name and verdict of what has a test of its own below."""
VERDICTS = {
    Status.WRONG_ANSWER: "wrong, reward 0",
    Status.NO_ANSWER: "no answer, reward 0",
    Status.TIME_LIMIT: "time limit, reward 0",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_gets_no_reward(attack: Attack) -> None:
    verdict = VERIFIER.verify(attack.completion, attack.reference)
    assert verdict.status is attack.status, verdict.explanation
    assert verdict.reward == 0.0
    assert len(verdict.explanation) < 1000


def test_code_in_an_answer_or_a_reference_does_not_run(tmp_path: Path) -> None:
    for number, code in enumerate(
        [
            "__import__('os').system('touch {}')",
            '1 + exec(\'open("{}", "w")\')',
            r"\text{{__import__('os').mknod('{}')}}",
            "().__class__.__base__.__subclasses__()[0]('{}')",
        ]
    ):
        target = tmp_path / str(number)
        VERIFIER.verify(boxed(code.format(target)), "3")
        VERIFIER.verify(boxed("3"), code.format(target))
        assert not target.exists()


@pytest.mark.parametrize("reference", UNREADABLE)
def test_97_a_reference_that_cannot_be_read_gives_no_reward(reference: str) -> None:
    for completion in (boxed("3"), boxed("y")):
        verdict = VERIFIER.verify(completion, reference)
        assert verdict.reward is None
        assert verdict.error is ErrorKind.BAD_REFERENCE


def test_a_reference_that_never_ends_gives_no_reward() -> None:
    verdict = VERIFIER.verify(boxed("2"), "9^{9^{9^{9^9}}}")
    assert verdict.error is ErrorKind.BAD_REFERENCE


def test_honest_answers_survive_the_defences() -> None:
    for completion, reference in [
        (boxed(r"\frac{\sqrt{2}}{2}"), r"\frac{1}{\sqrt{2}}"),
        (boxed("1e3"), "1000"),
        (boxed("5 h"), "300 min"),
        (boxed(r"e^{i\pi}"), "-1"),
        (boxed(r"x \in (-2, 2)"), r"x \in (-2, 2)"),
        (boxed("2") + boxed("3"), "2, 3"),
        (boxed("3.141593"), r"\pi"),
        (boxed("y = 2x + 1"), "2x - y + 1 = 0"),
    ]:
        verdict = VERIFIER.verify(completion, reference)
        assert verdict.reward == 1.0, f"{completion}: {verdict.explanation}"


def test_boxed_working_counts_for_nothing_where_the_last_box_is_the_answer() -> None:
    verifier = MathVerifier(last_box_only=True, limits=VERIFIER.limits)
    assert verifier.verify(r"\boxed{2} so \boxed{3}", "3").reward == 1.0
    assert verifier.verify(r"\boxed{3} so \boxed{2}", "3").reward == 0.0


def docs_table() -> str:
    """The table in docs/verifiers.md."""
    rows: dict[int, tuple[list[str], Status]] = {}
    for attack in ATTACKS:
        if attack.number is not None:
            rows.setdefault(attack.number, ([], attack.status))[0].append(attack.name)
    named = {n: ("; ".join(names), VERDICTS[status]) for n, (names, status) in rows.items()}
    lines = ["|#|attack|verdict|", "|-|-|-|"]
    lines += [f"|{n}|{name}|{verdict}|" for n, (name, verdict) in sorted((named | BY_TEST).items())]
    return "\n".join(lines)


def test_documentation_has_the_table() -> None:
    assert docs_table() in (DOCS / "verifiers.md").read_text("utf-8")


def test_every_item_of_the_catalogue_is_in_the_documentation() -> None:
    pages = (DOCS / "sandbox.md").read_text("utf-8") + (DOCS / "verifiers.md").read_text("utf-8")
    numbers = [int(number) for number in re.findall(r"^\|([0-9]+)\|", pages, re.MULTILINE)]
    assert sorted(numbers) == list(range(1, 100))


if __name__ == "__main__":
    print(docs_table())
