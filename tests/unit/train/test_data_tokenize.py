"""Text becomes token ids as generation sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rewardsvc.policy_client.train.data import DataError
from rewardsvc.policy_client.train.data.characters import character_tokenizer
from rewardsvc.policy_client.train.data.tokenize import (
    TokenizedPair,
    pad_right,
    tokenize_pair,
    tokenize_prompt,
    tokenize_whole,
)

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz[]0123456789 \n"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer(ALPHABET)


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    return tokenizer


def test_characters_round_trip_through_disk(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a  b\n\nc1"
    assert loaded.decode(loaded.encode(text)) == text
    assert len(loaded.encode(text)) == len(text)
    assert loaded.encode("aZ")[1] == loaded.unk_token_id
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)


def test_plain_pair_is_prompt_completion_and_one_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = tokenize_pair(tokenizer, "ab", "cd")
    assert pair.num_prompt_tokens == 2
    assert tokenizer.decode(pair.input_ids) == "abcd<eos>"
    again = tokenize_pair(tokenizer, "ab", "cd<eos>")
    assert again == pair
    assert tokenizer.decode(tokenize_pair(tokenizer, "ab", "cd", add_eos=False).input_ids) == "abcd"


@pytest.mark.parametrize("prompt", ["ab", "<bos>ab"])
def test_bos_is_never_doubled(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    ids = tokenize_prompt(adds_bos(tokenizer), prompt)
    assert tokenizer.decode(ids) == "<bos>ab"


def test_tokenizer_without_bos_of_its_own_gets_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenize_prompt(tokenizer, "ab")) == "ab"


def test_chat_pair_masks_everything_before_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    adds_bos(tokenizer).chat_template = CHAT
    messages = [{"role": "user", "content": "hi"}]
    for completion in ("yo", [{"role": "assistant", "content": "yo"}]):
        pair = tokenize_pair(tokenizer, messages, completion)
        assert tokenizer.decode(pair.input_ids[: pair.num_prompt_tokens]) == (
            "<bos>[user]hi<eos>[assistant]"
        )
        assert tokenizer.decode(pair.input_ids[pair.num_prompt_tokens :]) == "yo<eos>"
    assert tokenize_prompt(tokenizer, messages) == pair.input_ids[: pair.num_prompt_tokens]


def test_messages_without_a_chat_template_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="chat_template"):
        tokenize_prompt(tokenizer, [{"role": "user", "content": "hi"}])


def test_template_that_rewrites_the_prompt_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + CHAT
    with pytest.raises(DataError, match="renders the prompt differently"):
        tokenize_pair(tokenizer, [{"role": "user", "content": "hi"}], "yo")


def test_whole_text_has_the_special_tokens_of_the_tokenizer_once(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    adds_bos(tokenizer).chat_template = CHAT
    user = [{"role": "user", "content": "hi"}]
    for prompt, completion, expected in (
        ("ab", "cd", "<bos>abcd"),
        ("<bos>ab", "", "<bos>ab"),
        (user, "yo", "<bos>[user]hi<eos>[assistant]yo<eos>"),
        ("", [{"role": "assistant", "content": "yo"}], "<bos>[assistant]yo<eos>"),
    ):
        ids = tokenize_whole(tokenizer, prompt, completion)
        assert tokenizer.decode(ids) == expected
        with_eos = tokenizer.decode(tokenize_whole(tokenizer, prompt, completion, add_eos=True))
        assert with_eos == expected.removesuffix("<eos>") + "<eos>"


def test_padding_is_on_the_right_and_never_part_of_a_mask() -> None:
    batch = pad_right(
        [
            TokenizedPair(input_ids=[5, 6, 7], num_prompt_tokens=1),
            TokenizedPair(input_ids=[8], num_prompt_tokens=1),
        ],
        pad_token_id=9,
        device=torch.device("cpu"),
    )
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.completion_mask.tolist() == [[False, True, True], [False, False, False]]
