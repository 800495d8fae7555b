"""`policy_loss` and `token_kl` against autograd through the trainers' pure functions."""

from __future__ import annotations

import itertools

import pytest
import torch

from rewardsvc.kernels import (
    Aggregation,
    KlClamps,
    KlEstimator,
    Objective,
    PolicyLossSpec,
    RatioLevel,
    aggregation_weights,
    policy_loss,
    token_kl,
)
from rewardsvc.policy_client.algorithms import aggregation as algorithm_aggregation
from rewardsvc.policy_client.algorithms import kl as algorithm_kl
from rewardsvc.policy_client.algorithms import policy_loss as algorithm
from rewardsvc.policy_client.algorithms.aggregation import token_weights, weighted_sum
from rewardsvc.policy_client.algorithms.kl import kl_estimate

# All of them are 1,200; every option meets every other in this part of them.
KLS = [None, *itertools.product(KlEstimator, KlClamps)]
CASES = list(itertools.product(Objective, RatioLevel, (None, 3.0), Aggregation, KLS))[::17]
NORM_LENGTH = 50
GROUPS = torch.tensor([7, 3, 7, 3, 9])


def _definition(logp, old, advantages, mask, spec, ref):
    """The loss by the trainers' pure functions, for autograd to go backward through.

    The two are written separately and must not mean different things.
    """
    ratio = algorithm.importance_ratio(logp, old, mask, algorithm.RatioLevel(spec.ratio))
    policy = algorithm.policy_loss(
        logp,
        ratio,
        advantages,
        mask,
        objective=algorithm.Objective(spec.objective),
        clip=algorithm.ClipRange(eps_low=spec.eps_low, eps_high=spec.eps_high, dual=spec.dual),
    )
    weights = token_weights(
        mask,
        algorithm_aggregation.Aggregation(spec.aggregation),
        norm_length=spec.norm_length,
        groups_N=GROUPS[: len(mask)],
        dtype=torch.float32,
    )
    total = weighted_sum(policy.loss, weights)
    if ref is not None:
        kl = kl_estimate(
            logp,
            ref,
            mask,
            algorithm_kl.KlEstimator(spec.kl_estimator),
            clamps=algorithm_kl.KlClamps(spec.kl_clamps),
        )
        total = total + spec.kl_coef * weighted_sum(kl, weights)
    return total, policy, weights


def _batch(num_rows=5, num_tokens=37, spread=0.5):
    logp = torch.randn(num_rows, num_tokens) - 2
    old = logp + torch.randn_like(logp) * spread
    mask = torch.rand(num_rows, num_tokens) > 0.3
    mask[-1] = False
    return logp.requires_grad_(), old, torch.randn_like(old), mask


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Objective, algorithm.Objective),
        (RatioLevel, algorithm.RatioLevel),
        (Aggregation, algorithm_aggregation.Aggregation),
        (KlEstimator, algorithm_kl.KlEstimator),
        (KlClamps, algorithm_kl.KlClamps),
    ],
)
def test_the_kernel_has_every_option_that_the_algorithms_have(ours, theirs):
    assert set(ours) == set(theirs)


