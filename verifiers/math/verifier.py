"""`MathVerifier`: is the answer at the end of this completion the reference?

Three steps: find the answer (`extract`), decide exactly what can be decided exactly (`stages`), ask
Math-Verify in a process that can be killed about the rest (`pool`, `worker`).

Who is to blame. A reference that cannot be read, or that uses up the limits by itself, is a
BAD_REFERENCE and no reward. If the reference alone was read (and evaluated,
if it is a number) in time, whatever happens afterwards is
the answer's doing: a power tower or a factorial of a billion is TIME_LIMIT or MEMORY_LIMIT with
reward 0. A machine too busy to answer is VERIFIER_TIMEOUT, a pool that cannot work SANDBOX_FAILURE,
and neither is a reward.

Where this deliberately differs from Math-Verify alone:

* Rationals are compared exactly: 1/2^99 is not 1/2^98, nor 10^-20 equal to 10^-21. A decimal of six
  or more significant digits stands for what rounds to it; shorter ones are what they say. Other
  constants must agree to five significant digits, however small they are.
* Units count: 10 cm is not 10 m, 5 h is 300 min. A missing unit is no mistake.
* `1e3` is 1000, not a product with Euler's number.
* `i` is the imaginary unit where nothing else is unknown: e^{iπ} is −1.
* Different boxes are a hedge and wrong, unless the reference is a list of as many answers or
  `last_box_only` is set; so is "2 or 3". What stands inside `<think>…</think>` is no answer.
* A last box that is never closed is no answer, whatever was boxed before.
* A reference in words is compared as text, not as a product of its letters.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rewardsvc.verifiers.math.extract import Extracted, extract_math_answer, extract_reference
from rewardsvc.verifiers.math.pool import Comparison, Outcome, shared_pool
from rewardsvc.verifiers.math.process import PoolLimits
from rewardsvc.verifiers.math.stages import EXACT_STAGES, Question, reference_problem, shown
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

_FAILED: dict[Outcome, ErrorKind] = {
    Outcome.BAD_REFERENCE: ErrorKind.BAD_REFERENCE,
    Outcome.GAVE_UP: ErrorKind.VERIFIER_TIMEOUT,
    Outcome.BROKEN: ErrorKind.SANDBOX_FAILURE,
}
_REJECTED: dict[Outcome, Status] = {
    Outcome.UNEQUAL: Status.WRONG_ANSWER,
    Outcome.TIME_LIMIT: Status.TIME_LIMIT,
    Outcome.MEMORY_LIMIT: Status.MEMORY_LIMIT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVerifier:
    """Checks mathematical answers. Picklable; may be used from any number of threads and tasks.

    Attributes:
        require_box: Whether only `\\boxed{…}` counts as an answer.
        last_box_only: Whether the last box alone is the answer and others are working, as many
            graders have it. A policy may then learn to box one guess after another.
        limits: Of the processes that ask Math-Verify; verifiers with equal limits share them.
    """

    require_box: bool = False
    last_box_only: bool = False
    limits: PoolLimits = field(default_factory=PoolLimits)

    def verify(self, completion: str, answer: str) -> Verdict:
        """Whether the completion's answer is `answer`.

        Args:
            completion: Any text.
            answer: The reference: LaTeX or plain, or a worked solution that ends in a box.

        Returns:
            ACCEPTED, NO_ANSWER, WRONG_ANSWER, TIME_LIMIT or MEMORY_LIMIT with a reward, or
            BAD_REFERENCE, VERIFIER_TIMEOUT or SANDBOX_FAILURE without.
        """
        reference = extract_reference(answer)
        problem = reference_problem(reference)
        if problem:
            return Verdict.failed(ErrorKind.BAD_REFERENCE, problem)
        found = extract_math_answer(completion, require_box=self.require_box)
        if not isinstance(found, Extracted):
            return Verdict.rejected(found.value, status=Status.NO_ANSWER)
        given = self._one_answer(found, reference)
        if given is None:
            return Verdict.rejected(f"{len(found.answers)} different boxes")
        question = Question(reference=reference, answer=given)
        for stage in EXACT_STAGES:
            verdict = stage(question)
            if verdict is not None:
                return verdict
        return _verdict(shared_pool(self.limits).compare(reference, given), question)

    async def averify(self, completion: str, answer: str) -> Verdict:
        """`verify` on a thread of the running event loop's executor."""
        return await asyncio.to_thread(self.verify, completion, answer)

    def _one_answer(self, found: Extracted, reference: str) -> str | None:
        """What to compare; None if the completion hedges."""
        if len(found.answers) == 1 or self.last_box_only:
            return found.answers[-1]
        if reference.count(",") == len(found.answers) - 1:
            return ", ".join(found.answers)
        return None


def _verdict(comparison: Comparison, question: Question) -> Verdict:
    outcome = comparison.outcome
    explanation = (
        f"{shown(question.answer)} against {shown(question.reference)}: {comparison.detail}"
    )
    if outcome is Outcome.EQUAL:
        return Verdict.accepted(explanation)
    if outcome in _FAILED:
        return Verdict.failed(_FAILED[outcome], explanation)
    return Verdict.rejected(explanation, status=_REJECTED[outcome])
