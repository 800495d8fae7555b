"""The three types that everything passes, and what is built from them."""

from rewardsvc.scoring.scorer import Scorer
from rewardsvc.scoring.types import JsonValue, Message, Sample, Score, Verdict

__all__ = ["JsonValue", "Message", "Sample", "Score", "Scorer", "Verdict"]
