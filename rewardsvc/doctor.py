"""What this machine offers: devices, kernels, sandbox layers, and the packages behind them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import rewardsvc

PACKAGES = (
    "grpcio",
    "protobuf",
    "numpy",
    "torch",
    "triton",
    "transformers",
    "math-verify",
    "onnxruntime",
    "pydantic",
)

TYPICAL_VOCAB = 32_000
"""The choice of a kernel depends on the vocabulary's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        area: "machine", "package", "device", "kernels", "sandbox" or "language".
        name: What was looked at.
        ok: Whether it is there.
        detail: What was found, or what is lost without it.
    """

    area: str
    name: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Looks at everything; a part that cannot be looked at is a finding, not an exception."""
    findings: list[Finding] = []
    for area, look in (
        ("machine", _machine),
        ("package", _packages),
        ("device", _devices),
        ("kernels", _kernels),
        ("sandbox", _sandbox),
    ):
        findings += _guarded(area, look)
    return findings


def _guarded(area: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as error:
        detail = f"could not be examined: {type(error).__name__}: {error}"
        return [Finding(area=area, name=area, ok=False, detail=detail)]


def _machine() -> list[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        Finding(area="machine", name="rewardsvc", ok=True, detail=rewardsvc.__version__),
        Finding(
            area="machine",
            name="python",
            ok=True,
            detail=f"{platform.python_version()} at {sys.executable}",
        ),
        Finding(
            area="machine",
            name="host",
            ok=True,
            detail=f"{platform.system()} {platform.release()} {platform.machine()}, "
            f"{usable} cores, {memory:.1f} GiB",
        ),
    ]


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding(area="package", name=name, ok=True, detail=version(name)))
        except PackageNotFoundError:
            findings.append(Finding(area="package", name=name, ok=False, detail="not installed"))
    return findings


def _devices() -> list[Finding]:
    import torch

    findings = [
        Finding(
            area="device",
            name="cpu",
            ok=True,
            detail=f"{torch.get_num_threads()} torch threads, "
            f"{torch.backends.cpu.get_cpu_capability()}",
        )
    ]
    if not torch.cuda.is_available():
        findings.append(
            Finding(area="device", name="cuda", ok=False, detail="no CUDA device is visible")
        )
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        findings.append(
            Finding(
                area="device",
                name=f"cuda:{index}",
                ok=True,
                detail=f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
                f"sm_{properties.major}{properties.minor}",
            )
        )
    return findings


def _kernels() -> list[Finding]:
    import torch

    from rewardsvc.kernels.dispatch import choose_backend

    findings = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        backend = choose_backend(torch.zeros(1, device=device), TYPICAL_VOCAB)
        findings.append(
            Finding(area="kernels", name=device, ok=True, detail=f"log-probs use {backend}")
        )
    return findings


def _sandbox() -> list[Finding]:
    from rewardsvc.verifiers.sandbox import probe, report_languages

    layers = [
        Finding(
            area="sandbox",
            name=report.layer.value,
            ok=report.available,
            detail=report.detail if report.available else f"{report.detail}; lost: {report.lost}",
        )
        for report in probe()
    ]
    languages = [
        Finding(area="language", name=row.name, ok=row.available, detail=row.detail)
        for row in report_languages()
    ]
    return layers + languages
