"""Log-probs from hidden states on the CPU: ours against the bare product, plain torch and others.

Rates are floating-point operations of the products over the time of the whole, so that the bare
product's rate is the roofline of the same run. "Best product" is that of the fastest library at
hand: for float32 that is oneDNN, where torch itself calls MKL. Memory is the peak above the inputs,
each case in a process of its own. Gradients are those of the mean log-prob, in hidden states and
weight; the rows of a GRPO loss have its loss instead, since Liger gives no log-probs on a CPU.

A whole run takes minutes. `--section float32-forward` and the like measure a part; with `--json`,
rows of other parts that the file has are left as they are. `--peaks` measures memory instead of
time, and may run on a busy machine.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import interleave, parser, row, write_rows
from torch import Tensor

from rewardsvc.kernels import Aggregation, PolicyLossSpec, linear_logprob, policy_loss
from rewardsvc.kernels.linear.products import BlockProducts, onednn_serves

FULL = {"tokens": 2048, "hidden": 1024, "vocab": 32000}
QUICK = {"tokens": 512, "hidden": 64, "vocab": 4000}
WARM = {"tokens": 256, "hidden": 64, "vocab": 9000}
SEQUENCE_LENGTH = 256
CHUNK_ROWS = 256
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


def best_gemm(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The logits by oneDNN in float32."""
    return BlockProducts(weight, len(hidden)).logits(hidden, None)[:, :1]


