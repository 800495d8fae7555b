"""Preference models: the published comparison, and what a group or a reference makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import published
import pytest
import tiny_models
import torch
import transformers
from fixtures_models import StartScorer
from published import publish, tensors
from safetensors.torch import load_file, save_file

from rewardsvc.errors import ConfigError, ItemError, ItemErrorCode
from rewardsvc.scorers.pairwise import PairwiseConfig, _opponents
from rewardsvc.scoring import Message, Sample

QUESTION = "How many eggs a day?"
ANSWERS = ("The duck lays 16 eggs.", "None.", "It is 9 * 2 = 18, so the answer is 18.")
TOLERANCE = 1e-4
MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def group(*completions: str, prompt: Any = QUESTION) -> list[Sample]:
    return [Sample(prompt=prompt, completion=completion) for completion in completions]


@pytest.fixture(scope="module")
def pair_rm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As llm-blender/PairRM-hf: a DeBERTa with a head on markers."""
    folder = tmp_path_factory.mktemp("models") / "PairRM-hf"
    made = published.tokenizer("word-piece", MARKERS)
    made.cls_token, made.sep_token = "<s>", "</s>"
    config = transformers.DebertaV2Config(
        **tiny_models.SHAPE | {"vocab_size": len(made), "max_position_embeddings": 512},
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
    )
    torch.manual_seed(3)
    model = transformers.DebertaV2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    head = tensors(
        head_layer__1__weight=(32, 64),
        head_layer__1__bias=(32,),
        head_layer__4__weight=(2, 32),
        head_layer__4__bias=(2,),
    )
    file = folder / "model.safetensors"
    held = {f"pretrained_model.{name}": t for name, t in load_file(file).items()}
    save_file(held | head, file, metadata={"format": "pt"})
    ids = [made.convert_tokens_to_ids(marker) for marker in MARKERS]
    published.state(
        folder,
        architectures=["DebertaV2PairRM"],
        n_tasks=2,
        drop_out=0.05,
        sep_token_id=made.sep_token_id,
        source_prefix_id=ids[0],
        cand1_prefix_id=ids[1],
        cand2_prefix_id=ids[2],
    )
    return folder


def pair_rm_logit(folder: Path, source: str, first: str, second: str) -> float:
    """PairRM's forward, as its class writes it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.encode(m + t) for m, t in zip(MARKERS, (source, first, second), strict=True)]
    flat = torch.tensor([[token for part in ids for token in part]])
    model = published.base_model(folder, "pretrained_model.")
    head = load_file(folder / "model.safetensors")
    with torch.inference_mode():
        states = model(input_ids=flat).last_hidden_state[0]
    at = [states[(flat[0] == tokenizer.convert_tokens_to_ids(m)).nonzero()[0, 0]] for m in MARKERS]

    def worth(candidate: torch.Tensor) -> torch.Tensor:
        both = torch.cat([at[0], candidate])
        inner = (head["head_layer.1.weight"] @ both + head["head_layer.1.bias"]).tanh()
        return head["head_layer.4.weight"] @ inner + head["head_layer.4.bias"]

    return float((worth(at[1]) - worth(at[2])).mean())


@pytest.fixture(scope="module")
def pair_pm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(
        tmp_path_factory.mktemp("models") / "pair-preference-model-LLaMA3-8B",
        "llama",
        made=published.llama3(),
        auto_class="AutoModelForCausalLM",
    )


def pair_pm_logit(folder: Path, turns: list[dict[str, str]], first: str, second: str) -> float:
    """The logit of "A" less that of "B", as RLHFlow's evaluation computes them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    context = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        chat_template=(
            "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n "
            "{{ message['content'] }}{% else %}\n\n<turn> assistant\n {{ message['content'] }}"
            "{% endif %}{% endfor %}\n\n\n"
        ),
    )
    asked = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
    text = tokenizer.apply_chat_template([{"role": "user", "content": asked}], tokenize=False)
    ids = tokenizer.encode(text.replace(tokenizer.bos_token, ""), add_special_tokens=False)
    (a,), (b,) = (tokenizer.encode(name, add_special_tokens=False) for name in "AB")
    last = published.logits(folder, ids)[-1]
    return float(last[a] - last[b])


async def test_pairrm_averages_both_orders(pair_rm: Path, start_scorer: StartScorer) -> None:
    pairwise = await start_scorer("pairwise", model=pair_rm)
    scores = await pairwise.score(group(*ANSWERS[:2]))
    ab = pair_rm_logit(pair_rm, QUESTION, *ANSWERS[:2])
    ba = pair_rm_logit(pair_rm, QUESTION, *ANSWERS[1::-1])
    chance = (sigmoid(ab) + 1 - sigmoid(ba)) / 2
    assert scores[0].value == pytest.approx(chance, abs=TOLERANCE)
    assert scores[1].value == pytest.approx(1 - chance, abs=TOLERANCE)
    assert scores[0].components["margin"] == pytest.approx((ab - ba) / 2, abs=TOLERANCE)


