"""How many of the instructions a response follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rewardsvc.verifiers.base import Verifier
from rewardsvc.verifiers.instructions.kinds import Instruction, read_instruction
from rewardsvc.verifiers.text import after_thinking
from rewardsvc.verifiers.types import ErrorKind, Status, Verdict

MAX_RESPONSE_CHARS = 200_000
MAX_INSTRUCTIONS = 100


class Reading(StrEnum):
    """Which text must follow an instruction.

    STRICT: the response as it is.
    LOOSE: the response, or what remains of it without asterisks, without its first line, without
        its last line, or without several of these, which forgives "Sure, here it is:".
    """

    STRICT = "strict"
    LOOSE = "loose"


class Credit(StrEnum):
    """What following some of the instructions earns."""

    ALL_OR_NOTHING = "all-or-nothing"
    FRACTION = "fraction"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionFollowing(Verifier):
    """Checks a response against a list of instructions; see `kinds.KINDS`.

    Attributes:
        reading: Which text must follow them.
        credit: What following some of them earns.

    Raises:
        ValueError: If one of them is unknown.
    """

    reading: Reading = Reading.STRICT
    credit: Credit = Credit.ALL_OR_NOTHING

    def __post_init__(self) -> None:
        # Options of a configuration are plain text.
        object.__setattr__(self, "reading", Reading(self.reading))
        object.__setattr__(self, "credit", Credit(self.credit))

    def verify(
        self,
        completion: str,
        instructions: Sequence[Mapping[str, Any]] | None = None,
        instruction_id_list: Sequence[str] | None = None,
        kwargs: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> Verdict:
        """Whether the completion, outside of its thinking, follows the instructions.

        Args:
            completion: Any text.
            instructions: Each `{"kind": …, "params": {…}}`.
            instruction_id_list: In place of `instructions`: the kinds, as IFEval's data set has
                them.
            kwargs: Their parameters, one mapping each, as that data set has them.

        Returns:
            ACCEPTED, PARTIAL, NO_ANSWER or WRONG_ANSWER, with what is amiss; BAD_REFERENCE without
            a reward if the instructions cannot be read.
        """
        try:
            asked = _read(instructions, instruction_id_list, kwargs)
        except ValueError as error:
            return Verdict.failed(ErrorKind.BAD_REFERENCE, str(error))
        response = after_thinking(completion)
        if response is None or not response.strip():
            return Verdict.rejected("no response", status=Status.NO_ANSWER)
        if len(response) > MAX_RESPONSE_CHARS:
            return Verdict.rejected(f"{len(response)} characters, at most {MAX_RESPONSE_CHARS}")
        texts = [response] if self.reading is Reading.STRICT else _loose_readings(response)
        problems = [(each.kind, _problem(each, texts)) for each in asked]
        amiss = [f"{kind}: {problem}" for kind, problem in problems if problem]
        if not amiss:
            return Verdict.accepted(f"all {len(asked)} instructions are followed")
        followed = len(asked) - len(amiss)
        told = f"{followed} of {len(asked)} instructions are followed; {'; '.join(amiss)}"
        if self.credit is Credit.FRACTION and followed:
            return Verdict(status=Status.PARTIAL, reward=followed / len(asked), explanation=told)
        return Verdict.rejected(told)


def _read(instructions: Any, kinds: Any, params: Any) -> list[Instruction]:
    if instructions is not None:
        rows = [_row(entry) for entry in _listed("instructions", instructions)]
    elif kinds is not None:
        names = _listed("instruction_id_list", kinds)
        values = [None] * len(names) if params is None else _listed("kwargs", params)
        if len(values) != len(names):
            raise ValueError(
                f"kwargs has {len(values)} entries for {len(names)} instructions; give one each"
            )
        rows = list(zip(names, values, strict=True))
    else:
        raise ValueError("instructions is missing; give a list of {kind, params}")
    if not 1 <= len(rows) <= MAX_INSTRUCTIONS:
        raise ValueError(f"instructions has {len(rows)} entries; give 1 to {MAX_INSTRUCTIONS}")
    return [read_instruction(kind, values) for kind, values in rows]


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is a {type(value).__name__}; give a list")
    return list(value)


def _row(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, Mapping) or "kind" not in entry or set(entry) - {"kind", "params"}:
        raise ValueError(f"instructions has {entry!r:.80}; give {{kind, params}}")
    return entry["kind"], entry.get("params")


def _problem(instruction: Instruction, texts: Sequence[str]) -> str:
    """What is amiss in the first text; "" if any of them follows the instruction."""
    problems = [instruction.problem(text) for text in texts]
    return problems[0] if all(problems) else ""


def _loose_readings(response: str) -> list[str]:
    """The response and its variants, as IFEval's loose accuracy has them; none of them blank."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    texts = [response, *cut]
    texts += [text.replace("*", "") for text in texts]
    return [text for text in dict.fromkeys(texts) if text.strip()]
