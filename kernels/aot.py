"""Every Triton kernel, compiled ahead of time for every target, with no GPU.

What comes out is registers, shared memory and spilled bytes; spills are what makes a kernel slow
without a word. `scripts/kernel_report.py` writes them to `aot_report.json`, and a test compiles
again and compares.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rewardsvc.kernels.linear.fused import fused_blocks, fused_linear_kernel
from rewardsvc.kernels.policy import triton_rows as policy
from rewardsvc.kernels.policy.torch_rows import NUM_SUMS
from rewardsvc.kernels.scan import triton_rows as scan
from rewardsvc.kernels.tiles import triton_kernels as tiles
from rewardsvc.kernels.tiles import triton_ops
from rewardsvc.kernels.triton_math import FP_FUSION

REPORT_PATH = Path(__file__).with_name("aot_report.json")

TARGETS: dict[str, GPUTarget] = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Arguments by name, whatever the kernel: what a launch with aligned rows has.
_ALIGNED_INTS = {
    "num_columns",
    "stride_row",
    "out_stride_row",
    "stride_hidden_row",
    "stride_weight_row",
    "hidden_size",
    "part_columns",
    "num_tokens",
}
_UNIT_STRIDES = {"stride_column", "stride_hidden", "stride_weight"}
_POINTEES = {"ids_ptr": "i64", "keys_ptr": "i64", "active_ptr": "i1", "mask_ptr": "i1"}
_LOGIT_POINTERS = {"z_ptr", "out_ptr", "bias_ptr", "hidden_ptr", "weight_ptr"}
_INTS = {"start", "num_rows", "part_rows"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel with one set of constants.

    Attributes:
        name: Unique in the catalogue.
        kernel: The `triton.jit` function.
        constants: Values of its constexpr arguments; pointers that are not given are None here.
        dtype: Of logits, hidden states and weights.
        options: Warps and stages.
    """

    name: str
    kernel: Any
    constants: Mapping[str, Any]
    dtype: str = "bf16"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a compiled kernel uses.

    Attributes:
        registers: A thread (NVIDIA) or vector registers a lane (AMD).
        spilled_bytes: Bytes a thread stores to and loads from local memory because registers ran
            out; for AMD, spilled registers times 4.
        shared_bytes: Shared memory of a block.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


def catalogue() -> list[Variant]:
    """The variants that real launches use most, and the largest of each kernel."""
    depth, lanes = triton_ops.tile_shape(151936, 0)
    stats = {
        "DEPTH": depth,
        "LANES": lanes,
        "HAS_BIAS": False,
        "SOFTCAP": False,
        "TOPK": 0,
        "TOPK_LANES": 1,
        "bias_ptr": None,
        "keys_ptr": None,
    }
    topk_depth, topk_lanes = triton_ops.tile_shape(151936, 8)
    topk = stats | {"DEPTH": topk_depth, "LANES": topk_lanes, "TOPK": 8, "TOPK_LANES": 8}
    topk.pop("keys_ptr")
    capped = stats | {"HAS_BIAS": True, "SOFTCAP": True}
    capped.pop("bias_ptr")
    grad = {"BLOCK": triton_ops.GRAD_BLOCK, "HAS_BIAS": False, "SOFTCAP": False, "bias_ptr": None}
    grad_capped = grad | {"HAS_BIAS": True, "SOFTCAP": True}
    grad_capped.pop("bias_ptr")
    loss = {"OBJECTIVE": 0, "DUAL": True, "SHARED": False, "MEAN": False, "OWN_SLOPE": False}
    loss |= {"ESTIMATOR": 3, "CLAMPS": 1, "NUM_SUMS": NUM_SUMS, "BLOCK": policy.BLOCK_T}
    four = {"num_warps": 4}
    variants = [
        Variant(name="row_stats", kernel=tiles.row_stats_kernel, constants=stats, options=four),
        Variant(
            name="row_stats-fp32",
            kernel=tiles.row_stats_kernel,
            constants=stats,
            dtype="fp32",
            options=four,
        ),
        Variant(
            name="row_stats-bias-softcap",
            kernel=tiles.row_stats_kernel,
            constants=capped,
            options=four,
        ),
        Variant(name="row_stats-topk", kernel=tiles.row_stats_kernel, constants=topk, options=four),
        Variant(
            name="finish",
            kernel=tiles.finish_kernel,
            constants={"BLOCK": triton_ops.FINISH_BLOCK},
            dtype="fp32",
        ),
        Variant(name="grad", kernel=tiles.grad_kernel, constants=grad, options=four),
        Variant(
            name="grad-bias-softcap", kernel=tiles.grad_kernel, constants=grad_capped, options=four
        ),
        Variant(name="policy_loss", kernel=policy.policy_loss_kernel, constants=loss, dtype="fp32"),
        Variant(
            name="policy_loss-shared",
            kernel=policy.policy_loss_kernel,
            constants=loss | {"SHARED": True, "MEAN": True},
            dtype="fp32",
        ),
        Variant(
            name="discounted_scan",
            kernel=scan.discounted_scan_kernel,
            constants={"REVERSE": True, "BLOCK": scan.BLOCK_T},
            dtype="fp32",
        ),
        Variant(
            name="gae", kernel=scan.gae_kernel, constants={"BLOCK": scan.BLOCK_T}, dtype="fp32"
        ),
    ]
    for dtype, torch_dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        blocks: dict[str, Any] = dict(fused_blocks(torch_dtype))
        launch = {k: blocks.pop(k) for k in ("num_warps", "num_stages")}
        fused = {"HAS_BIAS": False, "SOFTCAP": False, "UPCAST": False, "bias_ptr": None, **blocks}
        variants.append(
            Variant(
                name=f"fused_linear-{dtype}",
                kernel=fused_linear_kernel,
                constants=fused,
                dtype=dtype,
                options=launch,
            )
        )
    return variants


