"""Which layers this machine grants.

Every layer is tried in processes of their own, in the order in which a slot would raise them.
Nothing
is guessed from version numbers or from files: a layer is available if doing it works here, for this
user.
"""

from __future__ import annotations

import functools
import json
import subprocess

from rewardsvc.verifiers.sandbox.boot import command
from rewardsvc.verifiers.sandbox.layers import WHAT_IS_LOST, Layer, LayerReport
from rewardsvc.verifiers.sandbox.types import SandboxError

_PROBE_TIMEOUT_SECONDS = 60.0


@functools.cache
def probe() -> tuple[LayerReport, ...]:
    """Tries every layer once a process.

    Raises:
        SandboxError: If the trial itself cannot be run.
    """
    try:
        done = subprocess.run(
            command("layer_probe"),
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            check=True,
        )
        found: dict[str, list[object]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        output = getattr(error, "stderr", b"") or b""
        raise SandboxError(f"cannot probe the sandbox: {error} {output.decode()}") from error
    return tuple(
        LayerReport(
            layer=layer,
            available=bool(found[layer][0]),
            detail=str(found[layer][1]),
            lost=WHAT_IS_LOST[layer],
        )
        for layer in Layer
    )
