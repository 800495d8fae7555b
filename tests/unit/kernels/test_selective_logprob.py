"""`selective_logprob` against its float64 definition, on every backend."""

from __future__ import annotations

import math
import os

import pytest
import torch

from rewardsvc.kernels import selective_logprob
from rewardsvc.kernels.reference import reference_stats
from rewardsvc.kernels.transform import LogitTransform

pytestmark = pytest.mark.filterwarnings(
    # The interpreter computes in numpy, which warns where a GPU gives inf or NaN.
    "ignore::RuntimeWarning:triton.runtime.interpreter"
)

NUM_ROWS = 3 if os.environ.get("TRITON_INTERPRET") == "1" else 70
VALUE_TOL = {torch.float32: 2e-6, torch.bfloat16: 2e-5, torch.float16: 2e-5}
WEIGHTS = {"logp": (1.0, 0.0), "entropy": (0.0, 1.0), "both": (0.7, -1.3)}


def _case(n, v, dtype=torch.float32, scale=3.0):
    return (torch.randn(n, v) * scale).to(dtype), torch.randint(0, v, (n,))


def _compare(logits, ids, backend, allclose, **options):
    """Values, and gradients of log-prob alone, entropy alone, both, and log-sum-exp."""
    mask = options.get("mask")
    transform = LogitTransform(
        temperature=options.get("temperature", 1.0), softcap=options.get("softcap")
    )
    ours = logits.detach().requires_grad_()
    truth = logits.detach().double().requires_grad_()
    got = selective_logprob(ours, ids, entropy=True, backend=backend, **options)
    want = reference_stats(truth, ids, transform, mask=mask, topk=options.get("topk", 0))
    scale = float(logits.detach().float().abs().nan_to_num(posinf=0).max()) if len(ids) else 1.0
    if transform.softcap is not None:
        scale = min(scale, transform.softcap)
    scale /= transform.temperature
    tol = VALUE_TOL[logits.dtype]
    allclose(got.logp.detach(), want.logp.detach(), tol, scale)
    allclose(got.entropy.detach(), want.entropy.detach(), tol, scale)
    allclose(got.lse.detach(), want.lse.detach(), tol, scale)
    if want.topk is not None:
        allclose(got.topk.logp, want.topk.logp, tol, scale)
    grad_tol = tol if logits.dtype == torch.float32 else 1e-2
    upstream = torch.randn(ids.shape)
    for a, b in WEIGHTS.values():
        ours_sum = ((a * got.logp + b * got.entropy) * upstream).sum()
        want_sum = ((a * want.logp + b * want.entropy) * upstream).sum()
        (grad,) = torch.autograd.grad(ours_sum, ours, retain_graph=True)
        (want_grad,) = torch.autograd.grad(want_sum, truth, retain_graph=True)
        allclose(grad, want_grad, grad_tol / transform.temperature, scale)
    (grad,) = torch.autograd.grad((got.lse * upstream).sum(), ours)
    (want_grad,) = torch.autograd.grad((want.lse * upstream).sum(), truth)
    allclose(grad, want_grad, grad_tol / transform.temperature, scale)
    return got


@pytest.mark.parametrize("vocab_size", [1, 151, 1000, 1001, 32000])
@pytest.mark.parametrize("num_rows", [0, 1, NUM_ROWS])
def test_matches_float64(backend, vocab_size, num_rows, allclose):
    logits, ids = _case(num_rows, vocab_size)
    _compare(logits, ids, backend, allclose, temperature=0.7, topk=min(vocab_size, 3))


def test_matches_float64_at_a_large_vocabulary(backend, allclose):
    logits, ids = _case(2, 129920)
    _compare(logits, ids, backend, allclose)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(backend, dtype, allclose):
    logits, ids = _case(NUM_ROWS, 1001, dtype)
    _compare(logits, ids, backend, allclose, temperature=1.3)


