"""The kernels on a GPU, as ratios to the copy and product rates measured in the same run.

Ends within its budget of seconds, most important rows first. With `--json FILE` every row is
written as it is measured, and a row that the file has already is not measured again. `--quick` runs
small shapes, on the CPU where there is no GPU, to see that the script works.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import parser, surroundings
from torch import Tensor

from rewardsvc.kernels import gae, linear_logprob, selective_logprob

MIB = 1 << 20
Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: Unique.
        work: What is timed.
        amount: Bytes moved or floating-point operations done.
        unit: "GB/s" or "TFLOP/s".
        roofline: Name of the row that this one is a ratio of; empty for a roofline.
    """

    name: str
    work: Work
    amount: float
    unit: str
    roofline: str = ""


@dataclass(slots=True)
class Run:
    """The state of one run.

    Attributes:
        device: "cuda" or "cpu".
        deadline: When to stop, on the monotonic clock, in seconds.
        quick: Whether shapes are small.
        path: Where rows are kept; None to keep them in memory.
        rows: Rows so far, by name.
    """

    device: str
    deadline: float
    quick: bool
    path: Path | None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def measure(self, row: Row) -> None:
        """Measures a row unless it is there already or the time is up."""
        if row.name in self.rows or time.monotonic() > self.deadline:
            return
        try:
            found = self._measure(row)
        except (RuntimeError, ValueError) as error:
            # A row that cannot run (memory, a peer's own limits) must not cost the rows after it.
            reason = str(error).partition("\n")[0][:200]
            found = {"name": row.name, "error": f"{type(error).__name__}: {reason}"}
        self.rows[row.name] = found
        if self.path is not None:
            document = {**surroundings(), "gpu": _gpu(self.device), "quick": self.quick}
            document |= {"rows": list(self.rows.values()), "targets": judge(self.rows)}
            self.path.write_text(json.dumps(document, indent=2) + "\n")

    def resume(self) -> None:
        """Takes up the rows of an earlier run of the same kind; failed ones are tried again."""
        if self.path is None or not self.path.exists():
            return
        document = json.loads(self.path.read_text())
        if (document["gpu"], document["quick"]) == (_gpu(self.device), self.quick):
            self.rows = {row["name"]: row for row in document["rows"] if "error" not in row}

    def _measure(self, row: Row) -> dict[str, Any]:
        row.work()
        peak = self._peak_mib(row.work)
        milliseconds = _times_ms(row.work, self.device)
        rate = row.amount / statistics.median(milliseconds) * 1e3
        scale = 1e9 if row.unit == "GB/s" else 1e12
        found = {
            "name": row.name,
            "median_ms": statistics.median(milliseconds),
            "p20_ms": sorted(milliseconds)[len(milliseconds) // 5],
            "p80_ms": sorted(milliseconds)[len(milliseconds) * 4 // 5],
            "rate": rate / scale,
            "unit": row.unit,
            "peak_mib": peak,
        }
        if row.roofline and "rate" in self.rows.get(row.roofline, {}):
            found["of_roofline"] = found["rate"] / self.rows[row.roofline]["rate"]
        return found

    def _peak_mib(self, work: Work) -> float | None:
        if self.device != "cuda":
            return None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a row should reach.

    Attributes:
        row: Its name.
        bound: At least this part of its roofline's rate.
        below: Of another row; then the time should be at most `bound` of that row's.
    """

    row: str
    bound: float
    below: str = ""


LINEAR = "8192x4096x151936"
TARGETS = (
    Target(row="selective 8192x151936", bound=0.90),
    Target(row="selective backward 8192x151936", bound=0.88),
    Target(row=f"linear {LINEAR} workspace 512 MiB", bound=0.88),
    Target(row=f"linear {LINEAR} workspace 0 MiB", bound=0.72),
    Target(
        row=f"linear forward and backward {LINEAR}", bound=1.45, below=f"three products {LINEAR}"
    ),
    Target(
        row=f"linear forward and backward {LINEAR}",
        bound=0.35,
        below=f"liger forward and backward {LINEAR}",
    ),
    Target(row="gae 16384x4096", bound=0.75),
)


def judge(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target, what was measured, and whether that meets it; None where it was not measured."""
    found = []
    for target in TARGETS:
        row, other = rows.get(target.row, {}), rows.get(target.below, {})
        value = row.get("of_roofline")
        if target.below:
            both = "median_ms" in row and "median_ms" in other
            value = row["median_ms"] / other["median_ms"] if both else None
        met = None
        if value is not None:
            met = value <= target.bound if target.below else value >= target.bound
        what = f"time over that of {target.below}, at most" if target.below else "of roofline"
        found.append(
            {
                "row": target.row,
                "what": what,
                "bound": target.bound,
                "value": value,
                "met": met,
            }
        )
    return found


def _gpu(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "none"


def _times_ms(work: Work, device: str) -> list[float]:
    """Times of single calls; on a GPU with its second-level cache flushed before each."""
    if device == "cuda":
        from triton.testing import do_bench

        times: list[float] = do_bench(work, warmup=50, rep=300, return_mode="all")
        return times
    found = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def copy_rows(device: str, quick: bool) -> Iterator[Row]:
    """The bandwidth that everything limited by memory is measured against."""
    size = 1 << (20 if quick else 32)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    yield Row(name="copy", work=lambda: target.copy_(source), amount=2 * size, unit="GB/s")


def selective_rows(device: str, quick: bool) -> Iterator[Row]:
    """Log-prob and entropy from logits, forward and backward."""
    shapes = [(64, 1001)] if quick else [(8192, 151936), (8192, 32000), (1024, 151936)]
    for num_rows, vocab_size in shapes:
        logits = torch.randn(num_rows, vocab_size, device=device, dtype=torch.bfloat16) * 3
        ids = torch.randint(0, vocab_size, (num_rows,), device=device)
        size = f"{num_rows}x{vocab_size}"
        num_bytes = 2 * num_rows * vocab_size
        forward = partial(selective_logprob, logits, ids, entropy=True)
        yield Row(
            name=f"selective {size}", work=forward, amount=num_bytes, unit="GB/s", roofline="copy"
        )
        leaf = logits.detach().requires_grad_()
        stats = selective_logprob(leaf, ids, entropy=True)
        backward = partial(
            torch.autograd.grad, (stats.logp + stats.entropy).sum(), leaf, retain_graph=True
        )
        # One read of the logits and one write of their gradient.
        yield Row(
            name=f"selective backward {size}",
            work=backward,
            amount=2 * num_bytes,
            unit="GB/s",
            roofline="copy",
        )
        yield Row(
            name=f"plain torch selective {size}",
            work=partial(_plain_stats, logits, ids),
            amount=num_bytes,
            unit="GB/s",
            roofline="copy",
        )


def _plain_stats(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.float(), -1)
    return log_p.gather(-1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def linear_rows(device: str, quick: bool) -> Iterator[Row]:
    """Log-prob and entropy from hidden states, and the products that they contain."""
    shapes = [(64, 64, 512)] if quick else [(8192, 4096, 151936), (4096, 2048, 151936)]
    for num_rows, hidden_size, vocab_size in shapes:
        size = f"{num_rows}x{hidden_size}x{vocab_size}"
        operations = 2.0 * num_rows * hidden_size * vocab_size
        hidden = torch.randn(num_rows, hidden_size, device=device, dtype=torch.bfloat16)
        weight = torch.randn(vocab_size, hidden_size, device=device, dtype=torch.bfloat16)
        weight /= hidden_size**0.5
        ids = torch.randint(0, vocab_size, (num_rows,), device=device)
        logits = hidden @ weight.T
        product = f"product {size}"
        yield Row(
            name=product,
            work=partial(torch.mm, hidden, weight.T, out=logits),
            amount=operations,
            unit="TFLOP/s",
        )
        three = f"three products {size}"
        yield Row(
            name=three,
            work=partial(_three_products, hidden, weight, logits),
            amount=3 * operations,
            unit="TFLOP/s",
        )
        del logits
        for workspace_mib in (512, 128, 0):
            yield Row(
                name=f"linear {size} workspace {workspace_mib} MiB",
                work=partial(
                    linear_logprob, hidden, weight, ids, entropy=True, workspace_mib=workspace_mib
                ),
                amount=operations,
                unit="TFLOP/s",
                roofline=product,
            )
        leaves = (hidden.requires_grad_(), weight.requires_grad_())
        upstream = torch.randn(num_rows, device=device)
        for name, function in _losses(ids).items():
            yield Row(
                name=f"{name} forward and backward {size}",
                work=partial(_forward_backward, function, leaves, upstream),
                amount=3 * operations,
                unit="TFLOP/s",
                roofline=three,
            )


def _three_products(hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
    torch.mm(hidden, weight.T, out=logits)
    torch.mm(logits, weight)
    torch.mm(logits.T, hidden)


def _forward_backward(
    function: Callable[[Tensor, Tensor], Tensor], leaves: tuple[Tensor, Tensor], upstream: Tensor
) -> None:
    torch.autograd.grad((function(*leaves) * upstream).sum(), leaves)


def _losses(ids: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ours, plain torch, and the peers that are installed; each gives a log-prob a token."""

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return _plain_stats(hidden @ weight.T, ids)[0]

    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "linear": lambda hidden, weight: linear_logprob(hidden, weight, ids).logp,
        "plain torch": plain,
    }
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        found["torch linear_cross_entropy"] = partial(_torch_loss, ids, None)
        options = torch.nn.LinearCrossEntropyOptions()
        found["torch linear_cross_entropy, chunks"] = partial(_torch_loss, ids, options)
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )

        def liger(hidden: Tensor, weight: Tensor) -> Tensor:
            loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(
                hidden, weight, ids, None, None, -100, 0.0, 0.0, "none"
            )
            return -loss

        found["liger"] = liger
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = lambda hidden, weight: (
            -linear_cross_entropy(hidden, weight, ids, reduction="none")
        )
    except ImportError:
        pass
    return found


def _torch_loss(ids: Tensor, options: Any, hidden: Tensor, weight: Tensor) -> Tensor:
    loss = torch.nn.functional.linear_cross_entropy
    return -loss(hidden, weight, ids, reduction="none", options=options)


def gae_rows(device: str, quick: bool) -> Iterator[Row]:
    """Advantages: three reads (one of them of bytes) and two writes."""
    shape = (8, 100) if quick else (16384, 4096)
    rewards, values = torch.randn(shape, device=device), torch.randn(shape, device=device)
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    yield Row(
        name=f"gae {shape[0]}x{shape[1]}",
        work=partial(gae, rewards, values, mask=mask),
        amount=(4 * 4 + 1) * rewards.numel(),
        unit="GB/s",
        roofline="copy",
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table("row", "ms", "rate", "of roofline", "peak MiB")
    for found in rows:
        if "error" in found:
            table.add_row(found["name"], found["error"], "", "", "")
            continue
        ratio, peak = found.get("of_roofline"), found["peak_mib"]
        table.add_row(
            found["name"],
            f"{found['median_ms']:.3f}",
            f"{found['rate']:.1f} {found['unit']}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if peak is None else f"{peak:.0f}",
        )
    verdicts = Table("target", "what", "bound", "measured", "")
    for target in judge({found["name"]: found for found in rows}):
        value, met = target["value"], target["met"]
        verdicts.add_row(
            target["row"],
            target["what"],
            f"{target['bound']:.2f}",
            "" if value is None else f"{value:.2f}",
            "not measured" if met is None else "met" if met else "not met",
        )
    console = Console(width=140)
    console.print(table)
    console.print(verdicts)


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--budget-s", type=float, default=540, help="stop after this many seconds")
    arguments = options.parse_args()
    if not torch.cuda.is_available() and not arguments.quick:
        options.error("there is no GPU; --quick runs small shapes on the CPU")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    deadline = time.monotonic() + arguments.budget_s
    run = Run(device, deadline, arguments.quick, arguments.json)
    run.resume()
    torch.manual_seed(0)
    for section in (copy_rows, selective_rows, linear_rows, gae_rows):
        for row in section(device, arguments.quick):
            run.measure(row)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    show(list(run.rows.values()))


if __name__ == "__main__":
    main()