@pytest.mark.parametrize(("objective", "ratio", "dual", "aggregation", "kl"), CASES)
def test_loss_and_gradient_match_the_algorithms(
    quick_backend, objective, ratio, dual, aggregation, kl
):
    estimator, clamps = kl or (KlEstimator.K3, KlClamps.VERL)
    spec = PolicyLossSpec(
        objective=objective,
        ratio=ratio,
        dual=dual,
        aggregation=aggregation,
        norm_length=NORM_LENGTH,
        eps_low=0.1,
        eps_high=0.3,
        kl_coef=0.1 if kl else 0.0,
        kl_estimator=estimator,
        kl_clamps=clamps,
    )
    logp, old, advantages, mask = _batch(spread=0.05 if ratio is RatioLevel.SEQUENCE else 0.5)
    ref = None
    if kl:
        ref = logp.detach() + torch.randn_like(old) * 0.3
        # Beyond every clamp, on either side.
        ref[0, :4] = logp.detach()[0, :4] + torch.tensor([25.0, -25.0, 4.0, -12.0])
        mask[0, :4] = True
    weights = aggregation_weights(mask, aggregation, norm_length=NORM_LENGTH, groups=GROUPS)
    got = policy_loss(
        logp,
        old,
        advantages,
        mask,
        spec=spec,
        ref_logp=ref,
        weights=weights,
        backend=quick_backend,
    )
    want, policy, want_weights = _definition(logp, old, advantages, mask, spec, ref)
    torch.testing.assert_close(weights, want_weights)
    torch.testing.assert_close(got.loss, want, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(3.0 * got.loss, logp)
    (want_grad,) = torch.autograd.grad(3.0 * want, logp)
    # Relative to the whole: k3 without clamps has tokens of e^25.
    atol = 1e-6 * max(1.0, float(want_grad.abs().max()))
    torch.testing.assert_close(grad, want_grad, rtol=1e-5, atol=atol)
    assert abs(float(grad.norm() / want_grad.norm()) - 1) < 1e-5
    num_tokens = mask.sum()
    torch.testing.assert_close(got.ratio, (policy.ratio * mask).sum() / num_tokens)
    torch.testing.assert_close(got.clipped_low, (policy.clipped_low & mask).sum() / num_tokens)
    torch.testing.assert_close(got.clipped_high, (policy.clipped_high & mask).sum() / num_tokens)


@pytest.mark.parametrize("num_tokens", [1, 1024, 1025])
def test_rows_of_any_length(quick_backend, num_tokens):
    spec = PolicyLossSpec(ratio=RatioLevel.SEQUENCE_MEAN, kl_coef=0.1)
    logp, old, advantages, mask = _batch(num_tokens=num_tokens)
    got = policy_loss(
        logp, old, advantages, mask, spec=spec, ref_logp=old, backend=quick_backend
    ).loss
    want, _, _ = _definition(logp, old, advantages, mask, spec, old)
    (grad,) = torch.autograd.grad(got, logp)
    (want_grad,) = torch.autograd.grad(want, logp)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, want_grad, rtol=1e-5, atol=1e-6)


def test_what_is_masked_may_hold_anything(quick_backend):
    logp, old, advantages, mask = _batch()
    options = {"spec": PolicyLossSpec(kl_coef=0.1), "backend": quick_backend}
    ref = old + 0.1
    clean = policy_loss(logp, old, advantages, mask, ref_logp=ref, **options)
    (clean_grad,) = torch.autograd.grad(clean.loss, logp)
    poisoned = [torch.where(mask, x.detach(), torch.nan) for x in (logp, old, advantages, ref)]
    poisoned[0].requires_grad_()
    got = policy_loss(*poisoned[:3], mask, ref_logp=poisoned[3], **options)
    (grad,) = torch.autograd.grad(got.loss, poisoned[0])
    assert got.loss == clean.loss
    assert torch.equal(grad, clean_grad)