async def test_pairrm_reads_chats_as_it_was_trained(
    pair_rm: Path, start_scorer: StartScorer
) -> None:
    prompt = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    source = (
        "Finish the following coversation in each i-th turn by filling in <Response i> with your "
        "response.USER: a\nAssistant: <Response 1>\nUSER: c\nAssistant: <Response 2>"
    )
    shown = [f"<Response 1>: b\n<Response 2>: {answer}" for answer in ANSWERS[:2]]
    ab, ba = pair_rm_logit(pair_rm, source, *shown), pair_rm_logit(pair_rm, source, *shown[::-1])
    pairwise = await start_scorer("pairwise", model=pair_rm)
    first, _ = await pairwise.score(group(*ANSWERS[:2], prompt=prompt))
    assert first.components["margin"] == pytest.approx((ab - ba) / 2, abs=TOLERANCE)
    odd = (Message("system", "x"), Message("user", "a"))
    bad, _ = await pairwise.score(group(*ANSWERS[:2], prompt=odd))
    assert "system, user" in bad.error.message


async def test_pairrm_cuts_texts_to_their_share(pair_rm: Path, start_scorer: StartScorer) -> None:
    options = {"max_length": 60, "source_length": 20}
    pairwise = await start_scorer("pairwise", model=pair_rm, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair_rm)
    question, answer = QUESTION * 8, ANSWERS[2] * 5
    first, _ = await pairwise.score(group(answer, "None.", prompt=question))

    def kept(marker: str, text: str, limit: int) -> list[int]:
        return list(tokenizer.encode(marker + text, max_length=limit, truncation=True))

    source = kept(MARKERS[0], question, 20)
    rest = (60 - len(source)) // 2
    encoded = pairwise._pair_head.encode(
        next(iter([_comparison(question, answer, "None.")])), pairwise.encoder
    )
    expected = source + kept(MARKERS[1], answer, rest) + kept(MARKERS[2], "None.", rest)
    assert encoded.token_ids.tolist() == expected
    assert first.error is None
    strict = await start_scorer("pairwise", model=pair_rm, truncation_side="error", **options)
    bad, _ = await strict.score(group(answer, "None."))
    assert bad.error.code is ItemErrorCode.TOO_LONG


def _comparison(prompt: str, first: str, second: str) -> Any:
    from rewardsvc.scorers._pairs import Comparison

    return Comparison(prompt, first, second)


async def test_marker_that_a_text_types_is_none(pair_rm: Path, start_scorer: StartScorer) -> None:
    pairwise = await start_scorer("pairwise", model=pair_rm)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair_rm)
    pair = _comparison(f"q {MARKERS[1]}", f"a {MARKERS[2]} </s>", f"{MARKERS[0]} b")
    encoded = pairwise._pair_head.encode(pair, pairwise.encoder)
    for marker, place in zip(MARKERS, encoded.positions, strict=True):
        token = tokenizer.convert_tokens_to_ids(marker)
        assert (encoded.token_ids == token).nonzero()[0].tolist() == [place]
    assert (encoded.token_ids == tokenizer.sep_token_id).sum() == 3


async def test_pair_preference_model_is_the_softmax_of_a_and_b(
    pair_pm: Path, start_scorer: StartScorer
) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    pairwise = await start_scorer("pairwise", model=pair_pm)
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    first, second = await pairwise.score(group(*ANSWERS[:2], prompt=prompt))
    ab = pair_pm_logit(pair_pm, turns, *ANSWERS[:2])
    ba = pair_pm_logit(pair_pm, turns, *ANSWERS[1::-1])
    assert first.value == pytest.approx((sigmoid(ab) + sigmoid(-ba)) / 2, abs=TOLERANCE)
    assert second.value == pytest.approx(1 - first.value, abs=TOLERANCE)
    encoded = pairwise._pair_head.encode(_comparison(QUESTION, "a", "b"), pairwise.encoder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair_pm)
    assert tokenizer.bos_token_id not in encoded.token_ids.tolist()


