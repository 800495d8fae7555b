"""The engine on a GPU: an 8B Llama-shaped reward model in bfloat16, at a share of the GEMM rate.

The model's weights are random and made on the device. Rows, most important first:

    gemm        the rate of large matrix products on this device, the roof for the others
    singles     samples of log-normal lengths, nothing shared: share of the roof
    groups      the same completions in groups of 16 behind one prompt each: samples a second
    prompts     what `groups` is compared with: the same samples, each with its prompt of its own

The operations that are counted are those of the matrices and of attention over what each token may
see, for each sample by itself: padding counts for nothing, and where prompts are shared there is no
share of the roof to tell. Ends within its budget of seconds. With `--json FILE` every row is
written as it is measured, and a row that the file has already is not measured again. `--quick`
runs a small model, on the CPU where there is no GPU, to see that the script works.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from timing import parser, surroundings

from rewardsvc.engine.packing.choice import Wishes, choose_backend
from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead
from rewardsvc.engine.types import Backend, Encoded

BUDGET_S = 480.0
GROUP_SIZE = 16
PROMPT_TOKENS = 256
MEAN_TOKENS, SIGMA = 512.0, 0.8
"""Lengths of the samples of `singles`, log-normal."""
MEAN_COMPLETION = 256.0
LONGEST = 4096
WINDOW = 512
"""Samples that the batcher would see at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is run.

    Attributes:
        config: The model's shape.
        num_samples: Of each row.
        budget: Tokens of a batch.
        rounds: Measurements of each row.
        scale: Lengths are divided by it.
        gemm: Side of the square matrices of the roof.
    """

    config: dict[str, int]
    num_samples: int
    budget: int
    rounds: int
    scale: int
    gemm: int


FULL = Size(
    config={
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    num_samples=512,
    budget=32_768,
    rounds=3,
    scale=1,
    gemm=8192,
)
QUICK = Size(
    config={
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    num_samples=32,
    budget=1024,
    rounds=1,
    scale=16,
    gemm=256,
)


class Run:
    """The state of one run: what has been measured, and how much time is left."""

    def __init__(self, given: Any) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.size: Size = QUICK if given.quick else FULL
        self._path: Path | None = given.json
        self._deadline = time.monotonic() + given.budget
        self._backend: Backend | None = None
        self.rows: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.is_file():
            kept = json.loads(self._path.read_text())["rows"]
            self.rows = {row["name"]: row for row in kept}

    def measure(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Adds a row, if it is not there and there is time."""
        if name in self.rows or time.monotonic() > self._deadline:
            return
        self.rows[name] = {"name": name, **work()}
        if self._path is not None:
            device = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
            document = {**surroundings(), "device": device, "rows": list(self.rows.values())}
            self._path.write_text(json.dumps(document, indent=2) + "\n")

    def backend(self) -> Backend:
        """The model behind the engine's own choice of batches; made when first needed."""
        if self._backend is None:
            config = transformers.LlamaConfig(**self.size.config, num_labels=1, pad_token_id=0)
            model = _random_model(config, self.device)
            reading = HiddenStates(model.model, ModuleHead(model.score))
            wishes = Wishes(max_length=config.max_position_embeddings)
            made = choose_backend(model, reading, device=self.device, wishes=wishes)
            print(f"batches are {made.batching}")
            self._backend = made
        return self._backend

    def seconds(self, work: Callable[[], object]) -> list[float]:
        """Of each round, after one that warms up."""
        found = []
        for _ in range(self.size.rounds + 1):
            began = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
            if time.monotonic() > self._deadline and len(found) > 1:
                break
        return found[1:]


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--budget", type=float, default=BUDGET_S, help="seconds")
    run = Run(options.parse_args())
    rng = np.random.default_rng(0)
    singles = _singles(rng, run.size)
    groups, apart = _groups(rng, run.size)
    run.measure("gemm", lambda: _gemm(run))
    run.measure("singles", lambda: _engine(run, singles))
    run.measure("groups", lambda: _engine(run, groups))
    run.measure("prompts", lambda: _engine(run, apart))
    _show(run)


