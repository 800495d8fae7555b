"""From a configuration to the loss and the implicit rewards of its pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardsvc.policy_client.algorithms.preference.dpo import dpo_loss
from rewardsvc.policy_client.algorithms.preference.ipo import ipo_loss
from rewardsvc.policy_client.algorithms.preference.orpo import orpo_loss
from rewardsvc.policy_client.algorithms.preference.simpo import simpo_loss
from rewardsvc.policy_client.algorithms.preference.slic import slic_loss
from rewardsvc.policy_client.algorithms.preference.spin import spin_loss
from rewardsvc.policy_client.algorithms.preference.sppo import sppo_loss
from rewardsvc.policy_client.algorithms.preference.types import PairLogps
from rewardsvc.policy_client.train.data.tokenize import TokenizedPair
from rewardsvc.policy_client.train.preference.config import (
    DpoConfig,
    IpoConfig,
    OrpoConfig,
    SimpoConfig,
    SlicConfig,
    SpinConfig,
    SppoConfig,
)
from rewardsvc.policy_client.train.preference.tasks import PairBatch, PairLoss

PairRewards: TypeAlias = Callable[[PairLogps], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAlgorithm:
    """One row of the table.

    Attributes:
        loss: Makes the loss of a configuration.
        reward: Makes the implicit rewards of a configuration.
        needs_reference: Whether a configuration's loss compares with a reference.
    """

    loss: Callable[[Any], PairLoss]
    reward: Callable[[Any], PairRewards]
    needs_reference: Callable[[Any], bool] = lambda config: True


def _with_sft(loss: PairLoss, coefficient: float) -> PairLoss:
    """Adds the negative log-likelihood per token of the chosen completion."""
    return lambda batch: loss(batch) - coefficient * batch.logps.chosen_mean


def _dpo(config: DpoConfig) -> PairLoss:
    def loss(batch: PairBatch) -> Tensor:
        return dpo_loss(
            batch.logps,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            length_coefficient=config.length_coefficient,
        )

    return _with_sft(loss, config.sft_coefficient)


def _ipo(config: IpoConfig) -> PairLoss:
    average = config.compat == "trl"
    return lambda batch: ipo_loss(batch.logps, beta=config.beta, average=average)


def _simpo(config: SimpoConfig) -> PairLoss:
    def loss(batch: PairBatch) -> Tensor:
        return simpo_loss(
            batch.logps,
            beta=config.beta,
            gamma=config.gamma,
            label_smoothing=config.label_smoothing,
        )

    return _with_sft(loss, config.sft_coefficient)


def _orpo(config: OrpoConfig) -> PairLoss:
    def loss(batch: PairBatch) -> Tensor:
        nll_N = -batch.logps.chosen_mean
        if config.compat == "trl":
            whole = [
                TokenizedPair(input_ids=pair.chosen.input_ids, num_prompt_tokens=1)
                for pair in batch.rows
            ]
            sums_N = batch.policy(whole)
            tokens_N = torch.tensor([len(row.input_ids) - 1 for row in whole]).to(sums_N)
            nll_N = -sums_N / tokens_N
        return orpo_loss(batch.logps, nll_N=nll_N, odds_coefficient=config.odds_coefficient)

    return loss


def _slic(config: SlicConfig) -> PairLoss:
    def loss(batch: PairBatch) -> Tensor:
        return slic_loss(
            batch.logps,
            beta=config.beta,
            delta=config.delta,
            use_reference=config.use_reference,
        )

    return _with_sft(loss, config.sft_coefficient)


def _sppo(config: SppoConfig) -> PairLoss:
    def loss(batch: PairBatch) -> Tensor:
        chosen_N = batch.logps.chosen
        return sppo_loss(
            batch.logps,
            beta=config.beta,
            chosen_win_rate_N=torch.tensor([pair.chosen_win_rate for pair in batch.rows]).to(
                chosen_N
            ),
            rejected_win_rate_N=torch.tensor([pair.rejected_win_rate for pair in batch.rows]).to(
                chosen_N
            ),
            mean_of_two=config.compat == "paper",
        )

    return loss


def _spin(config: SpinConfig) -> PairLoss:
    return lambda batch: spin_loss(batch.logps, beta=config.beta, link=config.link)


def _log_ratios(
    config: DpoConfig | IpoConfig | SppoConfig | SpinConfig | SlicConfig,
) -> PairRewards:
    beta = config.beta
    return lambda logps: (beta * logps.chosen_log_ratio, beta * logps.rejected_log_ratio)


def _means(scale: float) -> PairRewards:
    return lambda logps: (scale * logps.chosen_mean, scale * logps.rejected_mean)


def _slic_rewards(config: SlicConfig) -> PairRewards:
    if config.use_reference:
        return _log_ratios(config)
    return lambda logps: (config.beta * logps.chosen, config.beta * logps.rejected)


PAIR_ALGORITHMS: Mapping[str, PairAlgorithm] = {
    "dpo": PairAlgorithm(loss=_dpo, reward=_log_ratios),
    "ipo": PairAlgorithm(loss=_ipo, reward=_log_ratios),
    "simpo": PairAlgorithm(
        loss=_simpo, reward=lambda c: _means(c.beta), needs_reference=lambda c: False
    ),
    "orpo": PairAlgorithm(
        loss=_orpo, reward=lambda c: _means(c.odds_coefficient), needs_reference=lambda c: False
    ),
    "slic": PairAlgorithm(
        loss=_slic, reward=_slic_rewards, needs_reference=lambda c: c.use_reference
    ),
    "sppo": PairAlgorithm(loss=_sppo, reward=_log_ratios),
    "spin": PairAlgorithm(loss=_spin, reward=_log_ratios),
}
"""What learns from pairs, by name."""