async def test_group_value_is_the_mean_over_all_others(
    pair_pm: Path, start_scorer: StartScorer
) -> None:
    pairwise = await start_scorer("pairwise", model=pair_pm)
    other = group("yes", "no", prompt="Another question?")
    scores = await pairwise.score([*group(*ANSWERS), *other])
    chances = {}
    for i, a in enumerate(ANSWERS):
        for j, b in enumerate(ANSWERS):
            pair = await pairwise.score(group(a, b))
            chances[i, j] = pair[0].value
    for i in range(3):
        mean = sum(chances[i, j] for j in range(3) if j != i) / 2
        assert scores[i].value == pytest.approx(mean, abs=TOLERANCE)
        assert scores[i].components["opponents"] == 2
    assert chances[0, 0] == 0.5
    assert sum(score.value for score in scores[:3]) == pytest.approx(1.5, abs=TOLERANCE)
    assert scores[3].components["opponents"] == 1


async def test_reference_is_what_a_sample_is_compared_with(
    pair_pm: Path, start_scorer: StartScorer
) -> None:
    pairwise = await start_scorer("pairwise", model=pair_pm, against="reference")
    alone, same, without = await pairwise.score(
        [
            Sample(prompt=QUESTION, completion=ANSWERS[0], answer=ANSWERS[1]),
            Sample(prompt=QUESTION, completion=ANSWERS[1], answer=ANSWERS[1]),
            Sample(prompt=QUESTION, completion=ANSWERS[0]),
        ]
    )
    turns = [{"role": "user", "content": QUESTION}]
    ab = pair_pm_logit(pair_pm, turns, *ANSWERS[:2])
    ba = pair_pm_logit(pair_pm, turns, *ANSWERS[1::-1])
    assert alone.value == pytest.approx((sigmoid(ab) + sigmoid(-ba)) / 2, abs=TOLERANCE)
    assert same.value == 0.5
    assert without.error.code is ItemErrorCode.BAD_REFERENCE


async def test_group_of_one_and_bad_completions_fail_alone(
    pair_pm: Path, start_scorer: StartScorer
) -> None:
    pairwise = await start_scorer("pairwise", model=pair_pm)
    lonely, ids, first, second, long = await pairwise.score(
        [
            Sample(prompt="alone", completion="a"),
            Sample(prompt=QUESTION, completion=(1, 2)),
            *group(ANSWERS[0], ANSWERS[1], "long " * 600),
        ]
    )
    assert lonely.error.code is ItemErrorCode.INVALID_SAMPLE
    assert "two completions of a prompt in one call" in lonely.error.message
    assert "token ids" in ids.error.message
    assert first.ok
    assert second.components["opponents"] == 1
    assert long.error.code is ItemErrorCode.TOO_LONG


@pytest.mark.parametrize(("size", "num"), [(2, None), (5, None), (5, 2), (6, 3), (4, 9), (7, 1)])
def test_every_two_meet_once_and_all_meet_alike_often(size: int, num: int | None) -> None:
    pairs = list(_opponents(range(size), num))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    counts = [sum(i in pair for pair in pairs) for i in range(size)]
    assert counts == [min(2 * (num or size), size - 1)] * size


@pytest.mark.parametrize("against", ["group", "reference"])
async def test_parts_of_a_group_are_not_to_be_sent_again(
    against: str, pair_rm: Path, start_scorer: StartScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = await start_scorer("pairwise", model=pair_rm, against=against)
    out_of_memory = ItemError(ItemErrorCode.MODEL_FAILURE, "out of memory", retryable=True)

    async def failing(inputs: list[Any], encode: Any) -> list[ItemError]:
        return [out_of_memory] * len(inputs)

    monkeypatch.setattr(scorer, "_submit", failing)
    samples = [Sample(prompt=QUESTION, completion=answer, answer="Four.") for answer in ANSWERS]
    scores = await scorer.score(samples)
    assert [score.error.message for score in scores] == ["out of memory"] * 3
    assert {score.error.retryable for score in scores} == {against == "reference"}


async def test_unknown_model_says_what_to_set(tmp_path: Path, start_scorer: StartScorer) -> None:
    folder = tiny_models.write_causal_lm(tmp_path / "lm")
    with pytest.raises(ConfigError, match="head: missing"):
        await start_scorer("pairwise", model=folder)
    judge = await start_scorer(
        "pairwise",
        model=folder,
        head="choice",
        choices=["a", "b"],
        pair_template="{context}{a}+{b}",
        context_template="{{ messages[0]['content'] }}",
        generation_prompt=True,
    )
    first, second = await judge.score(group("c", "d", prompt="e"))
    assert first.value + second.value == pytest.approx(1.0)


def test_pair_template_needs_both_and_the_context() -> None:
    with pytest.raises(ValueError, match="must contain"):
        PairwiseConfig.model_validate({"type": "pairwise", "model": "m", "pair_template": "{a}"})
