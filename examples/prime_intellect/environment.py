"""An environment of Prime Intellect's verifiers whose rubric is a verifier of this library.

pip install "rewardsvc[math]" verifiers datasets
"""

from __future__ import annotations

from typing import Any

from rewardsvc.policy_client.adapters.prime_intellect import rubric_function
from rewardsvc.verifiers import Format, MathVerifier

FUNCTIONS = [rubric_function(MathVerifier()), rubric_function(Format(preset="think"), name="think")]
WEIGHTS = [1.0, 0.1]


def load_environment() -> Any:
    """What the library calls by this name."""
    from datasets import Dataset

    import verifiers as vf

    rows = [{"question": f"{a} + {a} = ?", "answer": str(2 * a)} for a in range(10, 100)]
    return vf.SingleTurnEnv(
        dataset=Dataset.from_list(rows),
        rubric=vf.Rubric(funcs=FUNCTIONS, weights=WEIGHTS),
    )
