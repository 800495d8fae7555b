"""`linear_logprob`: accumulation, block sizes and arguments, which need no second backend."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rewardsvc.kernels import checks, linear_logprob, selective_logprob
from rewardsvc.kernels.linear.plan import make_plan

CPU = torch.device("cpu")


def test_weight_gradient_over_many_tokens_is_summed_in_float32(relative_error):
    # 4,096 tokens in 16 panels, all pulling the same way: in bfloat16, a sum stops growing once a
    # term is less than 1/256 of it.
    num_rows = 4096
    hidden = torch.ones(num_rows, 8).bfloat16()
    weight = torch.zeros(64, 8).bfloat16()
    ids = torch.zeros(num_rows, dtype=torch.long)
    grads = []
    for dtype in (torch.bfloat16, torch.float64):
        leaf = weight.detach().to(dtype).requires_grad_()
        options = {"workspace_mib": 0} if dtype == torch.bfloat16 else {}
        linear_logprob(hidden.to(dtype), leaf, ids, **options).logp.sum().backward()
        grads.append(leaf.grad)
    assert relative_error(*grads) < 1e-2


def test_weight_gradient_with_a_weight_per_token(relative_error):
    # Reduction "none": each token's gradient must be scaled by its own upstream.
    hidden, weight = torch.randn(9, 5), torch.randn(31, 5)
    ids, upstream = torch.randint(0, 31, (9,)), torch.randn(9)
    fused = weight.clone().requires_grad_()
    (linear_logprob(hidden, fused, ids).logp * upstream).sum().backward()
    plain = weight.double().requires_grad_()
    log_p = torch.log_softmax(hidden.double() @ plain.T, -1).gather(1, ids[:, None])[:, 0]
    (log_p * upstream).sum().backward()
    assert relative_error(fused.grad, plain.grad) < 2e-6


def test_more_rows_than_a_grid_axis_holds():
    num_rows = 65_537
    hidden, weight = torch.randn(num_rows, 4), torch.randn(3, 4)
    ids = torch.randint(0, 3, (num_rows,))
    got = linear_logprob(hidden, weight, ids).logp
    want = torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(1, ids[:, None])
    torch.testing.assert_close(got.double(), want[:, 0], rtol=0, atol=1e-5)


def test_gradcheck_in_float64():
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, -100, 6, 3])

    def outputs(h, w, b):
        got = linear_logprob(h, w, ids, bias=b, softcap=3.0, logit_scale=1.5, entropy=True)
        return got.logp, got.entropy, got.lse

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_agrees_with_selective_logprob_on_the_logits():
    hidden, weight = torch.randn(40, 16), torch.randn(500, 16)
    ids = torch.randint(0, 500, (40,))
    linear = linear_logprob(hidden, weight, ids, temperature=0.8, entropy=True, topk=5)
    selective = selective_logprob(hidden @ weight.T, ids, temperature=0.8, entropy=True, topk=5)
    torch.testing.assert_close(linear.logp, selective.logp, rtol=0, atol=2e-5)
    torch.testing.assert_close(linear.entropy, selective.entropy, rtol=0, atol=2e-5)
    assert torch.equal(linear.topk.ids, selective.topk.ids)


def test_the_workspace_changes_nothing_but_rounding():
    hidden, weight = torch.randn(20, 16), torch.randn(2500, 16)
    ids = torch.randint(0, 2500, (20,))
    results = [
        linear_logprob(hidden, weight, ids, workspace_mib=mib, topk=3) for mib in (0, 1, None)
    ]
    for other in results[1:]:
        torch.testing.assert_close(other.logp, results[0].logp, rtol=0, atol=1e-5)
        assert torch.equal(other.topk.ids, results[0].topk.ids)


class _LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return out


def test_no_tensor_of_all_tokens_by_the_whole_vocabulary():
    num_rows, vocab_size = 512, 8192
    hidden = torch.randn(num_rows, 16, requires_grad=True)
    weight = torch.randn(vocab_size, 16, requires_grad=True)
    ids = torch.randint(0, vocab_size, (num_rows,))
    with _LargestTensor() as seen:
        got = linear_logprob(hidden, weight, ids, entropy=True, workspace_mib=1, backend="eager")
    with seen:
        (got.logp + got.entropy).sum().backward()
    assert 0 < seen.largest <= num_rows * vocab_size // 8


@pytest.mark.parametrize("vocab_size", [1, 151, 32000, 151936])
@pytest.mark.parametrize("workspace_mib", [0, 1, 64, 512, None])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocks_are_never_tiny_and_fit_the_workspace(vocab_size, workspace_mib, device):
    plan = make_plan(torch.device(device), torch.bfloat16, vocab_size, workspace_mib)
    assert plan.rows >= 128
    assert plan.columns == vocab_size or plan.columns % 1024 == 0
    assert plan.grad_columns <= plan.columns <= vocab_size
    assert plan.panel_rows % plan.rows == 0
    default = {"cpu": 128, "cuda": 512}[device]
    room = (default if workspace_mib is None else workspace_mib) * 2**20 // 2
    # The smallest sensible block is the floor.
    floor = (256 if device == "cpu" else 128) * min(vocab_size, 1024)
    assert plan.rows * plan.columns <= max(room, floor)
    panel = plan.panel_rows * plan.grad_columns
    assert panel + plan.num_kept * plan.rows * plan.columns <= max(room, floor)


def test_autocast_changes_no_bit():
    hidden, weight = torch.randn(9, 5), torch.randn(31, 5, requires_grad=True)
    ids = torch.randint(0, 31, (9,))
    plain = linear_logprob(hidden, weight, ids).logp
    (plain_grad,) = torch.autograd.grad(plain.sum(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        cast = linear_logprob(hidden, weight, ids).logp
        (cast_grad,) = torch.autograd.grad(cast.sum(), weight)
    assert torch.equal(cast, plain)
    assert torch.equal(cast_grad, plain_grad)


def test_while_a_graph_is_captured_bad_ids_are_nan_and_ignored_rows_zero(monkeypatch):
    monkeypatch.setattr(checks, "capturing", lambda tensor: True)
    hidden, weight = torch.randn(4, 5), torch.randn(31, 5, requires_grad=True)
    hidden[1] = torch.nan
    ids = torch.tensor([3, -100, 31, 7])
    got = linear_logprob(hidden, weight, ids, entropy=True, topk=2)
    assert got.logp[2].isnan()
    assert not got.logp[1]
    assert not got.topk.logp[1].any()
    got.entropy.sum().backward()
    assert torch.isfinite(weight.grad).all()
    logits = hidden.nan_to_num() @ weight.detach().T
    mask = torch.tensor([True, False, True, True])
    same = selective_logprob(logits, ids, mask=mask)
    torch.testing.assert_close(got.logp.detach(), same.logp, equal_nan=True, rtol=0, atol=1e-5)


def test_a_negative_workspace_is_named():
    with pytest.raises(ValueError, match="workspace_mib is -1"):
        make_plan(CPU, torch.float32, 10, -1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 4)}, r"hidden has shape \(2, 3\); expected \(2, 4\)"),
        ({"weight": torch.zeros(5, 3).bfloat16()}, "weight is torch.bfloat16 and hidden"),
        ({"weight": torch.zeros(5)}, "expected .* and .V, H."),
        ({"bias": torch.zeros(4)}, r"bias has shape \(4,\); expected \(5,\)"),
        ({"ids": torch.tensor([0, 5])}, r"ids\[1\].* is 5, outside of \[0, 5\)"),
        ({"ids": torch.tensor([-1, -100])}, r"ids\[0\].* is -1"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0"),
        ({"topk": 65}, "topk is 65"),
    ],
)
def test_malformed_arguments_are_named(change, message):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "ids": torch.zeros(2, dtype=torch.long),
    } | change
    with pytest.raises(ValueError, match=message):
        linear_logprob(
            arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("ids"), **arguments
        )
