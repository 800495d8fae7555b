"""Runs untrusted programs: several at once, each blind to the others and to the host.

Names are imported when they are first used, because the small processes of the sandbox import this
package too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardsvc.verifiers.sandbox.languages import (
        Language,
        LanguageReport,
        find_languages,
        report_languages,
    )
    from rewardsvc.verifiers.sandbox.layers import Layer, LayerReport
    from rewardsvc.verifiers.sandbox.probing import probe
    from rewardsvc.verifiers.sandbox.sandbox import Program, Sandbox, default_sandbox
    from rewardsvc.verifiers.sandbox.types import (
        Isolation,
        IsolationError,
        Limits,
        RunResult,
        RunStatus,
        SandboxError,
        UnknownLanguageError,
    )

_MODULES = {
    "languages": ("Language", "LanguageReport", "find_languages", "report_languages"),
    "layers": ("Layer", "LayerReport"),
    "probing": ("probe",),
    "sandbox": ("Program", "Sandbox", "default_sandbox"),
    "types": (
        "Isolation",
        "IsolationError",
        "Limits",
        "RunResult",
        "RunStatus",
        "SandboxError",
        "UnknownLanguageError",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Isolation",
    "IsolationError",
    "Language",
    "LanguageReport",
    "Layer",
    "LayerReport",
    "Limits",
    "Program",
    "RunResult",
    "RunStatus",
    "Sandbox",
    "SandboxError",
    "UnknownLanguageError",
    "default_sandbox",
    "find_languages",
    "probe",
    "report_languages",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
