"""`linear_logprob`: blocks of logits kept between the passes, and which library multiplies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rewardsvc.kernels import linear_logprob
from rewardsvc.kernels.linear import api, products
from rewardsvc.kernels.linear.forward import ALIGNMENT, read_block
from rewardsvc.kernels.linear.plan import MIB, make_plan
from rewardsvc.kernels.linear.products import BlockProducts, onednn_serves
from rewardsvc.kernels.tiles.compiled import _copy

CPU = torch.device("cpu")
NUM_ROWS, HIDDEN_SIZE, VOCAB_SIZE = 600, 16, 9000  # three blocks of rows, three of columns
DTYPES = [torch.float32, torch.bfloat16]


def _case(dtype):
    hidden = torch.randn(NUM_ROWS, HIDDEN_SIZE).to(dtype)
    weight = (torch.randn(VOCAB_SIZE, HIDDEN_SIZE) / HIDDEN_SIZE**0.5).to(dtype)
    return hidden, weight, torch.randint(0, VOCAB_SIZE, (NUM_ROWS,))


def _run(case, **options):
    hidden, weight, ids = case
    leaves = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
    got = linear_logprob(*leaves, ids, entropy=True, backend="eager", **options)
    grads = torch.autograd.grad((got.logp + got.entropy).sum(), leaves)
    return got.logp.detach(), got.entropy.detach(), *grads


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_many_blocks_are_kept_changes_no_bit(dtype, monkeypatch):
    case = _case(dtype)
    plain = make_plan(CPU, dtype, VOCAB_SIZE, None)
    runs = []
    for num_kept in (0, 1, 4, 1000):
        plan = replace(plain, num_kept=num_kept)
        monkeypatch.setattr(api, "make_plan", lambda *_, plan=plan: plan)
        runs.append(_run(case))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


def _saved_logits(case, **options):
    """Elements of all blocks of logits that wait for the backward pass."""
    hidden, weight, ids = case
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
        linear_logprob(hidden, weight, ids, backend="eager", **options)
    return sum(x.numel() for x in seen if x.dim() == 2 and x.shape[1] > HIDDEN_SIZE and len(x) > 3)


@pytest.mark.parametrize(("workspace_mib", "kept"), [(0, 0), (8, 1), (16, 3), (None, 9)])
def test_kept_blocks_and_a_panel_fit_the_workspace(workspace_mib, kept):
    hidden, weight, ids = _case(torch.float32)
    saved = _saved_logits((hidden.requires_grad_(), weight, ids), workspace_mib=workspace_mib)
    assert saved <= kept * 256 * 4096
    assert (saved > 0) == (kept > 0)
    if workspace_mib:
        plan = make_plan(CPU, torch.float32, VOCAB_SIZE, workspace_mib)
        panel = plan.panel_rows * plan.grad_columns
        assert saved + min(panel, 768 * 4096) <= workspace_mib * MIB // 4


def test_nothing_is_kept_without_a_backward_pass():
    hidden, weight, ids = _case(torch.float32)
    assert _saved_logits((hidden, weight, ids)) == 0
    with torch.no_grad():
        assert _saved_logits((hidden.requires_grad_(), weight, ids)) == 0


def test_going_backward_twice_gives_the_same_bits():
    hidden, weight, ids = _case(torch.float32)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    loss = linear_logprob(*leaves, ids, backend="eager").logp.sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gpu_keeps_nothing():
    plan = make_plan(torch.device("cuda"), torch.bfloat16, 151_936, None)
    assert plan.num_kept == 0


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("first_row", [0, 4, 8])
def test_every_block_is_whole_contiguous_and_aligned(offset, first_row):
    rows = torch.randn(11 * 5 + offset)[offset:].view(11, 5)
    spare = torch.empty(4, 5)
    block, num_real = read_block(rows, first_row, spare)
    assert block.shape == (4, 5)
    assert block.is_contiguous()
    assert block.data_ptr() % ALIGNMENT == 0
    assert num_real == min(4, 11 - first_row)
    assert torch.equal(block[:num_real], rows[first_row : first_row + 4])
    assert not block[num_real:].any()


def test_only_float32_goes_to_onednn_and_only_while_it_is_enabled(monkeypatch):
    assert not onednn_serves(torch.zeros(1).bfloat16())
    assert not onednn_serves(torch.zeros(1).double())
    monkeypatch.setattr(products, "_has_onednn_linear", lambda: True)
    assert onednn_serves(torch.zeros(1))
    torch._C._set_mkldnn_enabled(False)
    try:
        assert not onednn_serves(torch.zeros(1))
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("width", [1, 70])
def test_products_match_float64(enabled, strided, width, relative_error, monkeypatch):
    if not enabled:
        monkeypatch.setattr(products, "_has_onednn_linear", lambda: False)
    weight = torch.randn(33, width).t() if strided else torch.randn(width, 33)
    hidden, grad = torch.randn(8, 33), torch.randn(8, width)
    block = BlockProducts(weight, 8)
    logits = block.logits(hidden, torch.empty(8, width))
    got = (logits, block.d_hidden(grad), block.d_weight(grad, hidden))
    exact = (
        hidden.double() @ weight.double().t(),
        grad.double() @ weight.double(),
        grad.double().t() @ hidden.double(),
    )
    for a, b in zip(got, exact, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-6


def test_each_compiled_variant_counts_as_a_function_of_its_own():
    def double(x, *, by=2):
        return x * by

    copies = [_copy(double) for _ in range(2)]
    assert copies[0].__code__ is not copies[1].__code__
    assert [copy(3) for copy in copies] == [6, 6]
