"""What packing and shared prefixes are worth: the engine in process against padded batches.

Groups: completions of a prompt, as GRPO sends them, scored by an outcome and by a process reward
model. Singles: texts of log-normal lengths that share nothing. Every round computes the same
samples in every way; all ways compute the same numbers, which is checked first.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from timing import Stats, interleave, parser, row, write_rows

from rewardsvc.engine.cpu_feedforward import speed_up_feed_forward
from rewardsvc.engine.cpu_linear import speed_up
from rewardsvc.engine.packing.backend import PackedForm, PackedTorchBackend
from rewardsvc.engine.packing.choice import Wishes, choose_backend
from rewardsvc.engine.settings import BATCH_TOKENS
from rewardsvc.engine.torch_backend import (
    HiddenStates,
    ModuleHead,
    OwnForward,
    PaddedTorchBackend,
    TorchBackend,
)
from rewardsvc.engine.types import Encoded

VOCAB_SIZE, MAX_LENGTH = 8000, 1024
GROUP_SIZE, PROMPT_TOKENS, STEP_TOKENS = 16, 256, 24
MEDIAN_COMPLETION, SPREAD, SHORTEST, LONGEST = 110, 0.6, 16, 512
MEDIAN_SINGLE, SINGLE_SPREAD = 81, 0.7
"""Of the log-normal distributions: completions have 131 tokens on average, singles 102."""

TOLERANCE = 1e-4
PADDED, SORTED, UNSHARED, SHARED, EXACT, ALONE = (
    "padded, a prompt a batch",
    "padded, sorted",
    "packed, nothing shared",
    "packed, as served",
    "deterministic",
    "one by one",
)


def main() -> None:
    """Runs the benchmark."""
    found = parser(__doc__.splitlines()[0])
    found.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--prompts", type=int, default=32, help="groups to score, 4 a round")
    arguments = found.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.cases:
        rows += CASES[name](name, arguments)
    _show(rows)
    write_rows(arguments.json, rows)


def _llama(num_labels: int, quick: bool) -> Any:
    width = 64 if quick else 512
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=2 if quick else 6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCAB_SIZE,
        num_labels=num_labels,
        pad_token_id=0,
        max_position_embeddings=MAX_LENGTH,
    )


def _bert(num_labels: int, quick: bool) -> Any:
    width = 64 if quick else 256
    return transformers.BertConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2 if quick else 4,
        num_attention_heads=4,
        vocab_size=VOCAB_SIZE,
        num_labels=num_labels,
        max_position_embeddings=MAX_LENGTH,
    )


def _backends(make_config: Callable[[], Any], dtype: torch.dtype) -> dict[str, TorchBackend]:
    """A backend of each kind, with the same weights; each has a model to itself."""

    def loaded() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(make_config())
        model = model.eval().requires_grad_(False).to(dtype)
        speed_up(model)
        speed_up_feed_forward(
            model
        )  # all ways multiply alike: what is compared is how batches are made
        if hasattr(model, "score"):
            return model, HiddenStates(model.base_model, ModuleHead(model.score))
        return model, OwnForward(model)

    def chosen(**wishes: Any) -> TorchBackend:
        model, reading = loaded()
        wanted = Wishes(max_length=MAX_LENGTH, **wishes)
        backend = choose_backend(model, reading, device="cpu", wishes=wanted)
        assert backend.batching.kind == "packed", backend.batching
        return backend

    shared = chosen()
    found: dict[str, TorchBackend] = {
        SHARED: shared,
        EXACT: chosen(deterministic=True),
        SORTED: PaddedTorchBackend(loaded()[1], device="cpu"),
        ALONE: PaddedTorchBackend(loaded()[1], device="cpu", alone=True),
    }
    if shared.batching.shares_prefixes:
        reading = shared._reading
        assert reading is not None
        found[UNSHARED] = PackedTorchBackend(reading, device="cpu", form=PackedForm(share=False))
    return found


def _serve(backend: TorchBackend, items: Sequence[Encoded]) -> list[np.ndarray[Any, Any]]:
    """Batches as the engine puts them together, until all is computed."""
    answers: dict[int, np.ndarray[Any, Any]] = {}
    waiting = list(range(len(items)))
    while waiting:
        window = [items[i] for i in waiting]
        batch = [waiting[place] for place in backend.shape.select(window, BATCH_TOKENS["cpu"])]
        for index, numbers in zip(batch, backend.run([items[i] for i in batch]), strict=True):
            answers[index] = numbers
        waiting = [i for i in waiting if i not in answers]
    return [answers[i] for i in range(len(items))]


def _tokens(rng: np.random.Generator, median: float, spread: float) -> np.ndarray[Any, Any]:
    length = int(np.clip(rng.lognormal(np.log(median), spread), SHORTEST, LONGEST))
    return rng.integers(1, VOCAB_SIZE, length)


def _group(rng: np.random.Generator, steps: bool) -> list[Encoded]:
    prompt = rng.integers(1, VOCAB_SIZE, PROMPT_TOKENS)
    found = []
    for _ in range(GROUP_SIZE):
        ids = np.concatenate([prompt, _tokens(rng, MEDIAN_COMPLETION, SPREAD)]).astype(np.int32)
        first = PROMPT_TOKENS + STEP_TOKENS - 1 if steps else len(ids)
        positions = [*range(first, len(ids) - 1, STEP_TOKENS), len(ids) - 1]
        found.append(Encoded(token_ids=ids, positions=np.asarray(positions, np.int32)))
    return found


def _groups(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    steps = name == "groups-prm"
    quick = arguments.quick
    backends = _backends(partial(_llama, 2 if steps else 1, quick), getattr(torch, arguments.dtype))
    del backends[ALONE]
    rng = np.random.default_rng(0)
    per_round = 1 if quick else 4
    num_rounds = 1 if quick else arguments.prompts // per_round
    rounds = [[_group(rng, steps) for _ in range(per_round)] for _ in range(num_rounds)]
    padded = backends[SORTED]

    def a_prompt_a_batch(groups: Sequence[Sequence[Encoded]]) -> list[np.ndarray[Any, Any]]:
        return [numbers for group in groups for numbers in padded.run(group)]

    def served(
        backend: TorchBackend, groups: Sequence[Sequence[Encoded]]
    ) -> list[np.ndarray[Any, Any]]:
        return _serve(backend, [item for group in groups for item in group])

    ways: dict[str, Callable[[Any], Any]] = {PADDED: a_prompt_a_batch}
    ways |= {name: partial(served, backend) for name, backend in backends.items()}
    computed = _computed(backends[SHARED], rounds)
    return _measured(name, ways, rounds, arguments, SHARED, {"shared_tokens": computed})


def _singles(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    make = _bert if name == "singles-bert" else _llama
    quick = arguments.quick
    backends = _backends(partial(make, 1, quick), getattr(torch, arguments.dtype))
    backends.pop(UNSHARED, None)
    rng = np.random.default_rng(0)
    num_rounds, num_items = (1, 8) if quick else (9, 64)
    rounds = []
    for _ in range(num_rounds):
        texts = [
            _tokens(rng, MEDIAN_SINGLE, SINGLE_SPREAD).astype(np.int32) for _ in range(num_items)
        ]
        rounds.append(
            [
                Encoded(token_ids=ids, positions=np.asarray([len(ids) - 1], np.int32))
                for ids in texts
            ]
        )
    ways = {way: partial(_serve, backend) for way, backend in backends.items()}
    return _measured(name, ways, rounds, arguments, SHARED, {})


def _computed(backend: TorchBackend, rounds: Sequence[Any]) -> int:
    return sum(backend.shape.num_computed_tokens(group) for some in rounds for group in some)


def _measured(
    name: str,
    ways: dict[str, Callable[[Any], Any]],
    rounds: Sequence[Any],
    arguments: argparse.Namespace,
    ours: str,
    more: dict[str, Any],
) -> list[dict[str, Any]]:
    """Times every way on every round's samples."""
    difference = {way: _difference(work, ways[ours], rounds[0]) for way, work in ways.items()}
    tolerance = TOLERANCE if arguments.dtype == "float32" else 1.0
    assert max(difference.values()) < tolerance, difference
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for some in rounds:
        cases = {way: partial(work, some) for way, work in ways.items()}
        for way, stats in interleave(cases, rounds=1, warmup=0).items():
            seconds[way].append(stats.median_s)
    found = []
    for way in ways:
        ratios = [mine / other for other, mine in zip(seconds[ours], seconds[way], strict=True)]
        found.append(
            row(
                way,
                Stats.of(seconds[way]),
                case=name,
                dtype=arguments.dtype,
                times_ours=statistics.median(ratios),
                largest_difference=difference[way],
                threads=torch.get_num_threads(),
                **more,
            )
        )
    return found


def _difference(one: Callable[[Any], Any], other: Callable[[Any], Any], samples: Any) -> float:
    """The largest between the numbers of two ways; warms both up."""
    pairs = zip(one(samples), other(samples), strict=True)
    return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)


CASES: dict[str, Callable[[str, argparse.Namespace], list[dict[str, Any]]]] = {
    "groups-orm": _groups,
    "groups-prm": _groups,
    "singles-llama": _singles,
    "singles-bert": _singles,
}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None)
    for heading in ("case", "", "median s", "p20", "p80", "times ours", "difference"):
        table.add_column(heading, justify="right")
    for found in rows:
        table.add_row(
            found["case"],
            found["name"],
            *(f"{found[key]:.3f}" for key in ("median_s", "p20_s", "p80_s")),
            f"{found['times_ours']:.2f}",
            f"{found['largest_difference']:.1e}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