def test_extreme_ratios_stay_finite(quick_backend):
    logp = torch.tensor([[100.0, -100.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    got = policy_loss(
        logp,
        torch.zeros(1, 2),
        torch.tensor([[-1.0, 1.0]]),
        mask,
        spec=PolicyLossSpec(kl_coef=1.0),
        ref_logp=torch.zeros(1, 2),
        backend=quick_backend,
    )
    (grad,) = torch.autograd.grad(got.loss, logp)
    assert torch.isfinite(got.loss)
    assert torch.isfinite(grad).all()


def test_numbers_to_watch(quick_backend):
    logp = torch.tensor([[0.0, 0.5, -0.5, 0.5]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    got = policy_loss(logp, torch.zeros(1, 4), advantages, mask, backend=quick_backend)
    assert float(got.clipped_high) == pytest.approx(1 / 3)
    assert float(got.clipped_low) == pytest.approx(1 / 3)
    assert float(got.old_kl) == pytest.approx(0.0, abs=1e-6)
    assert float(got.kl) == 0.0
    mean_ratio = (1 + torch.tensor(0.5).exp() + torch.tensor(-0.5).exp()) / 3
    assert float(got.ratio) == pytest.approx(float(mean_ratio))


def test_micro_batches_add_up_to_the_batch(quick_backend):
    logp, old, advantages, mask = _batch(num_rows=6)
    spec = PolicyLossSpec(aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN)
    whole = policy_loss(logp, old, advantages, mask, spec=spec, backend=quick_backend).loss
    weights = aggregation_weights(mask, spec.aggregation)
    parts = [
        policy_loss(
            logp[rows],
            old[rows],
            advantages[rows],
            mask[rows],
            spec=spec,
            weights=weights[rows],
            backend=quick_backend,
        ).loss
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


def test_without_old_log_probs_the_ratio_is_one(quick_backend):
    logp, _, advantages, mask = _batch()
    got = policy_loss(logp, None, advantages, mask, backend=quick_backend)
    same = policy_loss(logp, logp.detach(), advantages, mask, backend=quick_backend)
    assert got.loss == same.loss
    assert float(got.ratio) == pytest.approx(1.0)


@pytest.mark.parametrize("estimator", list(KlEstimator))
def test_token_kl_gradient(estimator):
    logp = (torch.randn(3, 5, dtype=torch.float64) * 0.3).requires_grad_()
    ref = (torch.randn(3, 5, dtype=torch.float64) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: token_kl(a, b, estimator=estimator), (logp, ref))


@pytest.mark.parametrize(("estimator", "clamps"), KLS[1:])
def test_token_kl_is_the_algorithms_estimate(estimator, clamps):
    logp = torch.linspace(-30, 30, 41, dtype=torch.float64)
    ours, theirs = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    ref, mask = torch.zeros_like(logp), torch.arange(41) % 7 > 0
    got = token_kl(ours, ref, estimator=estimator, clamps=clamps, mask=mask)
    want = kl_estimate(
        theirs,
        ref,
        mask,
        algorithm_kl.KlEstimator(estimator),
        clamps=algorithm_kl.KlClamps(clamps),
    )
    torch.testing.assert_close(got, want)
    (grad,), (want_grad,) = (
        torch.autograd.grad(x.sum(), y) for x, y in ((got, ours), (want, theirs))
    )
    torch.testing.assert_close(grad, want_grad)


def test_k3_keeps_its_digits_between_close_policies():
    d = torch.tensor([1e-4, -1e-4])
    got = token_kl(torch.zeros(2), d, estimator="k3")
    want = token_kl(torch.zeros(2).double(), d.double(), estimator="k3")
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=0)


def test_masked_tokens_have_no_kl_and_no_gradient():
    logp = torch.tensor([0.5, torch.nan], requires_grad=True)
    mask = torch.tensor([True, False])
    got = token_kl(logp, torch.zeros(2), estimator="k1", mask=mask)
    got.sum().backward()
    assert got.tolist() == [0.5, 0.0]
    assert logp.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps_low": 1.5}, "eps_low is 1.5"),
        ({"eps_high": -0.1}, "eps_high is -0.1"),
        ({"dual": 1.0}, "dual is 1.0"),
        ({"aggregation": Aggregation.SEQ_MEAN_TOKEN_SUM_NORM}, "norm_length is None"),
    ],
)
def test_a_spec_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        PolicyLossSpec(**values)


def test_malformed_calls_are_named():
    logp, old, advantages, mask = _batch()
    with pytest.raises(ValueError, match="advantages has shape"):
        policy_loss(logp, old, advantages[:, :-1], mask)
    with pytest.raises(ValueError, match="kl_coef is 0.1 and ref_logp is None"):
        policy_loss(logp, old, advantages, mask, spec=PolicyLossSpec(kl_coef=0.1))
    with pytest.raises(ValueError, match="'k4' is not a valid KlEstimator"):
        token_kl(logp, old, estimator="k4")