def test_tokens_of_little_weight_add_up(backend, allclose):
    # One logit at 16 and 100,000 at 0: each has weight 1e-7, all of them 1e-2.
    logits = torch.zeros(1, 100_001)
    logits[0, 5] = 16.0
    got = selective_logprob(logits, torch.tensor([5]), entropy=True, backend=backend)
    want = reference_stats(logits.double(), torch.tensor([5]), LogitTransform())
    torch.testing.assert_close(got.logp.double(), want.logp, rtol=0, atol=2e-6)


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap_far_below_and_near_the_logits(backend, softcap, allclose):
    logits, ids = _case(NUM_ROWS, 1001, scale=20.0)
    _compare(logits, ids, backend, allclose, softcap=softcap, temperature=0.7)


def test_small_temperature(quick_backend, allclose):
    logits, ids = _case(NUM_ROWS, 1001)
    _compare(logits, ids, quick_backend, allclose, temperature=0.01)


@pytest.mark.parametrize("shift", [-200.0, 1e4, -1e4])
def test_shifted_logits(backend, shift, allclose):
    # A running maximum that starts at 0 overflows at -200; gain * z - gain * m cancels at 1e4.
    logits, ids = _case(NUM_ROWS, 1001)
    shifted = logits + shift
    got = selective_logprob(shifted, ids, entropy=True, backend=backend)
    want = reference_stats(shifted.double(), ids, LogitTransform())
    allclose(got.logp, want.logp, 2e-6, 20.0)
    allclose(got.entropy, want.entropy, 2e-6, 20.0)
    _compare(shifted, ids, backend, allclose)


