"""Data sets in, token ids out."""

from rewardsvc.policy_client.train.data.examples import DataError, Example, Examples, Text
from rewardsvc.policy_client.train.data.load import load_examples
from rewardsvc.policy_client.train.data.sampler import PromptSampler

__all__ = ["DataError", "Example", "Examples", "PromptSampler", "Text", "load_examples"]
