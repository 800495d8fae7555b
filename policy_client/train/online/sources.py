"""From the configuration's `reward` and `reference` sections to objects."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction

from rewardsvc.errors import ConfigError
from rewardsvc.policy_client import RewardClient
from rewardsvc.policy_client.train.data.examples import Example
from rewardsvc.policy_client.train.online.config import (
    OnlineConfig,
    PythonRewardConfig,
    RewardConfig,
    ServiceRewardConfig,
    VerifierRewardConfig,
)
from rewardsvc.policy_client.train.online.rewards import (
    CallableReward,
    MergedReward,
    RewardSource,
    ServiceReward,
    VerifierReward,
)
from rewardsvc.verifiers import Countdown, ErrorKind, ExactMatch, MathVerifier, Verdict


def build_reward_source(config: RewardConfig, clients: ExitStack) -> RewardSource:
    """The reward source that `config` describes; `clients` will close its client, if it has one.

    Raises:
        ConfigError: If a function cannot be imported.
    """
    if isinstance(config, ServiceRewardConfig):
        client = clients.enter_context(build_client(config.address, config.timeout_s))
        return ServiceReward(client, config.scorer)
    if isinstance(config, VerifierRewardConfig):
        return VerifierReward(_VERIFIERS[config.name](), name=config.name)
    return CallableReward(_import_function(config))


def build_sources(config: OnlineConfig, clients: ExitStack) -> RewardSource | None:
    """The run's rewards, process rewards included; None if the configuration names none.

    Raises:
        ConfigError: If a function cannot be imported.
    """
    if config.reward is None:
        return None
    source = build_reward_source(config.reward, clients)
    if config.process_reward is None:
        return source
    return MergedReward(source, build_reward_source(config.process_reward, clients))


def build_client(addresses: str, timeout_s: float) -> RewardClient:
    """A client of the servers at `addresses`, which commas separate. The caller closes it."""
    return RewardClient(addresses, timeout_s=timeout_s)


def _import_function(config: PythonRewardConfig) -> Callable[..., list[float | None]]:
    module_name, colon, name = config.function.partition(":")
    if not colon:
        raise ConfigError(f"reward.function: {config.function!r}: write it as module:function")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"reward.function: {config.function!r} cannot be imported: {error}"
        ) from error
    if not callable(function):
        raise ConfigError(f"reward.function: {config.function!r} is {function!r}, not a function")
    return function  # type: ignore[no-any-return]


def _math() -> Callable[[str, Example], Verdict]:
    verifier = MathVerifier()
    return lambda completion, example: verifier.verify(completion, example.answer or "")


def _exact() -> Callable[[str, Example], Verdict]:
    verifier = ExactMatch()
    return lambda completion, example: verifier.verify(completion, example.answer or "")


def _countdown() -> Callable[[str, Example], Verdict]:
    verifier = Countdown()

    def verify(completion: str, example: Example) -> Verdict:
        try:
            numbers = [int(number) for number in example.metadata["numbers"]]
            target = Fraction(example.metadata["target"])
        except (KeyError, TypeError, ValueError) as error:
            return Verdict.failed(
                ErrorKind.BAD_REFERENCE, f"{example.where}: columns numbers and target: {error!r}"
            )
        return verifier.verify(completion, numbers, target)

    return verify


_VERIFIERS: dict[str, Callable[[], Callable[[str, Example], Verdict]]] = {
    "math": _math,
    "exact": _exact,
    "countdown": _countdown,
}
"""Keys are the values of `VerifierRewardConfig.name`."""