def compile_variant(variant: Variant, target: str) -> Usage:
    """Compiles one variant for one target.

    Raises:
        KeyError: If the target is unknown.
    """
    kernel = variant.kernel
    constants = dict(variant.constants)
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for at, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in _UNIT_STRIDES:
            signature[name] = "constexpr"
            constants[name] = 1
        elif name.endswith("_ptr"):
            pointee = variant.dtype if name in _LOGIT_POINTERS else _POINTEES.get(name, "fp32")
            signature[name] = f"*{pointee}"
            attributes[(at,)] = [["tt.divisibility", 16]]
        elif name in _ALIGNED_INTS:
            signature[name] = "i32"
            attributes[(at,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if name in _INTS else "fp32"
    source = ASTSource(kernel, signature, constants, attributes)
    options = {**variant.options, **FP_FUSION}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    read = _nvidia_usage if TARGETS[target].backend == "cuda" else _amd_usage
    return read(compiled.asm, compiled.metadata.shared)


def _nvidia_usage(asm: Mapping[str, Any], shared_bytes: int) -> Usage:
    """Assembles the PTX once more, for the assembler's own account."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = asm["ptx"]
    arch = _search(r"\.target\s+(sm_\w+)", ptx)
    number = int(_search(r"sm_(\d+)", arch))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [get_ptxas(number).path, "-v", f"--gpu-name={arch}", str(path)]
        command += ["-o", str(path.with_suffix(".cubin"))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    account = done.stderr + done.stdout
    return Usage(
        registers=int(_search(r"Used (\d+) registers", account)),
        spilled_bytes=int(_search(r"(\d+) bytes spill stores", account))
        + int(_search(r"(\d+) bytes spill loads", account)),
        shared_bytes=shared_bytes,
    )


def _amd_usage(asm: Mapping[str, Any], shared_bytes: int) -> Usage:
    text = asm["amdgcn"]
    spilled = [int(_search(rf"\.{kind}_spill_count:\s+(\d+)", text)) for kind in ("vgpr", "sgpr")]
    return Usage(
        registers=int(_search(r"\.vgpr_count:\s+(\d+)", text)),
        spilled_bytes=4 * sum(spilled),
        shared_bytes=shared_bytes,
    )


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's output has no {pattern!r}")
    return found[1]


Report = dict[str, dict[str, dict[str, int]]]
"""Variant name → target → fields of `Usage`."""


def compile_all(targets: Sequence[str], log: Callable[[str], None] | None = None) -> Report:
    """Compiles the catalogue for the targets."""
    report: Report = {}
    for variant in catalogue():
        for target in targets:
            usage = asdict(compile_variant(variant, target))
            report.setdefault(variant.name, {})[target] = usage
            if log is not None:
                log(f"{variant.name:24s} {target:8s} {usage}")
    return report


def load_report() -> tuple[str, Report]:
    """The checked-in report: the version of Triton that it was made with, and its rows."""
    document = json.loads(REPORT_PATH.read_text())
    return document["triton"], document["kernels"]


def save_report(report: Report) -> None:
    """Writes the report that is checked in."""
    document = {"triton": triton.__version__, "kernels": report}
    REPORT_PATH.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def spill_regressions(before: Report, now: Report) -> list[str]:
    """Sentences for each kernel that spills more than before, or that is in one report alone."""
    found = [f"{name} is not in both reports" for name in before.keys() ^ now.keys()]
    for name in before.keys() & now.keys():
        for target, usage in now[name].items():
            known = before[name].get(target)
            if known is None:
                found.append(f"{name} for {target} is not in the checked-in report")
            elif usage["spilled_bytes"] > known["spilled_bytes"]:
                found.append(
                    f"{name} for {target} spills {usage['spilled_bytes']} bytes a thread, before"
                    f" {known['spilled_bytes']}"
                )
    return sorted(found)
