"""`instructions`: does the completion follow instructions that a program can check?

Reads `metadata.instructions`, a list of `{kind, params}`, or IFEval's own columns
`instruction_id_list` and `kwargs`. The kinds are IFEval's, for instance
`length_constraints:number_words` with `num_words` and `relation`; docs/verifiers.md lists them.
"""

from __future__ import annotations

from typing import Literal

from rewardsvc.scorers._judged import JudgedScorer
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.verifiers.instructions import Credit, InstructionFollowing, Reading


class InstructionsConfig(ScorerConfigBase):
    """`{type: instructions, reading: loose, credit: fraction}`.

    Attributes:
        reading: The response as it is (strict), or also without asterisks, first or last line
            (loose).
        credit: What following some of the instructions earns.
    """

    type: Literal["instructions"]
    reading: Reading = Reading.STRICT
    credit: Credit = Credit.ALL_OR_NOTHING


class Instructions(JudgedScorer):
    """1.0 if all instructions are followed, else 0.0 or the fraction that is."""

    Config = InstructionsConfig

    def __init__(self, config: InstructionsConfig, env: BuildEnv) -> None:
        super().__init__(InstructionFollowing(reading=config.reading, credit=config.credit), env)
