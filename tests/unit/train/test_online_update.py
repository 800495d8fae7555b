"""The update: one gradient, however it is cut up, and no step on one that is not a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_policies import EOS, PAD, tiny_policy

from rewardsvc.policy_client.algorithms.aggregation import Aggregation
from rewardsvc.policy_client.algorithms.compat import Compat, preset
from rewardsvc.policy_client.algorithms.presets import PRESETS, AlgorithmSpec, KlPlace
from rewardsvc.policy_client.train.online.critic import Critic
from rewardsvc.policy_client.train.online.decode import TransformersRollout
from rewardsvc.policy_client.train.online.experience import Experience
from rewardsvc.policy_client.train.online.forward import PolicyForward
from rewardsvc.policy_client.train.online.sampling import SamplingParams
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.online.update import Learner, UpdateParams, Updater

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
PARAMS = UpdateParams(
    max_tokens_per_microbatch=1000,
    max_grad_norm=1e9,
    max_new_tokens=6,
    value_clip=0.2,
)


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradients it stepped with, and changes weights by them."""

    def __init__(self, module: torch.nn.Module, lr: float = 0.0) -> None:
        super().__init__(module.parameters(), lr=lr)
        self.steps: list[list[torch.Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.steps.append([grad.clone() for grad in grads if grad is not None])
        return super().step(closure)


def experience_of(model: Any) -> Experience:
    """A real rollout with made-up advantages; the last prompt's completions have no reward."""
    engine = TransformersRollout(model, eos_ids=[EOS, 20, 21, 22, 23], pad_id=PAD)
    generator = torch.Generator().manual_seed(0)
    rollout = engine.generate(PROMPTS, 4, SamplingParams(max_new_tokens=6), generator)
    mask = rollout.completion_mask.clone()
    mask[8:] = False
    rows = torch.linspace(-1, 1, 12)[:, None]
    return Experience(
        sequences=Sequences.of(rollout, pad_id=PAD),
        groups=torch.arange(12) // 4,
        mask=mask,
        old_logprobs=rollout.logprobs,
        sampler_logprobs=rollout.logprobs,
        advantages=torch.where(mask, rows, 0.0),
        ref_logprobs=torch.where(rollout.completion_mask, rollout.logprobs - 0.3, 0.0),
    )


def updated(
    spec: AlgorithmSpec, params: UpdateParams, experience: Experience, model: Any, lr: float = 0.0
) -> tuple[Recorder, dict[str, float]]:
    optimizer = Recorder(model, lr)
    updater = Updater(Learner(forward=PolicyForward(model), optimizer=optimizer), spec, params)
    metrics = updater.update(experience, kl_coef=0.1, generator=torch.Generator().manual_seed(0))
    return optimizer, metrics


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "cispo", "dapo paper", "gspo"])
def test_the_gradient_does_not_depend_on_micro_batches(algorithm: str) -> None:
    # Scaling by what a micro-batch holds, and not by the minibatch, is off by the number of cuts.
    model = tiny_policy()
    experience = experience_of(model)
    name, _, compat = algorithm.partition(" ")
    spec = replace(preset(name, Compat(compat) if compat else None), num_minibatches=1)
    whole, metrics = updated(spec, PARAMS, experience, model)
    cut, cut_metrics = updated(
        spec, replace(PARAMS, max_tokens_per_microbatch=20), experience, model
    )
    assert len(whole.steps) == len(cut.steps) == 1
    for expected, found in zip(whole.steps[0], cut.steps[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for name in ("loss", "policy_loss", "kl", "grad_norm"):
        assert cut_metrics[name] == pytest.approx(metrics[name], rel=1e-3, abs=1e-5)


def test_the_gradient_is_that_of_the_policy_gradient_theorem() -> None:
    model = tiny_policy()
    experience = experience_of(model)
    recorder, _ = updated(PRESETS["grpo"], PARAMS, replace(experience, ref_logprobs=None), model)
    logprobs = PolicyForward(model)(experience.sequences).logprobs
    weight = experience.advantages / experience.mask.sum()
    grads = torch.autograd.grad(-(weight * logprobs)[experience.mask].sum(), model.parameters())
    for expected, found in zip(grads, recorder.steps[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_completions_without_rewards_have_no_say() -> None:
    model = tiny_policy()
    experience = experience_of(model)
    expected, _ = updated(PRESETS["grpo"], PARAMS, experience, model)
    poisoned = replace(
        experience,
        advantages=torch.where(experience.mask, experience.advantages, torch.nan),
        ref_logprobs=torch.where(experience.mask, experience.ref_logprobs, torch.nan),
    )
    found, metrics = updated(PRESETS["grpo"], PARAMS, poisoned, model)
    for a, b in zip(expected.steps[0], found.steps[0], strict=True):
        assert a.equal(b)
    assert all(value == value for value in metrics.values())


@pytest.mark.parametrize(("kl_place", "num_computed"), [(KlPlace.REWARD, 4), (KlPlace.LOSS, 8)])
def test_completions_without_an_advantage_cost_nothing_unless_another_term_needs_them(
    kl_place: KlPlace, num_computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_policy()
    experience = experience_of(model)
    half = experience.advantages.clone()
    half[:4] = 0.0
    computed: list[int] = []
    original = PolicyForward.__call__

    def spy(self: PolicyForward, sequences: Sequences) -> Any:
        computed.append(len(sequences.prompts))
        return original(self, sequences)

    monkeypatch.setattr(PolicyForward, "__call__", spy)
    spec = replace(PRESETS["grpo"], kl_place=kl_place)
    recorder, _ = updated(spec, PARAMS, replace(experience, advantages=half), model)
    assert sum(computed) == num_computed
    if kl_place is KlPlace.REWARD:
        logprobs = original(PolicyForward(model), experience.sequences).logprobs
        loss = -(half / experience.mask.sum() * logprobs)[experience.mask].sum()
        for expected, found in zip(
            torch.autograd.grad(loss, model.parameters()), recorder.steps[0], strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_epochs_and_minibatches_make_as_many_steps_and_move_the_ratio() -> None:
    model = tiny_policy()
    spec = replace(PRESETS["grpo"], num_epochs=2, num_minibatches=3)
    recorder, metrics = updated(spec, PARAMS, experience_of(model), model, lr=0.5)
    assert len(recorder.steps) == 6
    assert abs(metrics["ratio/mean"] - 1) > 0.001
    assert metrics["clip_ratio/region_mean"] > 0


def test_a_gradient_that_is_not_finite_is_dropped_and_counted() -> None:
    model = tiny_policy()
    experience = experience_of(model)
    broken = experience.advantages.clone()
    broken[0, 0] = torch.inf
    recorder, metrics = updated(
        PRESETS["grpo"], PARAMS, replace(experience, advantages=broken), model, lr=1.0
    )
    assert recorder.steps == []
    assert metrics["num_skipped_updates"] == 1
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_several_dropped_gradients_in_a_row_are_an_error_and_one_good_one_forgives() -> None:
    model = tiny_policy()
    good = experience_of(model)
    infinite = good.advantages.clone()
    infinite[0, 0] = torch.inf
    bad = replace(good, advantages=infinite)
    params = replace(PARAMS, max_nonfinite_updates=1)
    learner = Learner(forward=PolicyForward(model), optimizer=Recorder(model))
    updater = Updater(learner, PRESETS["grpo"], params)

    def update(experience: Experience) -> None:
        updater.update(experience, kl_coef=0.0, generator=torch.Generator())

    update(bad)
    update(good)
    update(bad)
    with pytest.raises(FloatingPointError, match="max_nonfinite_updates is 1"):
        update(bad)


def test_nothing_is_reported_of_a_minibatch_that_was_dropped() -> None:
    model = tiny_policy()
    experience = experience_of(model)
    broken = experience.advantages.clone()
    broken[0, 0] = torch.nan
    _, metrics = updated(PRESETS["grpo"], PARAMS, replace(experience, advantages=broken), model)
    assert metrics == {"num_skipped_updates": 1.0}


@pytest.mark.parametrize("cut", [1000, 20])
def test_every_prompt_counts_the_same_where_the_aggregation_says_so(cut: int) -> None:
    model = tiny_policy()
    experience = replace(experience_of(model), ref_logprobs=None)
    spec = replace(PRESETS["grpo"], aggregation=Aggregation.GROUP_MEAN_TOKEN_MEAN)
    params = replace(PARAMS, max_tokens_per_microbatch=cut)
    recorder, _ = updated(spec, params, experience, model)
    logprobs = PolicyForward(model)(experience.sequences).logprobs
    mask, terms = experience.mask, experience.advantages * logprobs
    loss = -sum(terms[at : at + 4][mask[at : at + 4]].mean() for at in (0, 4)) / 2
    for expected, found in zip(
        torch.autograd.grad(loss, model.parameters()), recorder.steps[0], strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_an_entropy_bonus_pushes_entropy_up() -> None:
    model = tiny_policy(spread=0.2)
    experience = experience_of(model)
    experience = replace(
        experience, advantages=torch.zeros_like(experience.advantages), ref_logprobs=None
    )
    forward = PolicyForward(model, entropy_gradient=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    spec = replace(PRESETS["grpo"], entropy_coef=1.0)
    updater = Updater(Learner(forward=forward, optimizer=optimizer), spec, PARAMS)
    before = forward.in_batches(experience.sequences, 1000).entropy[experience.mask].mean()
    for _ in range(5):
        updater.update(experience, kl_coef=0.0, generator=torch.Generator())
    after = forward.in_batches(experience.sequences, 1000).entropy[experience.mask].mean()
    assert after > before + 0.01


def test_the_critic_learns_the_returns_without_touching_the_policy() -> None:
    model = tiny_policy(spread=0.0)
    experience = experience_of(model)
    critic = Critic.from_policy(model)
    before = [parameter.clone() for parameter in model.parameters()]
    returns = torch.where(experience.mask, 0.7, 0.0)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    learner = Learner(
        forward=PolicyForward(model),
        optimizer=Recorder(model),
        critic=critic,
        critic_optimizer=optimizer,
    )
    updater = Updater(learner, PRESETS["ppo"], replace(PARAMS, value_clip=None))
    losses = []
    for _ in range(5):
        values = critic.in_batches(experience.sequences, 1000)
        judged = replace(experience, returns=returns, old_values=values, ref_logprobs=None)
        metrics = updater.update(judged, kl_coef=0.0, generator=torch.Generator())
        losses.append(metrics["critic/vf_loss"])
    assert losses[-1] < 0.05 * losses[0]
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.equal(old)
