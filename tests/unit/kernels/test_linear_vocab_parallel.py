"""The vocabulary over two processes gives what one process gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import os
import sys
import torch
import torch.distributed as dist
from rewardsvc.kernels import linear_logprob

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
hidden, weight, bias = torch.randn(40, 12), torch.randn(101, 12), torch.randn(101)
ids, upstream = torch.randint(0, 101, (40,)), torch.randn(2, 40)
ids[3] = -100
weight[70:] -= 40  # the second half has next to no weight in some rows, all of it in none
part = slice(0, 37) if rank == 0 else slice(37, 101)
options = {"temperature": 0.7, "softcap": 8.0, "entropy": True, "topk": 5}

def run(rows, group):
    leaves = [hidden.clone(), weight[rows].clone(), bias[rows].clone()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    got = linear_logprob(*leaves[:2], ids, bias=leaves[2], tp_group=group, **options)
    loss = (got.logp * upstream[0] + got.entropy * upstream[1]).sum()
    return got, torch.autograd.grad(loss, leaves)

whole, whole_grads = run(slice(None), None)
got, grads = run(part, dist.group.WORLD)
close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
for name in ("logp", "entropy", "lse"):
    close(getattr(got, name), getattr(whole, name))
assert torch.equal(got.topk.ids, whole.topk.ids)
close(got.topk.logp, whole.topk.logp)
close(grads[0], whole_grads[0])
close(grads[1], whole_grads[1][part])
close(grads[2], whole_grads[2][part])
again, again_grads = run(part, dist.group.WORLD)
assert torch.equal(got.logp, again.logp)
assert all(torch.equal(a, b) for a, b in zip(grads, again_grads))
try:
    linear_logprob(hidden, weight[part], ids.clamp(min=0) + 101, tp_group=dist.group.WORLD)
except ValueError as error:
    assert "outside of [0, 101)" in str(error)
else:
    raise AssertionError("ids beyond the whole vocabulary passed")
dist.barrier()
print("the same", flush=True)
# gloo's threads may abort an interpreter that shuts down while its peer already has.
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_share_the_vocabulary(tmp_path: Path):
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
        assert "the same" in output
