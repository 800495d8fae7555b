"""Log-probs from hidden states on the CPU: ours against the bare product, plain torch and others.

Rates are floating-point operations of the products over the time of the whole, so that the bare
product's rate is the roofline of the same run. Memory is the peak above the inputs, each case in a
process of its own. Gradients are those of the mean log-prob, in hidden states and weight.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import interleave, parser, row, write_rows
from torch import Tensor

from rewardsvc.kernels import linear_logprob

FULL = {"tokens": 2048, "hidden": 1024, "vocab": 32000}
QUICK = {"tokens": 300, "hidden": 64, "vocab": 4000}
WARM = {"tokens": 64, "hidden": 64, "vocab": 9000}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(shape: dict[str, int], dtype: torch.dtype, *, grad: bool) -> Inputs:
    """Hidden states, weight and ids, seeded."""
    torch.manual_seed(0)
    hidden = torch.randn(shape["tokens"], shape["hidden"]).to(dtype)
    weight = (torch.randn(shape["vocab"], shape["hidden"]) / shape["hidden"] ** 0.5).to(dtype)
    ids = torch.randint(0, shape["vocab"], (shape["tokens"],))
    return hidden.requires_grad_(grad), weight.requires_grad_(grad), ids


def gemm(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The logits alone: what everything else is measured against."""
    return (hidden @ weight.T)[:, :1]


def naive(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Log-prob and entropy as most trainers have them."""
    log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(1, ids[:, None])[:, 0] + 0 * entropy


def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """torch's own fused loss; log-prob only."""
    return -F.linear_cross_entropy(hidden, weight, ids, reduction="none")


def ours(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Log-prob and entropy."""
    return linear_logprob(hidden, weight, ids, entropy=True).logp


def ours_eager(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The same without a compiler."""
    return linear_logprob(hidden, weight, ids, entropy=True, backend="eager").logp


CASES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bare product": gemm,
    "plain torch": naive,
    "ours": ours,
    "ours, eager": ours_eager,
}
if hasattr(F, "linear_cross_entropy"):
    CASES["torch linear_cross_entropy"] = torch_linear_cross_entropy


def run_once(case: str, inputs: Inputs, *, grad: bool) -> None:
    """One forward pass, or one forward and backward pass."""
    hidden, weight, ids = inputs
    if not grad:
        with torch.no_grad():
            CASES[case](hidden, weight, ids)
        return
    hidden.grad = weight.grad = None
    if case == "bare product":
        # The three products of a forward and backward pass, and nothing else.
        with torch.no_grad():
            logits = hidden @ weight.T
            logits @ weight
            logits.T @ hidden
        return
    CASES[case](hidden, weight, ids).mean().backward()


def peak_mib(case: str, dtype: str, *, grad: bool, quick: bool) -> float:
    """Peak memory above the inputs, in MiB, in a process of its own."""
    request = json.dumps({"case": case, "dtype": dtype, "grad": grad, "quick": quick})
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", request], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def _report_peak(request: str) -> None:
    wanted = json.loads(request)
    dtype = DTYPES[wanted["dtype"]]
    # What is loaded or compiled once is no part of a call: run the same code small first.
    warm = QUICK if wanted["quick"] else WARM
    run_once(wanted["case"], make_inputs(warm, dtype, grad=wanted["grad"]), grad=wanted["grad"])
    inputs = make_inputs(QUICK if wanted["quick"] else FULL, dtype, grad=wanted["grad"])
    before = _resident_kib()
    _reset_peak()
    run_once(wanted["case"], inputs, grad=wanted["grad"])
    print(max(0.0, (_peak_kib() - before) / 1024))


def _status_kib(field: str) -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123 - procfs
        for line in status:
            if line.startswith(field):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident_kib() -> int:
    return _status_kib("VmRSS")


def _peak_kib() -> int:
    return _status_kib("VmHWM")


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as clear:  # noqa: PTH123 - procfs
        clear.write("5")


def measure(dtype: str, *, grad: bool, quick: bool) -> list[dict[str, Any]]:
    """Rows of one dtype, forward or forward and backward."""
    shape = QUICK if quick else FULL
    inputs = make_inputs(shape, DTYPES[dtype], grad=grad)
    work = {case: lambda c=case: run_once(c, inputs, grad=grad) for case in CASES}
    stats = interleave(work, rounds=2 if quick else 9, warmup=1)
    operations = 2 * shape["tokens"] * shape["hidden"] * shape["vocab"] * (3 if grad else 1)
    rooflines = operations / stats["bare product"].median_s
    rows = []
    for case, found in stats.items():
        rate = operations / found.median_s
        rows.append(
            row(
                case,
                found,
                dtype=dtype,
                backward=grad,
                gflops=rate / 1e9,
                of_product=rate / rooflines,
                of_plain=rate * stats["plain torch"].median_s / operations,
                peak_mib=(
                    peak_mib(case, dtype, grad=grad, quick=quick)
                    if not quick or (case, dtype, grad) == ("ours", "bfloat16", False)
                    else None
                ),
                **shape,
            )
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table("case", "dtype", "pass", "ms", "GFLOP/s", "of product", "of plain", "peak MiB")
    for found in rows:
        table.add_row(
            found["name"],
            found["dtype"],
            "forward + backward" if found["backward"] else "forward",
            f"{found['median_s'] * 1e3:.1f}",
            f"{found['gflops']:.0f}",
            f"{found['of_product']:.2f}",
            f"{found['of_plain']:.2f}",
            "" if found["peak_mib"] is None else f"{found['peak_mib']:.0f}",
        )
    Console().print(table)


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--peak-of", help="internal: print one case's peak memory")
    arguments = options.parse_args()
    if arguments.peak_of is not None:
        _report_peak(arguments.peak_of)
        return
    rows = []
    for dtype in DTYPES:
        for grad in (False, True):
            rows += measure(dtype, grad=grad, quick=arguments.quick)
    show(rows)
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()
