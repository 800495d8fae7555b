"""`selective_logprob`: arguments, counts and types that need no second backend."""

from __future__ import annotations

import pytest
import torch

from rewardsvc.kernels import selective_logprob
from rewardsvc.kernels.reference import reference_stats
from rewardsvc.kernels.transform import LogitTransform


def test_more_rows_than_a_grid_axis_holds():
    num_rows = 65_537
    logits, ids = torch.randn(num_rows, 3), torch.randint(0, 3, (num_rows,))
    got = selective_logprob(logits, ids, entropy=True)
    want = reference_stats(logits.double(), ids, LogitTransform())
    torch.testing.assert_close(got.logp.double(), want.logp, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.entropy.double(), want.entropy, rtol=0, atol=1e-5)


def test_gradcheck_in_float64():
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 7, (5,))

    def outputs(z):
        got = selective_logprob(z, ids, temperature=0.6, softcap=2.0, entropy=True)
        return got.logp, got.entropy, got.lse

    assert torch.autograd.gradcheck(outputs, (logits,))


def test_the_same_bits_every_time():
    logits, ids = torch.randn(70, 9000, requires_grad=True), torch.randint(0, 9000, (70,))
    runs = []
    for _ in range(2):
        got = selective_logprob(logits, ids, entropy=True)
        (grad,) = torch.autograd.grad((got.logp + got.entropy).sum(), logits)
        runs.append((got.logp, got.entropy, got.lse, grad))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_number_of_threads_changes_no_bit():
    logits, ids = torch.randn(70, 9000), torch.randint(0, 9000, (70,))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(selective_logprob(logits, ids, backend="eager").logp)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_shapes_follow_the_ids():
    logits = torch.randn(2, 3, 11)
    got = selective_logprob(logits, torch.zeros(2, 3, dtype=torch.long), entropy=True, topk=4)
    assert got.logp.shape == got.entropy.shape == got.lse.shape == (2, 3)
    assert got.topk.ids.shape == got.topk.logp.shape == (2, 3, 4)
    one = selective_logprob(logits[0, 0], torch.tensor(5))
    assert one.logp.shape == ()
    assert one.entropy is None
    assert one.topk is None


def test_works_under_inference_mode():
    with torch.inference_mode():
        got = selective_logprob(torch.randn(4, 11), torch.zeros(4, dtype=torch.long))
    assert got.logp.shape == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 5, dtype=torch.long)}, "logits has dtype torch.int64"),
        ({"logits": torch.zeros(2, 0)}, "logits has shape"),
        ({"ids": torch.zeros(3, dtype=torch.long)}, r"ids has shape \(3,\); expected \(2,\)"),
        ({"ids": torch.zeros(2)}, "ids has dtype torch.float32"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask has shape"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"topk": 6}, r"topk is 6; it must be in \[0, 5\]"),
        ({"backend": "cuda"}, "backend is 'cuda'; known: triton, compiled, eager"),
        ({"backend": "triton"}, "backend is 'triton', and the tensor is on cpu"),
    ],
)
def test_malformed_arguments_are_named(change, message):
    arguments = {"logits": torch.zeros(2, 5), "ids": torch.zeros(2, dtype=torch.long)} | change
    logits, ids = arguments.pop("logits"), arguments.pop("ids")
    with pytest.raises(ValueError, match=message):
        selective_logprob(logits, ids, **arguments)


def test_without_the_entropy_all_else_is_the_same(backend):
    logits = (torch.randn(70, 500) * 3 - 40).requires_grad_()
    logits.data[:, :400] = -torch.inf
    ids = torch.randint(400, 500, (70,))
    with_entropy = selective_logprob(logits, ids, entropy=True, backend=backend)
    without = selective_logprob(logits, ids, backend=backend)
    assert without.entropy is None
    torch.testing.assert_close(without.logp, with_entropy.logp, rtol=0, atol=1e-6)
    torch.testing.assert_close(without.lse, with_entropy.lse, rtol=0, atol=1e-5)
    grads = [torch.autograd.grad(x.logp.sum(), logits)[0] for x in (without, with_entropy)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)
    assert torch.isfinite(grads[0]).all()
