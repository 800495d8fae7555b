"""`rewardsvc bench` without a server: samples, metrics pages, percentiles, chart, roofline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rewardsvc.bench.client import OUTCOME, Outcomes
from rewardsvc.bench.measure import Row, summarise
from rewardsvc.bench.plot import throughput_latency_svg
from rewardsvc.bench.report import write_json
from rewardsvc.bench.roofline import Machine, attainable_tokens, matrix_parameters, measure
from rewardsvc.bench.server_view import between, parse_page
from rewardsvc.bench.workload import (
    Lengths,
    Shape,
    Unit,
    calls,
    parse_steps,
    recorded_samples,
    synthetic_samples,
)
from rewardsvc.v1 import reward_pb2 as pb

UNAVAILABLE = 14


def draws(text: str, count: int = 4000) -> list[int]:
    rng = np.random.default_rng(0)
    return [Lengths.parse(text).draw(rng) for _ in range(count)]


def test_lengths_have_the_distribution_that_was_asked_for() -> None:
    assert set(draws("7")) == {7}
    uniform = draws("uniform:3:9")
    assert (min(uniform), max(uniform)) == (3, 9)
    lognormal = draws("lognormal:102:0.8")
    assert np.mean(lognormal) == pytest.approx(102, rel=0.05)
    assert np.log(lognormal).std() == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize(
    "text", ["", "x", "-3", "uniform:9:3", "uniform:1", "lognormal:0:1", "nan", "normal:1:2"]
)
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        Lengths.parse(text)


@pytest.mark.parametrize("text", ["", "0", "1,-2", "1,x", "inf"])
def test_loads_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--rate"):
        parse_steps(text, "--rate")


def shape(**changes: Any) -> Shape:
    return Shape(
        **{"prompt": Lengths.parse("5"), "completion": Lengths.parse("uniform:1:4")} | changes
    )


def test_groups_share_their_prompt_and_nothing_else() -> None:
    source = synthetic_samples(shape(unit=Unit.TOKENS, group_size=4, vocab_size=50))
    made = [next(source) for _ in range(12)]
    prompts = [sample.prompt_ids.ids for sample, _ in made]
    assert len(set(prompts)) == 3
    assert prompts == sorted(prompts, key=prompts.index), "a group's samples follow each other"
    assert len({sample.completion_ids.ids for sample, _ in made}) > 6
    ids = np.frombuffer(b"".join(prompts), "<i4")
    assert 0 <= ids.min() <= ids.max() < 50
    for sample, num_tokens in made:
        assert num_tokens == (len(sample.prompt_ids.ids) + len(sample.completion_ids.ids)) // 4


def test_samples_are_cut_to_the_greatest_length() -> None:
    source = synthetic_samples(
        shape(unit=Unit.TOKENS, completion=Lengths.parse("100"), max_length=20)
    )
    assert next(source)[1] == 20


def test_the_same_seed_gives_the_same_calls_and_another_gives_others() -> None:
    def made(seed: int) -> list[bytes]:
        source = synthetic_samples(shape(seed=seed))
        return [c.request for c in calls("rm", source, num_calls=5, per_call=2)]

    assert made(1) == made(1)
    assert not set(made(1)) & set(made(2))


def test_recorded_samples_are_sent_again_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    rows = [
        {"prompt": "a", "completion": "b", "answer": "c", "metadata": {"n": 1}},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": "yes"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")

    made = calls("rm", recorded_samples(file), num_calls=2, per_call=2)

    assert made[0].request == made[1].request
    request = pb.ScoreRequest.FromString(made[0].request)
    assert request.scorer == "rm"
    first, second = request.samples
    assert (first.completion_text, first.answer) == ("b", "c")
    assert second.prompt_messages.messages[0].content == "hi"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"completion": 1}', "not json"])
def test_file_without_samples_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"samples\.jsonl"):
        recorded_samples(file)


BEFORE = """
# HELP rewardsvc_tokens_total Tokens by kind
rewardsvc_tokens_total{kind="asked",model="rm"} 100.0
rewardsvc_tokens_total{kind="computed",model="rm"} 120.0
rewardsvc_forward_seconds_sum{model="rm"} 1.0
rewardsvc_forward_seconds_count{model="rm"} 10.0
"""
AFTER = """
rewardsvc_tokens_total{kind="asked",model="rm"} 900.0
rewardsvc_tokens_total{kind="computed",model="rm"} 1120.0
rewardsvc_tokens_total{kind="asked",model="other"} 200.0
rewardsvc_tokens_total{kind="computed",model="other"} 0.0
rewardsvc_forward_seconds_sum{model="rm"} 3.0
rewardsvc_forward_seconds_count{model="rm"} 30.0
rewardsvc_batch_items_sum{model="rm"} 60.0
rewardsvc_queue_wait_seconds_sum{model="rm"} 0.4
rewardsvc_queue_wait_seconds_count{model="rm"} 20.0
rewardsvc_reused_samples_total{model="rm",source="cache"} 20.0
damaged line
"""


def test_server_view_is_what_grew_between_two_looks() -> None:
    view = between(parse_page(BEFORE), parse_page(AFTER), seconds=4.0)
    assert (view.asked_tokens, view.computed_tokens) == (1000, 1000)
    assert view.num_batches == 20
    assert view.batch_items == 3
    assert view.forward_ms == pytest.approx(100)
    assert view.queue_ms == pytest.approx(20)
    assert view.busy == pytest.approx(0.5)
    assert view.reused_share == pytest.approx(0.25)


def test_fewer_computed_tokens_are_prefix_hits_and_more_are_padding() -> None:
    def view(asked: int, computed: int) -> tuple[float, float]:
        page = parse_page(
            f'rewardsvc_tokens_total{{kind="asked"}} {asked}\n'
            f'rewardsvc_tokens_total{{kind="computed"}} {computed}\n'
        )
        found = between({}, page, 1.0)
        return found.padding_share, found.prefix_hit_share

    assert view(100, 125) == (pytest.approx(0.2), 0)
    assert view(100, 25) == (0, pytest.approx(0.75))


def outcomes(*rows: tuple[float, float, int, int, int, int]) -> Outcomes:
    return np.asarray(list(rows), OUTCOME)


def test_latency_counts_from_when_a_call_was_due_and_warm_up_does_not_count() -> None:
    rows = [(10.0 + i / 100, 10.0 + i / 100 + (i + 1) / 1000, 0, 2, 0, 50) for i in range(100)]
    early = (9.0, 9.9, 0, 2, 0, 50)
    late = (10.5, 99.0, 0, 2, 0, 50)  # due in the window, answered long after it
    refused = (10.2, 10.3, UNAVAILABLE, 2, 0, 50)

    row = summarise(outcomes(*rows, early, late, refused), load=4, window=(10.0, 12.0))

    assert (row.num_calls, row.num_ok) == (102, 101)
    assert row.statuses == {"UNAVAILABLE": 1}
    assert row.p50_ms == pytest.approx(51, abs=1)
    assert row.p99_ms == pytest.approx(100, abs=2)
    assert row.samples_per_s == pytest.approx(200 / 2)
    assert row.tokens_per_s == pytest.approx(5000 / 2)


def test_samples_with_errors_are_no_throughput() -> None:
    row = summarise(outcomes((0.1, 0.2, 0, 4, 3, 0)), load=1, window=(0.0, 1.0))
    assert (row.samples_per_s, row.item_errors) == (1, 3)
    assert math.isnan(row.tokens_per_s)


def test_row_without_an_answer_has_no_latency() -> None:
    row = summarise(outcomes((0.1, 0.2, UNAVAILABLE, 1, 0, 0)), load=1, window=(0.0, 1.0))
    assert row.num_ok == 0
    assert math.isnan(row.p99_ms)


def test_roofline_is_memory_bound_for_small_batches_and_compute_bound_for_large_ones() -> None:
    machine = Machine(device="cpu", dtype="float32", gemm_flops=1e11, bandwidth=2e10)
    parameters = 1e6
    # 4 bytes a weight, read once for a batch of one token: 2e10 / 4 / 1e6 a second.
    assert attainable_tokens(machine, parameters, 1) == pytest.approx(5000)
    assert attainable_tokens(machine, parameters, 1e6) == pytest.approx(1e11 / 2e6)


def test_machine_is_measured() -> None:
    machine = measure("cpu", "float32", small=True)
    assert 1e8 < machine.gemm_flops < 1e14
    assert 1e8 < machine.bandwidth < 1e13


def test_parameters_are_those_of_matrices_that_multiply(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {
        "model.embed_tokens.weight": torch.zeros(100, 8),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(16, 8),
        "model.norm.weight": torch.zeros(8),
        "score.weight": torch.zeros(1, 8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert matrix_parameters(tmp_path) == 16 * 8 + 8


def row(load: float, throughput: float, p99: float) -> Row:
    return Row(
        load=load, num_calls=9, num_ok=9, samples_per_s=throughput,
        mean_ms=p99 / 3, p50_ms=p99 / 4, p95_ms=p99 / 2, p99_ms=p99,
    )  # fmt: skip


def test_chart_is_well_formed_and_escapes_names() -> None:
    rows = [row(1, 10, 5), row(8, 70, 9), row(64, 90, 200)]
    svg = throughput_latency_svg(rows, title="<rm> & co", load_name="in flight")
    assert svg is not None
    root = ElementTree.fromstring(svg)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3, 3]
    assert "<rm> & co" in "".join(root.itertext())


def test_chart_of_nothing_is_none() -> None:
    assert (
        throughput_latency_svg([Row(load=1, num_calls=2, num_ok=0)], title="", load_name="") is None
    )


def test_json_has_null_for_what_is_unknown(tmp_path: Path) -> None:
    write_json(
        tmp_path / "out.json", [Row(load=1, num_calls=2, num_ok=0)], options={}, machine=None
    )
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["rows"][0]["p99_ms"] is None
    assert document["rows"][0]["num_calls"] == 2
