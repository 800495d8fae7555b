"""ONNX without a model: rank agreement, batch shape, and errors that name their remedy."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardsvc.engine.onnx.agreement import rank_agreement
from rewardsvc.engine.onnx.backend import import_onnxruntime, padded_feed
from rewardsvc.engine.onnx.folder import DESCRIPTION_FILE, MODEL_FILE, Description, OnnxFolder
from rewardsvc.engine.onnx.shape import CPU_BATCH_TOKENS, CpuShape
from rewardsvc.engine.types import Encoded
from rewardsvc.errors import ConfigError

DESCRIPTION = Description(
    scorer="orm",
    head="sequence_classification",
    precision="float32",
    num_outputs=1,
    max_length=128,
    vocab_size=10,
    pad_id=0,
    pair=False,
    opset=18,
    source="rm@0",
)


def item(length: int) -> Encoded:
    return Encoded(
        token_ids=np.ones(length, np.int32), positions=np.asarray([length - 1], np.int32)
    )


def naive_kendall(a: list[float], b: list[float]) -> float:
    """tau-b, pair by pair."""
    agree = ties_a = ties_b = 0
    pairs = list(combinations(range(len(a)), 2))
    for i, j in pairs:
        agree += int(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]))
        ties_a += a[i] == a[j]
        ties_b += b[i] == b[j]
    return float(agree / np.sqrt((len(pairs) - ties_a) * (len(pairs) - ties_b)))


def test_agreement_equals_pair_by_pair_counting_with_ties() -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 6, 30).astype(float)
    b = a + rng.integers(-2, 3, 30)

    found = rank_agreement(a, b)

    assert found.kendall == pytest.approx(naive_kendall(a.tolist(), b.tolist()))
    unequal = [(i, j) for i, j in combinations(range(30), 2) if a[i] != a[j]]
    alike = sum(np.sign(a[i] - a[j]) == np.sign(b[i] - b[j]) for i, j in unequal)
    assert found.pairwise == pytest.approx(alike / len(unequal))
    assert found.max_difference == 2


def test_agreement_of_known_ranks() -> None:
    exact = np.asarray([1.0, 2.0, 3.0, 4.0])
    assert rank_agreement(exact, exact * 10 - 3).spearman == pytest.approx(1)
    assert rank_agreement(exact, -exact).spearman == pytest.approx(-1)
    # 1 - 6 * sum(d^2) / (n (n^2 - 1)), with one swap of neighbours
    swapped = rank_agreement(exact, np.asarray([1.0, 3.0, 2.0, 4.0]))
    assert swapped.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert swapped.pairwise == pytest.approx(5 / 6)


def test_agreement_of_scores_that_are_all_alike_is_not_a_number() -> None:
    found = rank_agreement(np.ones(5), np.arange(5.0))
    assert np.isnan([found.spearman, found.kendall, found.pairwise]).all()


@pytest.mark.parametrize("lengths", [(2, 3), (1,)])
def test_agreement_needs_two_scores_of_the_same_samples(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="both must be"):
        rank_agreement(np.ones(lengths[0]), np.ones(lengths[-1]))


def test_batches_on_a_cpu_are_small_and_hardly_padded() -> None:
    rng = np.random.default_rng(0)
    window = [item(int(length)) for length in rng.integers(10, 200, 64)]
    shape = CpuShape()

    chosen = [window[i] for i in shape.select(window, budget=16_384)]

    assert window[0] in chosen
    computed = shape.num_computed_tokens(chosen)
    assert computed <= CPU_BATCH_TOKENS
    assert sum(map(len, chosen)) >= 0.95 * computed


def test_item_longer_than_a_cpu_batch_runs_alone() -> None:
    window = [item(CPU_BATCH_TOKENS + 1), item(5), item(CPU_BATCH_TOKENS + 1)]
    assert CpuShape().select(window, budget=16_384) == [0]


def test_rows_are_padded_on_the_right_and_read_at_their_positions() -> None:
    feed = padded_feed([item(1), item(3)], pad_id=7)
    assert feed["input_ids"].tolist() == [[1, 7, 7], [1, 1, 1]]
    assert feed["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert (feed["rows"].tolist(), feed["columns"].tolist()) == ([0, 1], [0, 2])


@pytest.mark.parametrize(("device", "extra"), [("cpu", r"\[onnx\]"), ("cuda:0", r"\[onnx-gpu\]")])
def test_missing_package_names_the_extra(
    device: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=f"rewardsvc{extra}"):
        import_onnxruntime(device)


def test_package_without_cuda_names_the_other_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class CpuOnly:
        @staticmethod
        def get_available_providers() -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setitem(sys.modules, "onnxruntime", CpuOnly)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="onnx-gpu"):
        import_onnxruntime("cuda:0")


def write_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    described = DESCRIPTION.model_copy(update=changes)
    (folder / DESCRIPTION_FILE).write_text(described.model_dump_json())
    (folder / MODEL_FILE).write_bytes(bytes(100_000))
    return folder


def test_digest_changes_with_weights_and_description_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    digest = OnnxFolder.open(str(folder)).digest()
    assert OnnxFolder.open(str(write_folder(tmp_path / "b"))).digest() == digest

    weights = bytearray(100_000)
    weights[50_000:56_000] = b"x" * 6000
    (folder / MODEL_FILE).write_bytes(weights)
    assert OnnxFolder.open(str(folder)).digest() != digest
    assert OnnxFolder.open(str(write_folder(tmp_path / "b", opset=17))).digest() != digest


def test_folder_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", format_version=2)
    with pytest.raises(ConfigError, match="format_version 2"):
        OnnxFolder.open(str(folder))


def test_folder_that_is_no_export_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rewardsvc export-onnx"):
        OnnxFolder.open(str(tmp_path))


def test_description_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    (folder / DESCRIPTION_FILE).write_text('{"scorer": "orm"}')
    with pytest.raises(ConfigError, match=DESCRIPTION_FILE):
        OnnxFolder.open(str(folder))