@pytest.mark.parametrize("vocab_size", [2, 151, 1000, 1025, 8193])
def test_padding_columns_have_no_weight(backend, vocab_size):
    # With all logits equal, a single padding column counted as exp(0) shows at once.
    for softcap in (None, 5.0):
        got = selective_logprob(
            torch.full((2, vocab_size), -3.0),
            torch.tensor([0, vocab_size - 1]),
            entropy=True,
            softcap=softcap,
            backend=backend,
        )
        uniform = torch.full((2,), math.log(vocab_size))
        torch.testing.assert_close(got.logp, -uniform, rtol=0, atol=2e-6)
        torch.testing.assert_close(got.entropy, uniform, rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_finite", [1, 500])
def test_banned_tokens_have_no_weight_and_no_nan(backend, num_finite, allclose):
    logits, _ = _case(NUM_ROWS, 1001)
    logits[:, num_finite:] = -torch.inf
    ids = torch.randint(0, num_finite, (NUM_ROWS,))
    got = _compare(logits, ids, backend, allclose, temperature=0.7)
    assert torch.isfinite(got.entropy).all()


def test_banned_token_itself_is_minus_infinity(quick_backend):
    logits, ids = _case(2, 300)
    logits[0, ids[0]] = -torch.inf
    logits.requires_grad_()
    got = selective_logprob(logits, ids, entropy=True, backend=quick_backend)
    assert got.logp[0] == -torch.inf
    assert torch.isfinite(got.logp[1])
    got.entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_a_poisoned_row_is_nan_and_harms_no_neighbour(backend):
    logits, ids = _case(6, 1001)
    clean = selective_logprob(logits, ids, entropy=True, backend=backend)
    logits[1, 7] = torch.nan
    logits[2, 7] = torch.inf
    logits[3] = -torch.inf
    got = selective_logprob(logits, ids, entropy=True, backend=backend)
    assert got.logp[1:4].isnan().all()
    assert got.entropy[1:4].isnan().all()
    for row in (0, 4, 5):
        assert got.logp[row] == clean.logp[row]
        assert got.entropy[row] == clean.entropy[row]


def test_views_are_read_where_they_are(quick_backend, allclose):
    wide = torch.randn(2, 4, 310)
    ids = torch.randint(0, 300, (2, 3))
    views = {
        "shifted": wide[:, :-1, :300],
        "transposed": torch.randn(300, 2, 3).permute(1, 2, 0),
        "strided": torch.randn(2, 3, 600)[..., ::2],
    }
    for view in views.values():
        assert not view.is_contiguous()
        _compare(view, ids, quick_backend, allclose, temperature=0.7)


def test_int32_ids_are_the_same(quick_backend):
    logits, ids = _case(5, 151)
    a = selective_logprob(logits, ids, backend=quick_backend)
    b = selective_logprob(logits, ids.int(), backend=quick_backend)
    assert torch.equal(a.logp, b.logp)


def test_masked_rows_are_zero_and_cost_no_check(quick_backend):
    logits, ids = _case(6, 151)
    mask = torch.tensor([True, False, True, False, False, True])
    ids[~mask] = -100
    logits[1] = torch.nan
    logits.requires_grad_()
    got = selective_logprob(logits, ids, mask=mask, entropy=True, topk=2, backend=quick_backend)
    for value in (got.logp, got.entropy, got.lse, got.topk.logp, got.topk.ids):
        assert (value[~mask] == 0).all()
        assert torch.isfinite(value).all()
    (got.logp + got.entropy + got.lse).sum().backward()
    assert (logits.grad[~mask] == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_all_rows_masked(quick_backend):
    logits, _ = _case(3, 151)
    logits.requires_grad_()
    ids = torch.full((3,), -100)
    got = selective_logprob(
        logits, ids, mask=torch.zeros(3, dtype=torch.bool), backend=quick_backend
    )
    got.logp.sum().backward()
    assert not got.logp.any()
    assert not logits.grad.any()


@pytest.mark.parametrize("bad", [-100, -1, 151, 2**31 + 5])
def test_id_out_of_range_is_named(quick_backend, bad):
    logits, ids = _case(4, 151)
    ids[2] = bad
    with pytest.raises(ValueError, match=rf"ids\[2\].* is {bad}, outside of \[0, 151\)"):
        selective_logprob(logits, ids, backend=quick_backend)


def test_topk_takes_the_lowest_ids_of_equals(quick_backend):
    logits = torch.zeros(2, 1500)
    logits[0, [1400, 7, 900]] = 2.0
    logits[1, 3] = -0.0
    logits[1, 1499] = 1.0
    got = selective_logprob(logits, torch.zeros(2, dtype=torch.long), topk=5, backend=quick_backend)
    assert got.topk.ids.tolist() == [[7, 900, 1400, 0, 1], [1499, 0, 1, 2, 3]]
    assert (got.topk.logp.diff() <= 0).all()


def test_topk_is_right_for_logits_in_rising_order(quick_backend):
    # The worst case of a running top-k: every tile replaces all of it.
    logits = torch.linspace(-4, 4, 5000).repeat(2, 1)
    got = selective_logprob(logits, torch.tensor([0, 1]), topk=7, backend=quick_backend)
    assert got.topk.ids.tolist() == [list(range(4999, 4992, -1))] * 2
    assert got.logp.shape == (2,)


def test_rows_do_not_depend_on_their_neighbours(backend):
    num_rows = 2 * NUM_ROWS
    logits, ids = _case(num_rows, 1001)
    logits.requires_grad_()
    options = {"temperature": 0.7, "entropy": True, "backend": backend}
    whole = selective_logprob(logits, ids, **options)
    (whole_grad,) = torch.autograd.grad((whole.logp + whole.entropy).sum(), logits)
    order = torch.randperm(num_rows)
    for rows in (order, order[:1], order[: num_rows // 2 + 1]):
        part_logits = logits.detach()[rows].requires_grad_()
        part = selective_logprob(part_logits, ids[rows], **options)
        (grad,) = torch.autograd.grad((part.logp + part.entropy).sum(), part_logits)
        assert torch.equal(part.logp, whole.logp[rows])
        assert torch.equal(part.entropy, whole.entropy[rows])
        assert torch.equal(part.lse, whole.lse[rows])
        assert torch.equal(grad, whole_grad[rows])


def test_row_offsets_pass_two_to_the_31(quick_backend):
    # Rows 2^31 elements apart; only the pages of the two rows are ever touched.
    stride = 2**31 + 64
    memory = torch.empty(stride + 200, dtype=torch.bfloat16)
    logits = memory.as_strided((2, 151), (stride, 1))
    values = torch.randn(2, 151).bfloat16()
    logits.copy_(values)
    ids = torch.tensor([3, 150])
    far = selective_logprob(logits, ids, backend=quick_backend)
    assert torch.equal(far.logp, selective_logprob(values, ids, backend=quick_backend).logp)
