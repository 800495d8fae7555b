"""Losses on preferences against plain arithmetic in float64, and TRL's own functions."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mpmath import mp
from torch import Tensor

from rewardsvc.policy_client.algorithms.preference.dpo import dpo_loss
from rewardsvc.policy_client.algorithms.preference.ipo import ipo_loss
from rewardsvc.policy_client.algorithms.preference.kto import kto_kl, kto_loss
from rewardsvc.policy_client.algorithms.preference.orpo import log_odds, orpo_loss
from rewardsvc.policy_client.algorithms.preference.rrhf import rrhf_loss
from rewardsvc.policy_client.algorithms.preference.simpo import simpo_loss
from rewardsvc.policy_client.algorithms.preference.slic import slic_loss
from rewardsvc.policy_client.algorithms.preference.spin import Link, spin_loss
from rewardsvc.policy_client.algorithms.preference.sppo import sppo_loss
from rewardsvc.policy_client.algorithms.preference.types import PairLogps
from rewardsvc.policy_client.algorithms.process_losses import step_loss
from rewardsvc.policy_client.algorithms.ranking_losses import plackett_luce_loss, thurstone_loss
from rewardsvc.policy_client.algorithms.reward_losses import bradley_terry_loss

NUM_PAIRS = 7
DIGITS = 40
"""Of plain arithmetic: a difference quotient has half of them."""


def pairs(seed: int = 0, **changes: Any) -> PairLogps:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return -30.0 * torch.rand(NUM_PAIRS, generator=generator, dtype=torch.float64) - 0.5

    lengths = torch.randint(1, 20, (2, NUM_PAIRS), generator=generator).double()
    values = {
        "chosen": draw().requires_grad_(),
        "rejected": draw().requires_grad_(),
        "ref_chosen": draw(),
        "ref_rejected": draw(),
        "chosen_tokens": lengths[0],
        "rejected_tokens": lengths[1],
    }
    return PairLogps(**(values | changes))


def log_sigmoid(x: Any) -> Any:
    return -mp.log(1 + mp.exp(-x))


def plain_odds(mean: Any) -> Any:
    return mp.log(mp.exp(mean) / (1 - mp.exp(mean)))


def slope(plain: Callable[..., Any], at: Sequence[float], position: int) -> float:
    """The derivative of a formula by one of its numbers, to far more digits than float64 has."""

    def along(x: Any) -> Any:
        return plain(*at[:position], x, *at[position + 1 :])

    with mp.workdps(DIGITS):
        return float(mp.diff(along, at[position]))


CASES: dict[str, tuple[Callable[[PairLogps], Tensor], Callable[..., float]]] = {
    "dpo": (
        lambda p: dpo_loss(p, beta=0.3),
        lambda c, r, rc, rr, n, m: -log_sigmoid(0.3 * ((c - rc) - (r - rr))),
    ),
    "cdpo": (
        lambda p: dpo_loss(p, beta=0.1, label_smoothing=0.2),
        lambda c, r, rc, rr, n, m: (
            -0.8 * log_sigmoid(0.1 * (c - rc - r + rr)) - 0.2 * log_sigmoid(0.1 * (r - rr - c + rc))
        ),
    ),
    "r-dpo": (
        lambda p: dpo_loss(p, beta=0.1, length_coefficient=0.05),
        lambda c, r, rc, rr, n, m: -log_sigmoid(0.1 * (c - rc - r + rr) + 0.05 * (n - m)),
    ),
    "ipo": (
        lambda p: ipo_loss(p, beta=0.1),
        lambda c, r, rc, rr, n, m: (c - rc - r + rr - 5.0) ** 2,
    ),
    "ipo, averaged": (
        lambda p: ipo_loss(p, beta=0.1, average=True),
        lambda c, r, rc, rr, n, m: ((c - rc) / n - (r - rr) / m - 5.0) ** 2,
    ),
    "simpo": (
        lambda p: simpo_loss(p, beta=2.0, gamma=0.7),
        lambda c, r, rc, rr, n, m: -log_sigmoid(2.0 * (c / n - r / m) - 0.7),
    ),
    "orpo": (
        lambda p: orpo_loss(p, nll_N=-p.chosen_mean, odds_coefficient=0.2),
        lambda c, r, rc, rr, n, m: (
            -c / n - 0.2 * log_sigmoid(plain_odds(c / n) - plain_odds(r / m))
        ),
    ),
    "slic": (
        lambda p: slic_loss(p, delta=2.0),
        lambda c, r, rc, rr, n, m: max(0.0, 2.0 - (c - r)),
    ),
    "slic, with reference": (
        lambda p: slic_loss(p, beta=0.1, use_reference=True),
        lambda c, r, rc, rr, n, m: max(0.0, 1.0 - 0.1 * (c - rc - r + rr)),
    ),
    "sppo": (
        lambda p: sppo_loss(p, beta=0.01),
        lambda c, r, rc, rr, n, m: ((c - rc - 50.0) ** 2 + (r - rr + 50.0) ** 2) / 2.0,
    ),
    "sppo, soft": (
        lambda p: sppo_loss(p, beta=0.1, chosen_win_rate_N=0.7, rejected_win_rate_N=0.4),
        lambda c, r, rc, rr, n, m: ((c - rc - 2.0) ** 2 + (r - rr + 1.0) ** 2) / 2.0,
    ),
    "sppo, trl": (
        lambda p: sppo_loss(p, beta=0.1, mean_of_two=False),
        lambda c, r, rc, rr, n, m: (c - rc - 5.0) ** 2 + (r - rr + 5.0) ** 2,
    ),
    "spin": (
        lambda p: spin_loss(p, beta=0.1),
        lambda c, r, rc, rr, n, m: mp.log(1 + mp.exp(-0.1 * (c - rc - r + rr))),
    ),
    "spin, hinge": (
        lambda p: spin_loss(p, beta=0.1, link=Link.HINGE),
        lambda c, r, rc, rr, n, m: max(0.0, 1.0 - 0.1 * (c - rc - r + rr)),
    ),
    "spin, exponential": (
        lambda p: spin_loss(p, beta=0.1, link=Link.EXPONENTIAL),
        lambda c, r, rc, rr, n, m: mp.exp(-0.1 * (c - rc - r + rr)),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_on_pairs_is_the_formula_and_so_is_its_gradient(name: str, seed: int) -> None:
    ours, plain = CASES[name]
    given = pairs(seed)
    columns = [
        getattr(given, field).tolist()
        for field in (
            "chosen",
            "rejected",
            "ref_chosen",
            "ref_rejected",
            "chosen_tokens",
            "rejected_tokens",
        )
    ]
    loss_N = ours(given)
    with mp.workdps(DIGITS):
        want_N = [float(plain(*row)) for row in zip(*columns, strict=True)]
    torch.testing.assert_close(
        loss_N, torch.tensor(want_N, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )
    loss_N.sum().backward()
    for position, tensor in ((0, given.chosen), (1, given.rejected)):
        assert tensor.grad is not None
        slopes = [slope(plain, row, position) for row in zip(*columns, strict=True)]
        assert tensor.grad.tolist() == pytest.approx(slopes, rel=1e-8, abs=1e-8)


def trl_experimental(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import importlib

        return importlib.import_module(f"trl.experimental.{name}")


def test_simpo_agrees_with_trl() -> None:
    given = pairs(3)
    fields = {"alpha": 0.0, "loss_type": "simpo", "simpo_gamma": 0.5, "beta": 2.5}
    fake = SimpleNamespace(
        **fields, label_smoothing=0.1, accelerator=SimpleNamespace(device=torch.device("cpu"))
    )
    trainer = trl_experimental("cpo").CPOTrainer
    want_N, _, _ = trainer.cpo_loss(fake, given.chosen_mean, given.rejected_mean)
    found_N = simpo_loss(given, beta=2.5, gamma=0.5, label_smoothing=0.1)
    torch.testing.assert_close(found_N, want_N, rtol=1e-12, atol=1e-12)


def test_odds_term_of_orpo_agrees_with_trl() -> None:
    given = pairs(4)
    fake = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    trainer = trl_experimental("orpo").ORPOTrainer
    want_N = trainer.odds_ratio_loss(fake, given.chosen_mean, given.rejected_mean)[0]
    zero_N = torch.zeros(NUM_PAIRS, dtype=torch.float64)
    found_N = -orpo_loss(given, nll_N=zero_N, odds_coefficient=0.3)
    # TRL computes it in float32.
    torch.testing.assert_close(found_N.float(), want_N, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("center", [None, 0.3])
@pytest.mark.parametrize("margins", [None, [0.0, 0.5, 1.5]])
def test_reward_loss_and_its_gradient_are_those_of_trl(
    center: float | None, margins: list[float] | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import RewardTrainer
    scores = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs, ours = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    margin_N = None if margins is None else torch.tensor(margins, dtype=torch.float64)
    fake = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    want = RewardTrainer.compute_loss(
        fake,
        lambda **_: SimpleNamespace(logits=theirs[:, None]),
        {} if margin_N is None else {"margin": margin_N},
    )
    found = bradley_terry_loss(
        ours[:3], ours[3:], margin_N=margin_N, center_coefficient=center or 0.0
    ).mean()
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    want.backward()
    found.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_log_odds_is_finite_and_exact_at_both_ends() -> None:
    logp_N = torch.tensor([0.0, -1e-12, -1e-3, -0.69, -0.7, -50.0, -800.0], dtype=torch.float64)
    logp_N.requires_grad_()
    odds_N = log_odds(logp_N)
    assert torch.isfinite(odds_N).all()
    assert odds_N[1].item() == pytest.approx(-math.log(1e-12), rel=1e-9)
    assert odds_N[5].item() == pytest.approx(-50.0, rel=1e-12)
    odds_N.sum().backward()
    assert logp_N.grad is not None
    assert torch.isfinite(logp_N.grad).all()


def test_kto_is_the_formula_and_its_reference_point_has_no_gradient() -> None:
    log_ratio_N = torch.tensor([0.4, -1.2, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    good_N = torch.tensor([True, False, False, True])
    mismatched_N = torch.tensor([0.5, -0.1, 0.2], dtype=torch.float64, requires_grad=True)
    kl = kto_kl(mismatched_N)
    assert kl.item() == pytest.approx(0.2)
    loss_N = kto_loss(log_ratio_N, good_N, kl=kl, beta=0.5, weights=(1.0, 2.0))

    def sigmoid(x: float) -> float:
        return 1.0 / (1.0 + math.exp(-x))

    want = [
        1.0 - sigmoid(0.5 * (0.4 - 0.2)),
        2.0 * (1.0 - sigmoid(0.5 * (0.2 + 1.2))),
        2.0 * (1.0 - sigmoid(0.5 * (0.2 - 2.0))),
        1.0 - sigmoid(0.5 * (0.1 - 0.2)),
    ]
    torch.testing.assert_close(loss_N, torch.tensor(want, dtype=torch.float64))
    loss_N.sum().backward()
    assert mismatched_N.grad is None
    assert kto_kl(torch.tensor([-3.0, 1.0])).item() == 0.0
    assert kto_kl(torch.empty(0)).item() == 0.0


def test_rrhf_is_the_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_K = torch.randn(5, generator=generator, dtype=torch.float64)
    reward_K = torch.tensor([0.1, 0.9, 0.1, 0.5, 0.9], dtype=torch.float64)
    want = -0.5 * mean_K[1].item()
    for i in range(5):
        for j in range(5):
            if reward_K[i] < reward_K[j]:
                want += max(0.0, (mean_K[i] - mean_K[j]).item())
    found = rrhf_loss(mean_K, reward_K, nll_coefficient=0.5)
    assert found.item() == pytest.approx(want, rel=1e-12)
    with pytest.raises(ValueError, match="leave completions without a reward out"):
        rrhf_loss(mean_K, torch.full((5,), math.nan))


def test_plackett_luce_is_drawing_without_replacement() -> None:
    score_K = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = score_K.exp().tolist()
    want = 0.0
    for place in range(6):
        want -= math.log(weights[place] / sum(weights[place:]))
    assert plackett_luce_loss(score_K).item() == pytest.approx(want, rel=1e-12)
    top_two = -sum(math.log(weights[place] / sum(weights[place:])) for place in range(2))
    assert plackett_luce_loss(score_K, top=2).item() == pytest.approx(top_two, rel=1e-12)
    pair = plackett_luce_loss(score_K[:2])
    assert pair.item() == pytest.approx(
        bradley_terry_loss(score_K[:1], score_K[1:2]).item(), rel=1e-12
    )
    assert plackett_luce_loss(score_K[:1]).item() == 0.0


def test_plackett_luce_of_far_scores_is_finite() -> None:
    score_K = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    loss = plackett_luce_loss(score_K)
    loss.backward()
    assert loss.item() == pytest.approx(3e4)
    assert score_K.grad is not None
    assert torch.isfinite(score_K.grad).all()


def test_thurstone_is_the_normal_distribution() -> None:
    chosen_N = torch.tensor([1.0, -2.0, 40.0, -40.0], dtype=torch.float64, requires_grad=True)
    rejected_N = torch.tensor([0.5, 1.0, 0.0, 0.0], dtype=torch.float64)
    loss_N = thurstone_loss(chosen_N, rejected_N, sigma=1.5)
    for index in (0, 1):
        z = (chosen_N[index] - rejected_N[index]).item() / 1.5 / math.sqrt(2.0)
        want = -math.log(0.5 * math.erfc(-z / math.sqrt(2.0)))
        assert loss_N[index].item() == pytest.approx(want, rel=1e-9)
    assert torch.isfinite(loss_N).all()
    loss_N.sum().backward()
    assert chosen_N.grad is not None
    assert torch.isfinite(chosen_N.grad).all()


def test_step_loss_is_cross_entropy_with_soft_labels() -> None:
    logits_S2 = torch.tensor([[0.2, 1.0], [2.0, -1.0], [0.0, 0.0]])
    label_S = torch.tensor([1.0, 0.0, 0.25])
    want = []
    for (wrong, right), label in zip(logits_S2.tolist(), label_S.tolist(), strict=True):
        log_z = math.log(math.exp(wrong) + math.exp(right))
        want.append(-label * (right - log_z) - (1 - label) * (wrong - log_z))
    torch.testing.assert_close(step_loss(logits_S2, label_S), torch.tensor(want))
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        step_loss(logits_S2, torch.tensor([1.0, 0.0, 2.0]))


REST: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Any]]] = {
    "kto, good": (
        lambda x: kto_loss(
            x[:1], torch.tensor([True]), kl=torch.tensor(0.3, dtype=torch.float64), beta=0.5
        ).sum(),
        lambda a, b, c, d: 1 - 1 / (1 + mp.exp(-0.5 * (a - 0.3))),
    ),
    "kto, bad": (
        lambda x: kto_loss(
            x[:1],
            torch.tensor([False]),
            kl=torch.tensor(0.3, dtype=torch.float64),
            beta=0.5,
            weights=(1.0, 1.3),
        ).sum(),
        lambda a, b, c, d: 1.3 * (1 - 1 / (1 + mp.exp(-0.5 * (0.3 - a)))),
    ),
    "rrhf": (
        lambda x: rrhf_loss(x, torch.tensor([0.2, 0.9, 0.2, 0.5]), nll_coefficient=0.7),
        lambda a, b, c, d: (
            sum(max(0, low - high) for low, high in ((a, d), (a, b), (c, d), (c, b), (d, b)))
            - 0.7 * b
        ),
    ),
    "bradley-terry": (
        lambda x: bradley_terry_loss(
            x[:2],
            x[2:],
            margin_N=torch.tensor([0.5, 0.25]).double(),
            label_smoothing=0.2,
            center_coefficient=0.01,
        ).sum(),
        lambda a, b, c, d: sum(
            -0.8 * log_sigmoid(high - low - margin)
            - 0.2 * log_sigmoid(low + margin - high)
            + 0.01 * (high + low) ** 2
            for high, low, margin in ((a, c, 0.5), (b, d, 0.25))
        ),
    ),
    "plackett-luce": (
        plackett_luce_loss,
        lambda *s: (
            -sum(mp.log(mp.exp(s[k]) / sum(mp.exp(rest) for rest in s[k:])) for k in range(4))
        ),
    ),
    "plackett-luce, top": (
        lambda x: plackett_luce_loss(x, top=2),
        lambda *s: (
            -sum(mp.log(mp.exp(s[k]) / sum(mp.exp(rest) for rest in s[k:])) for k in range(2))
        ),
    ),
    "thurstone": (
        lambda x: thurstone_loss(x[:2], x[2:], sigma=0.6).sum(),
        lambda a, b, c, d: (
            -sum(
                mp.log(mp.ncdf((high - low) / (0.6 * mp.sqrt(2)))) for high, low in ((a, c), (b, d))
            )
        ),
    ),
    "steps": (
        lambda x: step_loss(x.reshape(2, 2), torch.tensor([1.0, 0.25]).double()).sum(),
        lambda a, b, c, d: (
            -sum(
                label * mp.log(mp.exp(right) / (mp.exp(wrong) + mp.exp(right)))
                + (1 - label) * mp.log(mp.exp(wrong) / (mp.exp(wrong) + mp.exp(right)))
                for wrong, right, label in ((a, b, 1.0), (c, d, 0.25))
            )
        ),
    ),
}
"""Losses of four numbers: ours, and the formula."""


@pytest.mark.parametrize("name", REST)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_other_loss_and_its_gradient_are_the_formula(name: str, seed: int) -> None:
    ours, plain = REST[name]
    generator = torch.Generator().manual_seed(seed)
    given = (2.0 * torch.randn(4, generator=generator, dtype=torch.float64)).requires_grad_()
    loss = ours(given)
    at = given.tolist()
    with mp.workdps(DIGITS):
        assert loss.item() == pytest.approx(float(plain(*at)), rel=1e-10)
    loss.backward()
    assert given.grad is not None
    slopes = [slope(plain, at, position) for position in range(4)]
    assert given.grad.tolist() == pytest.approx(slopes, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: dpo_loss(p, beta=0.0), "beta is 0.0"),
        (lambda p: dpo_loss(p, beta=0.1, label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda p: ipo_loss(p, beta=-1.0), "beta is -1.0"),
        (lambda p: simpo_loss(p, beta=2.0, gamma=-0.1), "gamma is -0.1"),
        (lambda p: slic_loss(p, delta=0.0), "delta is 0.0"),
        (
            lambda p: orpo_loss(p, nll_N=torch.zeros(1), odds_coefficient=0.1),
            "nll_N has shape",
        ),
    ],
)
def test_bad_coefficients_are_named(call: Callable[[PairLogps], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pairs())


def test_missing_reference_and_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="ref_chosen is missing"):
        dpo_loss(pairs(ref_chosen=None), beta=0.1)
    with pytest.raises(ValueError, match="rejected has shape"):
        pairs(rejected=torch.zeros(2))
