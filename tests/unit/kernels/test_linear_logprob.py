"""`linear_logprob` against its float64 definition, on every backend."""

from __future__ import annotations

import os

import pytest
import torch

from rewardsvc.kernels import linear_logprob
from rewardsvc.kernels.reference import reference_stats
from rewardsvc.kernels.transform import LogitTransform

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NUM_ROWS = 3 if INTERPRETED else 37

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning:triton.runtime.interpreter",
)

# Bounds against float64 on the same inputs. Logits are rounded to bfloat16 but in the fused kernel.
VALUE_TOL = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
GRAD_TOL = {torch.float32: 5e-6, torch.bfloat16: 1e-2}


def _case(n, h, v, dtype=torch.float32, *, bias=False):
    hidden = torch.randn(n, h).to(dtype)
    weight = (torch.randn(v, h) / h**0.5).to(dtype)
    return hidden, weight, torch.randn(v).to(dtype) if bias else None, torch.randint(0, v, (n,))


def _compare(case, backend, allclose, relative_error, *, value_tol=None, **options):
    """Values, and gradients of log-prob alone, entropy alone, and both; in every input."""
    hidden, weight, bias, ids = case
    leaves = [t.detach().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    truth = [t.detach().double().requires_grad_() for t in leaves]
    ours_bias, true_bias = (leaves[2], truth[2]) if bias is not None else (None, None)
    got = linear_logprob(
        leaves[0], leaves[1], ids, bias=ours_bias, entropy=True, backend=backend, **options
    )
    logits = truth[0] @ truth[1].T + (0.0 if true_bias is None else true_bias)
    names = ("temperature", "softcap", "logit_scale")
    transform = LogitTransform(**{k: options[k] for k in names if k in options})
    active = ids != options.get("ignore_index", -100)
    want = reference_stats(logits, ids, transform, mask=active, topk=options.get("topk", 0))
    scale = float(logits.detach().abs().max()) * transform.gain if logits.numel() else 1.0
    tol = VALUE_TOL[hidden.dtype] if value_tol is None else value_tol
    allclose(got.logp.detach(), want.logp.detach(), tol, scale)
    allclose(got.entropy.detach(), want.entropy.detach(), tol, scale)
    allclose(got.lse.detach(), want.lse.detach(), tol, scale)
    if want.topk is not None:
        allclose(got.topk.logp, want.topk.logp, tol, scale)
    upstream = torch.randn(ids.shape)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (0.7, -1.3)):
        ours_sum = ((a * got.logp + b * got.entropy) * upstream).sum()
        want_sum = ((a * want.logp + b * want.entropy) * upstream).sum()
        grads = torch.autograd.grad(ours_sum, leaves, retain_graph=True)
        true_grads = torch.autograd.grad(want_sum, truth, retain_graph=True)
        for grad, true_grad in zip(grads, true_grads, strict=True):
            if float(true_grad.norm()) < 1e-9:
                assert float(grad.norm()) < 1e-6
            else:
                assert relative_error(grad, true_grad) < GRAD_TOL[hidden.dtype]
    return got


@pytest.mark.parametrize(
    ("vocab_size", "hidden_size"),
    [(1, 50), (1, 123), (151, 50), (151, 123), (1000, 123), (1001, 50), (1001, 1024)],
)
@pytest.mark.parametrize("num_rows", [0, 1, NUM_ROWS])
def test_matches_float64(backend, vocab_size, hidden_size, num_rows, allclose, relative_error):
    case = _case(num_rows, hidden_size, vocab_size, bias=True)
    options = {"temperature": 0.7, "logit_scale": 0.6, "topk": min(vocab_size, 3)}
    _compare(case, backend, allclose, relative_error, **options)


