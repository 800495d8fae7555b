"""The client of a reward service, and what trains a policy with it.

    client = RewardClient("localhost:50051")
    batch = client.score("rlvr", prompts, completions, answers=answers)
    batch.values     # float32 [N], NaN where there is no reward
    reward = client.reward_function("rlvr")     # a callable for any trainer

Importing this package needs grpcio, protobuf and numpy, and nothing else.
"""

from rewardsvc.errors import ItemError, ItemErrorCode
from rewardsvc.policy_client.client.aio import AsyncRewardClient
from rewardsvc.policy_client.client.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    RewardClientError,
    ScorerUnusable,
    ScoringFailed,
    ServerBug,
    ServiceUnavailable,
    Unauthenticated,
    UnknownScorer,
)
from rewardsvc.policy_client.client.logprobs import TokenLogProbs
from rewardsvc.policy_client.client.retry import RetryPolicy
from rewardsvc.policy_client.client.reward_function import (
    AsyncRewardFunction,
    OnError,
    RewardFunction,
)
from rewardsvc.policy_client.client.scores import ItemScore, ScoreBatch
from rewardsvc.policy_client.client.server_info import ScorerInfo, ScorerState, ServerInfo
from rewardsvc.policy_client.client.settings import TlsConfig
from rewardsvc.policy_client.client.sync import RewardClient
from rewardsvc.policy_client.client.types import ScoreItem
from rewardsvc.verdict import Verdict

__all__ = [
    "AsyncRewardClient",
    "AsyncRewardFunction",
    "Cancelled",
    "DeadlineExceeded",
    "InvalidRequest",
    "ItemError",
    "ItemErrorCode",
    "ItemScore",
    "OnError",
    "Overloaded",
    "PermissionDenied",
    "RetryPolicy",
    "RewardClient",
    "RewardClientError",
    "RewardFunction",
    "ScoreBatch",
    "ScoreItem",
    "ScorerInfo",
    "ScorerState",
    "ScorerUnusable",
    "ScoringFailed",
    "ServerBug",
    "ServerInfo",
    "ServiceUnavailable",
    "TlsConfig",
    "TokenLogProbs",
    "Unauthenticated",
    "UnknownScorer",
    "Verdict",
]
