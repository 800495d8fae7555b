"""`MathVerifier`: is the answer at the end of this completion the reference?

Three steps: find the answer (`extract`), decide exactly what can be decided exactly (`stages`), ask
Math-Verify in a process that can be killed about the rest (`pool`, `worker`).

Who is to blame. A reference that cannot be read, or that uses up the limits by itself, is a
BAD_REFERENCE and no reward. If the reference alone was read (and evaluated, if it is a number) in
time, whatever happens afterwards is the answer's doing: a power tower or a factorial of a billion
is TIME_LIMIT or MEMORY_LIMIT with reward 0. A machine too busy to answer is VERIFIER_TIMEOUT, a
pool that cannot work SANDBOX_FAILURE, and neither is a reward.

What counts as equal, and where that deliberately differs from Math-Verify alone, is in
docs/verifiers.md.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from rewardsvc.verifiers.math.extract import Extracted, extract_math_answer, extract_reference
from rewardsvc.verifiers.math.form_reader import count_items
from rewardsvc.verifiers.math.pool import Comparison, Outcome, shared_pool
from rewardsvc.verifiers.math.process import PoolLimits
from rewardsvc.verifiers.math.stages import Question, decide, reference_problem, shown
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
        began = time.thread_time()
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
        decided = decide(Question(reference=reference, answer=given))
        if isinstance(decided, Verdict):
            return decided
        comparison = shared_pool(self.limits).compare(
            decided.reference, decided.answer, spent_seconds=time.thread_time() - began
        )
        return _verdict(comparison, decided)

    async def averify(self, completion: str, answer: str) -> Verdict:
        """`verify` on a thread of the running event loop's executor."""
        return await asyncio.to_thread(self.verify, completion, answer)

    def _one_answer(self, found: Extracted, reference: str) -> str | None:
        """What to compare; None if the completion hedges."""
        if len(found.answers) == 1 or self.last_box_only:
            return found.answers[-1]
        if count_items(reference) == len(found.answers):
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
