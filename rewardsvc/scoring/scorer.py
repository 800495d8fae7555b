"""`Scorer`: samples in, scores out, same length, same order.

A reward model, a verifier, a judge, an ensemble, a weighted sum and a length penalty are all
scorers, so they nest freely. A new one is a config model and a class in one file of
`rewardsvc/scorers`, and a line in its table:

    class ShoutConfig(ScorerConfigBase):
        type: Literal["shout"]
        bonus: float = 1.0

    class Shout(Scorer):
        Config = ShoutConfig

        def __init__(self, config: ShoutConfig, env: BuildEnv) -> None:
            self._bonus = config.bonus

        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            return score_each(samples, self._score_one)
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rewardsvc.errors import ItemErrorCode, ItemFailure, ServiceError
from rewardsvc.scoring.build import BuildEnv
from rewardsvc.scoring.config import ScorerConfigBase
from rewardsvc.scoring.types import Sample, Score

log = logging.getLogger(__name__)


class Scorer(ABC):
    """Base of all scorers.

    `start` is awaited once before the first `score`, `close` once after the last; both may take
    long and must not block the event loop. Concurrent `score` calls are normal.

    Attributes:
        Config: The pydantic model of this type's section in the configuration.
    """

    Config: ClassVar[type[ScorerConfigBase]]

    @abstractmethod
    def __init__(self, config: Any, env: BuildEnv) -> None:
        """Keeps what it is given; loads nothing.

        Args:
            config: An instance of `Config`.
            env: The surroundings.

        Raises:
            ConfigError: If the section cannot work, as far as can be seen without loading.
        """

    @property
    def version(self) -> str:
        """Changes when the same sample may score differently than before; empty if never."""
        return ""

    @property
    def is_serving(self) -> bool:
        """Whether it can answer now; False for one whose model is elsewhere and gone."""
        return True

    @property
    def notice(self) -> str:
        """What whoever operates the server should know of it; mostly nothing."""
        return ""

    async def start(self) -> None:  # noqa: B027 - most verifiers load nothing
        """Loads what scoring needs.

        Raises:
            ConfigError: If the configuration cannot work (a file is gone, a head is missing).
        """

    async def close(self) -> None:  # noqa: B027
        """Frees what `start` took."""

    @abstractmethod
    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores each sample; a bad one gets an error in its place and harms no other.

        Raises:
            ServiceError: If the call as a whole cannot be served (queue full, deadline passed).
        """


def score_each(samples: Sequence[Sample], score_one: Callable[[Sample], Score]) -> list[Score]:
    """Applies `score_one` to each sample; what it raises becomes that sample's error.

    An `ItemFailure` says itself what is wrong. Any other exception is a bug of the scorer: the log
    has its traceback.

    Raises:
        ServiceError: If `score_one` does: it is about the call.
    """
    scores = []
    for sample in samples:
        try:
            scores.append(score_one(sample))
        except ItemFailure as failure:
            scores.append(Score(error=failure.error))
        except ServiceError:
            raise
        except Exception as error:
            log.exception("a scorer failed on a sample")
            scores.append(scorer_exception("the scorer", error))
    return scores


def scorer_exception(name: str, error: BaseException) -> Score:
    """The score of a sample whose scorer raised: the exception's type and message, no traceback."""
    return Score.failed(
        ItemErrorCode.SCORER_EXCEPTION, f"{name} raised {type(error).__name__}: {error}"
    )
