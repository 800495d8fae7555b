"""What judging mathematics costs: CPU time a pair beside Math-Verify, and the worst wall time.

The pairs are ordinary answers: integers, decimals, fractions, simple LaTeX, most of them right, and
each another one, since both sides remember what they have seen. For each pair both are timed in
turn, in this process, warmed up: `MathVerifier.verify` against Math-Verify's parse, parse, verify.
The hostile set is what policies and attackers write;
none of it may take longer than the limit of CPU time and 50 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import math_verify
from rich.console import Console
from rich.table import Table
from timing import Stats, parser, row, write_rows

from rewardsvc.verifiers import MathVerifier
from rewardsvc.verifiers.math.extract import extract_math_answer, extract_reference
from rewardsvc.verifiers.math.pool import shared_pool
from rewardsvc.verifiers.math.process import PoolLimits
from rewardsvc.verifiers.math.stages import Question, decide

LIMIT_S = 1.0
ALLOWANCE_S = 0.05
WARMUP_PAIRS = 5
SEED = 0

Pair = tuple[str, str]
"""Reference and answer."""


def _integer(random: Random) -> Pair:
    number = random.randint(-(10**4), 10**6)
    other = random.choice([number, number, number + 1, number * 10])
    return str(number), random.choice(["{}", "{:,}", "x = {}", "{}.0", r"{}\text{{ cm}}"]).format(
        other
    )


def _decimal(random: Random) -> Pair:
    number = random.randint(1, 10**6)
    other = random.choice([number, number, number + 1])
    forms = [
        f"{other / 1000}",
        f"{other}e-3",
        rf"{other / 100} \times 10^{{-1}}",
        f"{other / 10}\\%",
    ]
    return f"{number / 1000}", random.choice(forms)


def _fraction(random: Random) -> Pair:
    top, bottom = random.randint(1, 999), random.randint(2, 999)
    other = random.choice([top, top, top + 1])
    forms = [rf"\frac{{{other}}}{{{bottom}}}", rf"\dfrac{{{2 * other}}}{{{2 * bottom}}}"]
    return rf"\frac{{{top}}}{{{bottom}}}", random.choice([*forms, f"{other}/{bottom}"])


def _simple_latex(random: Random) -> Pair:
    a, b, c = (random.randint(2, 99) for _ in range(3))
    d = random.choice([c, c, c + 1])
    templates = [
        (rf"{a}\sqrt{{{b}}}", rf"{a}\sqrt{{{b}}}"),
        (rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}", rf"\frac{{{a}}}{{\sqrt{{{b}}}}}"),
        (rf"\frac{{{a}+\sqrt{{{b}}}}}{{{c}}}", rf"\frac{{\sqrt{{{b}}}+{a}}}{{{d}}}"),
        (rf"\frac{{{a}\pi}}{{{c}}}", rf"\frac{{{a}}}{{{d}}}\pi"),
        (f"{a}x+{c}", f"{d}+{a}x"),
        (rf"({a}, \frac{{\pi}}{{{c}}})", rf"\left({a}, \frac{{\pi}}{{{d}}}\right)"),
        (rf"\{{{a}, {b}, {c}\}}", rf"\{{{d}, {b}, {a}\}}"),
        (f"{a}, -{c}", f"-{d}, {a}"),
        (f"[-{a}, {c})", f"[-{a}, {d})"),
        (rf"{a}^\circ", rf"{random.choice([a, a + 1])}^\circ"),
        (rf"x \ge {c}", rf"x \geq {d}"),
        (f"y = {a}x+{c}", f"y = {a}x+{d}"),
    ]
    return random.choice(templates)


ORDINARY: dict[str, Callable[[Random], Pair]] = {
    "integers": _integer,
    "decimals": _decimal,
    "fractions": _fraction,
    "simple LaTeX": _simple_latex,
}

HOSTILE: dict[str, tuple[str, str]] = {
    # completion, reference
    "power tower": (r"\boxed{9^{9^{9^{9^9}}}}", "3"),
    "power of powers": (r"\boxed{(((9^9)^9)^9)^9}", "3"),
    "factorial": (r"\boxed{(10^9)!}", "3"),
    "factorial of a factorial": (r"\boxed{(25!)!}", "3"),
    "binomial": (r"\boxed{\binom{10^9}{5 \cdot 10^8}}", "3"),
    "huge sum": (r"\boxed{\sum_{k=1}^{10^{9}} \frac{1}{k}}", "3"),
    "integral": (r"\boxed{\int_0^1 x^{x^{x^x}} \sin(x^x) dx}", "3"),
    "nested roots": (r"\boxed{" + r"\sqrt{1+" * 45 + "2" + "}" * 45 + "}", r"\sqrt{7}"),
    "nested parentheses": (r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}", "2"),
    "unclosed boxes": (r"\boxed{" * 20_000, "3"),
    "unclosed boxes and a megabyte": (r"\boxed{" * 150_000, "3"),
    "a million guesses": (r"\boxed{\{" + ",".join(map(str, range(1_000_000))) + r"\}}", "5"),
    "a polynomial to expand": (r"\boxed{(a+b+c+d+e+f+g+h)^{200}}", "x"),
    "product of polynomials": (r"\boxed{" + "(a+b+c+d)^9" * 80 + "}", "x"),
    "large exponent": (r"\boxed{(x+1)^{99999}}", "x+1"),
    "a thousand unknowns": (r"\boxed{" + "+".join(f"x_{{{n}}}" for n in range(140)) + "}", "x"),
    "equations": (r"\boxed{x^{50}+y^{49}+z^{48}=x^{7}y^{8}z^{9}}", "x^5+y^4=z^3"),
    "dollar signs": ("$" * 1_000_000, "3"),
    "spaces": (" " * 1_000_000 + "3" + " " * 1_000_000, "4"),
    "digits": (r"\boxed{" + "9" * 1_000_000 + "}", "9"),
    "digits of an answer": (r"\boxed{" + "9" * 990 + "}", "9"),
    "commas": ("the answer is " + "1," * 400_000, "3"),
    "signs": (r"\boxed{" + "-" * 900 + "1}", "1"),
    "texts": (r"\boxed{" + r"\text{a}" * 130 + "}", "3"),
    "thinking": ("<think>" * 200_000, "3"),
    "backslashes": ("\\" * 1_000_000, "3"),
    "braces": ("{" * 500_000 + "}" * 500_000, "3"),
    "answer phrases": ("answer is " * 100_000, "3"),
}


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    num_pairs = 12 if arguments.quick else 600
    verifier = MathVerifier(limits=PoolLimits(num_workers=1, cpu_seconds=LIMIT_S))
    random = Random(SEED)
    pairs = {kind: [make(random) for _ in range(num_pairs)] for kind, make in ORDINARY.items()}
    rows = [_ordinary(kind, some, verifier) for kind, some in pairs.items()]
    together = [make(random) for make in ORDINARY.values() for _ in range(num_pairs // 4)]
    rows.append(_ordinary("all four kinds", together, verifier))
    shared_pool(verifier.limits).start()
    names = list(HOSTILE)[:4] if arguments.quick else list(HOSTILE)
    rows += [_hostile(name, verifier) for name in names]
    worst = max(rows, key=lambda one: one.get("over_limit_s", float("-inf")))
    rows.append(dict(worst, name="the slowest hostile answer", which=worst["name"]))
    _show(rows)
    write_rows(arguments.json, rows)


def _ordinary(kind: str, pairs: list[Pair], verifier: MathVerifier) -> dict[str, Any]:
    """The CPU time a pair of both, and how often the one goes into the other."""
    ours: list[float] = []
    theirs: list[float] = []
    for reference, answer in [*pairs[:WARMUP_PAIRS], *pairs]:
        completion = rf"so it is \boxed{{{answer}}}."
        gold = f"${reference}$"
        began = time.process_time()
        verifier.verify(completion, reference)
        between = time.process_time()
        math_verify.verify(math_verify.parse(gold), math_verify.parse(completion))
        ours.append(between - began)
        theirs.append(time.process_time() - between)
    baseline = Stats.of(theirs[WARMUP_PAIRS:])
    stats = Stats.of(ours[WARMUP_PAIRS:])
    return row(
        f"ordinary answers, {kind}",
        stats,
        baseline_median_s=baseline.median_s,
        baseline_p20_s=baseline.p20_s,
        baseline_p80_s=baseline.p80_s,
        ratio=baseline.median_s / stats.median_s,
        num_pairs=len(pairs),
        num_without_algebra_system=sum(_is_decided_here(*pair) for pair in pairs),
    )


def _is_decided_here(reference: str, answer: str) -> bool:
    """Whether nothing but this process worked on a pair."""
    found = extract_math_answer(rf"\boxed{{{answer}}}")
    question = Question(reference=extract_reference(reference), answer=found.answers[0])  # type: ignore[union-attr]
    return not isinstance(decide(question), Question)


def _hostile(name: str, verifier: MathVerifier) -> dict[str, Any]:
    completion, reference = HOSTILE[name]
    began = time.perf_counter()
    verdict = verifier.verify(completion, reference)
    seconds = time.perf_counter() - began
    return row(
        f"hostile: {name}",
        Stats.of([seconds]),
        status=verdict.status.value,
        over_limit_s=seconds - LIMIT_S,
        within=seconds <= LIMIT_S + ALLOWANCE_S,
    )


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("case", "median ms", "Math-Verify ms", "ratio", "verdict", "in time")
    for one in rows:
        table.add_row(
            one["name"] + (f" ({one['which']})" if "which" in one else ""),
            f"{one['median_s'] * 1000:.3f}",
            f"{one['baseline_median_s'] * 1000:.3f}" if "baseline_median_s" in one else "",
            f"{one['ratio']:.1f}" if "ratio" in one else "",
            one.get("status", ""),
            str(one.get("within", "")),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