def naive(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Log-prob and entropy as most trainers have them."""
    log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(1, ids[:, None])[:, 0] + 0 * entropy


def torch_linear_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """torch's own fused loss as it comes; log-prob only."""
    return -F.linear_cross_entropy(hidden, weight, ids, reduction="none")


def torch_chunked_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The same in chunks; of the settings that were tried, those that are fastest on a CPU."""
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=CHUNK_ROWS, chunking_method=None, acc_policy="compact"
    )
    return -F.linear_cross_entropy(hidden, weight, ids, options=options)


def ours(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Log-prob and entropy."""
    return linear_logprob(hidden, weight, ids, entropy=True).logp


def ours_eager(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The same without a compiler."""
    return linear_logprob(hidden, weight, ids, entropy=True, backend="eager").logp


def ours_grpo(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """The loss of GRPO's first update, sequences of `SEQUENCE_LENGTH`."""
    logp = linear_logprob(hidden, weight, ids).logp.view(-1, SEQUENCE_LENGTH)
    mask = torch.ones_like(logp, dtype=torch.bool)
    return policy_loss(logp, None, _advantages(ids), mask, spec=GRPO).loss


def liger_grpo(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Liger's fused GRPO loss; of it in one compiled piece and not, the faster on a CPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, chunk_size=1, loss_type="grpo"
    )
    rows = ids.view(-1, SEQUENCE_LENGTH)
    states = hidden.view(*rows.shape, -1)
    value, _ = loss(states, weight, rows, torch.ones_like(rows), _advantages(ids)[:, 0])
    return value


def _advantages(ids: Tensor) -> Tensor:
    num_rows = len(ids) // SEQUENCE_LENGTH
    return torch.linspace(-1, 1, num_rows)[:, None].repeat(1, SEQUENCE_LENGTH)


GRPO = PolicyLossSpec(aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN)
PRODUCTS = {"bare product": gemm, "best product": best_gemm}
CASES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **PRODUCTS,
    "plain torch": naive,
    "ours": ours,
    "ours, eager": ours_eager,
}
if hasattr(F, "linear_cross_entropy"):
    CASES["torch linear_cross_entropy"] = torch_linear_cross_entropy
    CASES["torch linear_cross_entropy, chunks"] = torch_chunked_cross_entropy
LOSSES = {"ours, GRPO loss": ours_grpo}
if find_spec("liger_kernel") is not None:
    LOSSES["Liger, GRPO loss"] = liger_grpo
CASES |= LOSSES


def cases_of(dtype: str, *, grad: bool) -> list[str]:
    """The cases of one section: whole losses only with a backward pass, oneDNN where it differs."""
    has_best = onednn_serves(torch.zeros(1, dtype=DTYPES[dtype]))
    return [
        case
        for case in CASES
        if (grad or case not in LOSSES) and (has_best or case != "best product")
    ]


def run_once(case: str, inputs: Inputs, *, grad: bool) -> None:
    """One forward pass, or one forward and backward pass."""
    hidden, weight, ids = inputs
    if not grad:
        with torch.no_grad():
            CASES[case](hidden, weight, ids)
        return
    hidden.grad = weight.grad = None
    if case in PRODUCTS:
        _three_products(case, hidden, weight)
        return
    CASES[case](hidden, weight, ids).mean().backward()


@torch.no_grad()
def _three_products(case: str, hidden: Tensor, weight: Tensor) -> None:
    """Those of a forward and backward pass, and nothing else."""
    if case == "best product":
        products = BlockProducts(weight, len(hidden))
        logits = products.logits(hidden, None)
        products.d_hidden(logits)
        products.d_weight(logits, hidden)
        return
    logits = hidden @ weight.T
    logits @ weight
    logits.T @ hidden


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
    cases = cases_of(dtype, grad=grad)
    work = {case: lambda c=case: run_once(c, inputs, grad=grad) for case in cases}
    stats = interleave(work, rounds=2 if quick else 5 if grad else 9, warmup=1)
    operations = 2 * shape["tokens"] * shape["hidden"] * shape["vocab"] * (3 if grad else 1)
    best = min(stats[case].median_s for case in cases if case in PRODUCTS)
    return [
        row(
            case,
            found,
            dtype=dtype,
            backward=grad,
            gflops=operations / found.median_s / 1e9,
            of_product=stats["bare product"].median_s / found.median_s,
            of_best_product=best / found.median_s,
            of_plain=stats["plain torch"].median_s / found.median_s,
            peak_mib=None,
            **shape,
        )
        for case, found in stats.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    heads = ("case", "dtype", "pass", "ms", "GFLOP/s", "of product", "of best", "of plain", "MiB")
    table = Table(*heads)
    for found in rows:
        table.add_row(
            found["name"],
            found["dtype"],
            "forward + backward" if found["backward"] else "forward",
            f"{found['median_s'] * 1e3:.1f}",
            f"{found['gflops']:.0f}",
            f"{found['of_product']:.2f}",
            f"{found['of_best_product']:.2f}",
            f"{found['of_plain']:.2f}",
            "" if found["peak_mib"] is None else f"{found['peak_mib']:.0f}",
        )
    Console(width=130).print(table)
    if "Liger, GRPO loss" not in CASES:
        print("Liger: not installed. Its log-prob kernels need a GPU; its GRPO loss does not.")


def _key(found: dict[str, Any]) -> tuple[object, ...]:
    return tuple(found[name] for name in ("name", "dtype", "backward", "tokens"))


def merged(path: Path | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with peaks that the file knows, and the file's rows of other sections."""
    if path is None or not path.exists():
        return rows
    known = {_key(found): found for found in json.loads(path.read_text())["rows"]}
    for found in rows:
        before = known.get(_key(found))
        if before is not None and found["peak_mib"] is None:
            found["peak_mib"] = before["peak_mib"]
    now = {_key(found): found for found in rows}
    return list((known | now).values())


def add_peaks(path: Path, sections: list[str], *, quick: bool) -> list[dict[str, Any]]:
    """The file's rows, those of the sections with their memory measured (`quick`: ours alone)."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    for found in rows:
        wanted = _section(found["dtype"], grad=found["backward"]) in sections
        if wanted and (found["name"] == "ours" or not quick):
            found["peak_mib"] = peak_mib(
                found["name"], found["dtype"], grad=found["backward"], quick=quick
            )
    return rows


def _section(dtype: str, *, grad: bool) -> str:
    return f"{dtype}-{'backward' if grad else 'forward'}"


SECTIONS = {_section(dtype, grad=grad): (dtype, grad) for dtype in DTYPES for grad in (False, True)}


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--section", action="append", choices=list(SECTIONS), help="default: all")
    options.add_argument("--peaks", action="store_true", help="memory of the rows that --json has")
    options.add_argument("--peak-of", help="internal: print one case's peak memory")
    arguments = options.parse_args()
    if arguments.peak_of is not None:
        _report_peak(arguments.peak_of)
        return
    sections = arguments.section or list(SECTIONS)
    if arguments.peaks:
        if arguments.json is None:
            options.error("--peaks needs --json, the file whose rows it completes")
        rows = add_peaks(arguments.json, sections, quick=arguments.quick)
    else:
        rows = []
        for dtype, grad in (SECTIONS[name] for name in sections):
            rows += measure(dtype, grad=grad, quick=arguments.quick)
        rows = merged(arguments.json, rows)
    show(rows)
    write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()