@pytest.mark.parametrize("vocab_size", [32000, 129920])
def test_matches_float64_at_a_large_vocabulary(quick_backend, vocab_size, allclose, relative_error):
    case = _case(2, 50, vocab_size)
    _compare(case, quick_backend, allclose, relative_error, workspace_mib=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_blocks_of_the_vocabulary(backend, dtype, allclose, relative_error):
    case = _case(2, 1024, 3000, dtype, bias=True)
    _compare(case, backend, allclose, relative_error, workspace_mib=1, topk=4)


def test_softcap(quick_backend, allclose, relative_error):
    case = _case(NUM_ROWS, 50, 1001, bias=True)
    _compare(case, quick_backend, allclose, relative_error, softcap=2.0, logit_scale=4.0)


def test_small_temperature(quick_backend, allclose, relative_error):
    case = _case(NUM_ROWS, 50, 151)
    hidden, weight, _, ids = case
    got = linear_logprob(hidden, weight, ids, temperature=0.01, entropy=True, backend=quick_backend)
    logits = hidden.double() @ weight.double().T
    want = reference_stats(logits, ids, LogitTransform(temperature=0.01))
    allclose(got.logp, want.logp, 2e-6, float(logits.abs().max()) / 0.01)
    allclose(got.entropy, want.entropy, 2e-6, float(logits.abs().max()) / 0.01)


@pytest.mark.parametrize("shift", [-200.0, 1e4, -1e4])
def test_shifted_logits(backend, shift, allclose):
    hidden, weight, _, ids = _case(NUM_ROWS, 50, 1001)
    bias = torch.full((1001,), shift)
    got = linear_logprob(hidden, weight, ids, bias=bias, entropy=True, backend=backend)
    logits = (hidden.double() @ weight.double().T).float().add(bias).double()
    want = reference_stats(logits, ids, LogitTransform())
    # Against logits that were rounded once to float32, at 1e4 in steps of 1e-3.
    for a, b in ((got.logp, want.logp), (got.entropy, want.entropy), (got.lse, want.lse)):
        allclose(a, b, 2e-6, abs(shift) + 10)


def test_a_banned_token_has_no_weight_and_no_gradient(quick_backend, allclose):
    hidden, weight, bias, _ = _case(NUM_ROWS, 50, 151, bias=True)
    bias[:140] = -torch.inf
    ids = torch.randint(140, 151, (NUM_ROWS,))
    leaves = (hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    got = linear_logprob(*leaves[:2], ids, bias=bias, entropy=True, backend=quick_backend)
    truth = [leaf.detach().double()[..., :] for leaf in leaves]
    logits = truth[0] @ truth[1][140:].T + truth[2][140:]
    want = reference_stats(logits, ids - 140, LogitTransform())
    allclose(got.logp.detach(), want.logp, 2e-6, float(logits.abs().max()))
    allclose(got.entropy.detach(), want.entropy, 2e-6, float(logits.abs().max()))
    (got.logp + got.entropy).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert not weight.grad[:140].any()
    assert not bias.grad[:140].any()


def test_ties_go_to_the_lowest_id(quick_backend):
    hidden, weight = torch.ones(2, 50), torch.zeros(151, 50)
    weight[[7, 30, 150]] = 1.0
    got = linear_logprob(hidden, weight, torch.tensor([7, 150]), topk=4, backend=quick_backend)
    assert got.topk.ids.tolist() == [[7, 30, 150, 0]] * 2
    assert (got.topk.logp[:, :3] == got.logp[:, None]).all()


def test_rows_that_are_ignored_are_zero_and_take_no_part(quick_backend):
    hidden, weight, _, ids = _case(6, 50, 151)
    ids[[1, 4]] = -100
    hidden[1] = torch.nan
    hidden.requires_grad_()
    weight.requires_grad_()
    got = linear_logprob(hidden, weight, ids, entropy=True, topk=2, backend=quick_backend)
    for value in (got.logp, got.entropy, got.lse, got.topk.logp, got.topk.ids):
        assert (value[[1, 4]] == 0).all()
        assert torch.isfinite(value).all()
    (got.logp + got.entropy).sum().backward()
    assert not hidden.grad[[1, 4]].any()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_all_rows_ignored(quick_backend):
    hidden, weight, _, _ = _case(3, 50, 151)
    weight.requires_grad_()
    hidden.requires_grad_()
    got = linear_logprob(hidden, weight, torch.full((3,), 7), ignore_index=7, backend=quick_backend)
    got.logp.sum().backward()
    assert not got.logp.any()
    assert not weight.grad.any()
    assert not hidden.grad.any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_infinite_weights_reach_only_the_rows_that_they_poison(quick_backend, sign):
    hidden, weight, _, ids = _case(8, 50, 151)
    hidden[:, 0] = sign * torch.tensor([1.0, -1.0] * 4)
    ids.clamp_(min=1)
    weight[0] = 0
    weight[0, 0] = sign * torch.inf
    got = linear_logprob(hidden, weight, ids, entropy=True, backend=quick_backend)
    # Where the infinite weight meets a number of its sign the row has no distribution; where it
    # meets one of the other, the token is merely banned.
    assert got.logp[::2].isnan().all()
    want = reference_stats((hidden.double() @ weight.double().T)[1::2], ids[1::2], LogitTransform())
    torch.testing.assert_close(got.logp[1::2].double(), want.logp, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.entropy[1::2].double(), want.entropy, rtol=0, atol=1e-5)


def test_views_and_int32_ids(quick_backend):
    hidden = torch.randn(50, 2, 4).permute(1, 2, 0)
    weight = torch.randn(50, 151).T
    ids = torch.randint(0, 151, (2, 4))
    got = linear_logprob(hidden, weight, ids.int(), backend=quick_backend)
    same = linear_logprob(hidden.contiguous(), weight.contiguous(), ids, backend=quick_backend)
    assert got.logp.shape == (2, 4)
    torch.testing.assert_close(got.logp, same.logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workspace_mib", [0, None])
def test_rows_do_not_depend_on_their_neighbours(backend, workspace_mib):
    num_rows = 5 if INTERPRETED else 300
    hidden, weight, bias, ids = _case(num_rows, 123, 1001, bias=True)
    options = {"bias": bias, "entropy": True, "workspace_mib": workspace_mib, "backend": backend}
    hidden.requires_grad_()
    whole = linear_logprob(hidden, weight, ids, **options)
    (whole_grad,) = torch.autograd.grad((whole.logp + whole.entropy).sum(), hidden)
    order = torch.randperm(num_rows)
    for rows in (order, order[:1], order[: num_rows // 2 + 1]):
        part_hidden = hidden.detach()[rows].requires_grad_()
        part = linear_logprob(part_hidden, weight, ids[rows], **options)
        (grad,) = torch.autograd.grad((part.logp + part.entropy).sum(), part_hidden)
        assert torch.equal(part.logp, whole.logp[rows])
        assert torch.equal(part.entropy, whole.entropy[rows])
        assert torch.equal(grad, whole_grad[rows])


def test_the_same_bits_every_time(quick_backend):
    runs = []
    hidden, weight, _, ids = _case(NUM_ROWS, 123, 1001, torch.bfloat16)
    for _ in range(2):
        leaves = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
        got = linear_logprob(*leaves, ids, entropy=True, backend=quick_backend)
        grads = torch.autograd.grad((got.logp + got.entropy).sum(), leaves)
        runs.append((got.logp.detach(), got.entropy.detach(), *grads))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_is_wanted_gets_a_gradient(quick_backend, frozen):
    hidden, weight, _, ids = _case(4, 50, 151)
    full = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
    linear_logprob(*full, ids, backend=quick_backend).logp.sum().backward()
    names = ("hidden", "weight")
    part = [
        leaf.detach().clone().requires_grad_(name != frozen)
        for name, leaf in zip(names, full, strict=True)
    ]
    linear_logprob(*part, ids, backend=quick_backend).logp.sum().backward()
    for got, want, name in zip(part, full, names, strict=True):
        if name == frozen:
            assert got.grad is None
        else:
            assert torch.equal(got.grad, want.grad)