def _random_model(config: Any, device: str) -> Any:
    """A model whose weights never exist anywhere but on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = transformers.LlamaForSequenceClassification(config)
    finally:
        torch.set_default_dtype(before)
    gc.collect()
    return model.eval().requires_grad_(False)


def _gemm(run: Run) -> dict[str, Any]:
    """The rate of a product of square matrices."""
    side = run.size.gemm
    dtype = torch.bfloat16 if run.device == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=run.device, dtype=dtype) for _ in range(2))
    num_products = 20
    taken = run.seconds(lambda: [torch.mm(a, b) for _ in range(num_products)])
    return {"flops": num_products * 2 * side**3 / statistics.median(taken)}


def _engine(run: Run, items: Sequence[Encoded]) -> dict[str, Any]:
    """Samples through the backend, in the batches that its shape chooses from a window."""
    backend = run.backend()
    batches = _batches(backend, items, run.size.budget)

    def work() -> None:
        for batch in batches:
            backend.run(batch)

    taken = statistics.median(run.seconds(work))
    num_tokens = sum(map(len, items))
    computed = sum(backend.shape.num_computed_tokens(batch) for batch in batches)
    flops = sum(_flops(run.size.config, len(item)) for item in items) / taken
    found = {
        "samples_per_s": len(items) / taken,
        "tokens_per_s": num_tokens / taken,
        "computed_share": computed / num_tokens,
        "num_batches": len(batches),
        "flops": flops,
    }
    if "gemm" in run.rows and computed >= num_tokens:
        found["gemm_share"] = flops / run.rows["gemm"]["flops"]
    return found


def _batches(backend: Backend, items: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
    waiting, batches = list(items), []
    while waiting:
        chosen = set(backend.shape.select(waiting[:WINDOW], budget))
        batches.append([waiting[i] for i in chosen])
        waiting = [item for i, item in enumerate(waiting) if i not in chosen]
    return batches


def _flops(config: dict[str, int], num_tokens: int) -> float:
    """Operations for one sequence by itself: matrices, and attention under its causal half."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    matrices = hidden * (2 * hidden + 2 * head * config["num_key_value_heads"] + 3 * inner)
    attention = 2 * hidden * num_tokens  # two products over half of the square
    return config["num_hidden_layers"] * num_tokens * (2 * matrices + attention)


def _singles(rng: np.random.Generator, size: Size) -> list[Encoded]:
    lengths = _lognormal(rng, MEAN_TOKENS, size.num_samples, size)
    return [_item(rng.integers(1, size.config["vocab_size"], length)) for length in lengths]


def _groups(rng: np.random.Generator, size: Size) -> tuple[list[Encoded], list[Encoded]]:
    """Groups behind one prompt each, and the same lengths with prompts of their own."""
    vocab, prompt_tokens = size.config["vocab_size"], PROMPT_TOKENS // size.scale
    lengths = _lognormal(rng, MEAN_COMPLETION, size.num_samples, size)
    grouped, apart = [], []
    for number, length in enumerate(lengths):
        if number % GROUP_SIZE == 0:
            prompt = rng.integers(1, vocab, prompt_tokens)
        completion = rng.integers(1, vocab, length)
        grouped.append(_item(np.concatenate([prompt, completion])))
        apart.append(_item(rng.integers(1, vocab, prompt_tokens + length)))
    return grouped, apart


def _lognormal(rng: np.random.Generator, mean: float, count: int, size: Size) -> Any:
    mu = math.log(mean / size.scale) - SIGMA**2 / 2
    return np.clip(rng.lognormal(mu, SIGMA, count), 2, LONGEST // size.scale).astype(int)


def _item(ids: Any) -> Encoded:
    last = np.asarray([len(ids) - 1], np.int32)
    return Encoded(token_ids=np.asarray(ids, np.int32), positions=last)


def _show(run: Run) -> None:
    table = Table(box=None)
    for heading in ("", "TFLOP/s", "of GEMM", "samples/s", "tokens/s", "computed"):
        table.add_column(heading, justify="right")
    for row in run.rows.values():
        table.add_row(
            row["name"],
            f"{row['flops'] / 1e12:.2f}",
            f"{row['gemm_share']:.1%}" if "gemm_share" in row else "",
            *(
                f"{row[key]:,.1f}" if key in row else ""
                for key in ("samples_per_s", "tokens_per_s")
            ),
            f"{row['computed_share']:.1%}" if "computed_share" in row else "",
        )
    Console().print(table)
    if "groups" in run.rows and "prompts" in run.rows:
        factor = run.rows["groups"]["samples_per_s"] / run.rows["prompts"]["samples_per_s"]
        print(f"groups answer {factor:.2f} times as many samples a second as single prompts do")


if __name__ == "__main__":
    main()
