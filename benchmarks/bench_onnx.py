"""ONNX Runtime beside torch on the CPU: the same samples through both backends, in this process.

Random models (`reward_models.py`), log-normal lengths, one sample at a time wanted by each caller.
Each backend puts its batches together as it does in the service, from one window of samples. Rank
agreement of int8 with float32 is that of random weights; a trained model's is another, and
`rewardsvc export-onnx --int8 --samples FILE` tells it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reward_models import LOGNORMAL_MEAN, LOGNORMAL_SIGMA, NAMES, VOCAB_SIZE, write_model
from rich.console import Console
from rich.table import Table
from timing import interleave, parser, row, write_rows

from rewardsvc.engine.host import EngineHost, EngineSettings
from rewardsvc.engine.onnx.backend import OnnxBackend
from rewardsvc.engine.onnx.folder import OnnxFolder
from rewardsvc.engine.types import Backend, Encoded
from rewardsvc.scorers._onnx import export_scorer
from rewardsvc.scorers.orm import Orm, OrmConfig
from rewardsvc.scoring.build import BuildEnv

BUDGET = 16_384
"""The service's own default."""


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=2, help="of a forward pass")
    options.add_argument("--samples", type=int, default=128)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    num_samples, rounds = (12, 1) if given.quick else (given.samples, given.rounds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="rewardsvc-onnx-") as scratch:
        for name in NAMES:
            folder = Path(scratch) / name
            write_model(folder, name, tiny=given.quick)
            rows += _measure(name, folder, num_samples, rounds, given.threads)
    _show(rows)
    write_rows(given.json, rows)


def _measure(
    name: str, folder: Path, num_samples: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    mu = np.log(LOGNORMAL_MEAN) - LOGNORMAL_SIGMA**2 / 2
    lengths = np.clip(rng.lognormal(mu, LOGNORMAL_SIGMA, num_samples), 4, 1000).astype(int)
    items = [_item(rng.integers(5, VOCAB_SIZE, length)) for length in lengths]
    torch_backend: Any = _scorer(folder)._load("cpu")
    exports = {}
    for precision in ("float32", "int8"):
        target = folder.with_name(f"{name}-{precision}")
        described, _ = export_scorer(
            _scorer(folder, dtype="float32", attention="eager"),
            target,
            precision=precision,
            opset=18,
        )
        exports[precision] = described
    backends: dict[str, Backend] = {
        "torch float32": torch_backend,
        **{
            f"onnx {precision}": OnnxBackend(
                OnnxFolder.open(str(folder.with_name(f"{name}-{precision}"))),
                device="cpu",
                num_threads=threads,
            )
            for precision in exports
        },
    }
    cases: dict[str, Callable[[], object]] = {
        "torch float32, one by one": lambda: [torch_backend.run([item]) for item in items]
    }
    for case, backend in backends.items():
        cases[case] = _pass(backend, items)
    stats = interleave(cases, rounds=rounds, warmup=1)
    slowest = stats["torch float32"].median_s
    rows = []
    for case, found in stats.items():
        more: dict[str, Any] = {"model": name, "threads": threads, "samples": num_samples}
        more["samples_per_s"] = num_samples / found.median_s
        more["times_torch"] = slowest / found.median_s
        if case == "onnx int8":
            agreement = exports["int8"].agreement
            assert agreement is not None
            more["agreement"] = agreement.model_dump()
        rows.append(row(case, found, **more))
    return rows


def _scorer(folder: Path, **config: Any) -> Orm:
    """The scorer as the service builds it, not started."""

    def no_child(name: str) -> Any:
        raise KeyError(name)

    engine = EngineHost(EngineSettings(device="cpu"))
    env = BuildEnv(name="rm", base_dir=folder, child=no_child, engine=engine)
    return Orm(OrmConfig(model=str(folder), **config), env)


def _pass(backend: Backend, items: Sequence[Encoded]) -> Callable[[], object]:
    """One pass over all items, in the batches that the backend's shape chooses."""
    waiting, batches = list(items), []
    while waiting:
        chosen = set(backend.shape.select(waiting, BUDGET))
        batches.append([waiting[i] for i in sorted(chosen)])
        waiting = [item for i, item in enumerate(waiting) if i not in chosen]
    return lambda: [backend.run(batch) for batch in batches]


def _item(ids: Any) -> Encoded:
    last = np.asarray([len(ids) - 1], np.int32)
    return Encoded(token_ids=np.asarray(ids, np.int32), positions=last)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for heading in (
        "model",
        "",
        "ms/sample",
        "p20",
        "p80",
        "times torch",
        "Spearman",
        "pairs alike",
    ):
        table.add_column(heading, justify="right")
    for found in rows:
        agreement = found.get("agreement")
        table.add_row(
            found["model"],
            found["name"],
            *(
                f"{1000 * found[key] / found['samples']:.2f}"
                for key in ("median_s", "p20_s", "p80_s")
            ),
            f"{found['times_torch']:.2f}",
            *([f"{agreement[key]:.4f}" for key in ("spearman", "pairwise")] if agreement else ()),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
