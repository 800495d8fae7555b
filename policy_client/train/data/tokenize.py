"""Text to token ids, the way that the model will see it when it is used.

For a policy, prompt and completion are tokenised apart and joined: at generation time the prompt is
tokenised alone, and a merge across the seam would be a token that the policy can never produce. For
a reward model they are one text, because that is what a service is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rewardsvc.policy_client.train.data.examples import DataError, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPair:
    """A prompt and a completion in one sequence.

    Attributes:
        input_ids: Token ids of both.
        num_prompt_tokens: How many of them are the prompt.
    """

    input_ids: list[int]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """Sequences padded on the right. B: sequences, T: tokens of the longest.

    Attributes:
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T], 1 at real tokens.
        completion_mask: bool [B, T], True at tokens of the completion.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """What the model's forward pass takes."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Sequences one behind the other in a single row. S: tokens of all of them.

    Positions start again with each sequence. From that alone, without an attention mask,
    transformers' masks tell the sequences apart.

    Attributes:
        input_ids: int64 [1, S].
        position_ids: int64 [1, S], from 0 in each sequence.
        completion_mask: bool [1, S], True at tokens of the completions.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    completion_mask: torch.Tensor

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """What the model's forward pass takes."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids}


def prompt_to_text(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> str:
    """The prompt as the model sees it; messages through the chat template, up to the answer.

    Raises:
        DataError: If the prompt is messages and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return prompt
    return _render(tokenizer, prompt, add_generation_prompt=True)


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Token ids of a prompt, with at most one BOS, and without an EOS.

    Raises:
        DataError: If the prompt is messages and the tokenizer has no chat template.
    """
    ids = _encode(tokenizer, prompt_to_text(tokenizer, prompt))
    if isinstance(prompt, str):
        bos = tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and _adds_bos(tokenizer):
            return [bos, *ids]
    return ids


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text, *, add_eos: bool = True
) -> TokenizedPair:
    """Token ids of a prompt and its completion.

    Args:
        tokenizer: With a chat template if either is messages.
        prompt: Text or messages.
        completion: Text or messages.
        add_eos: End plain completions with EOS. Chat templates end a turn by themselves.

    Raises:
        DataError: If the chat template is missing or rewrites the prompt once it has an answer.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        prompt_ids = tokenize_prompt(tokenizer, prompt)
        completion_ids = _encode(tokenizer, completion)
        eos = tokenizer.eos_token_id
        if add_eos and eos is not None and completion_ids[-1:] != [eos]:
            completion_ids.append(eos)
    else:
        asked, answered = _as_messages(prompt, "user"), _as_messages(completion, "assistant")
        before = _render(tokenizer, asked, add_generation_prompt=True)
        whole = _render(tokenizer, [*asked, *answered], add_generation_prompt=False)
        if not whole.startswith(before):
            raise DataError(
                "tokenizer.chat_template: renders the prompt differently once the answer follows "
                f"it, so the two cannot be told apart; prompt {before!r}, both {whole!r}"
            )
        prompt_ids = _encode(tokenizer, before)
        completion_ids = _encode(tokenizer, whole[len(before) :])
    return TokenizedPair(input_ids=prompt_ids + completion_ids, num_prompt_tokens=len(prompt_ids))


def tokenize_whole(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text, *, add_eos: bool = False
) -> list[int]:
    """Token ids of prompt and completion as one text: what the service's `orm` makes of a sample.

    Plain text gets the special tokens that the tokenizer adds by itself, such as BERT's; a chat has
    those of its template. BOS is never doubled.

    Args:
        tokenizer: With a chat template if either is messages.
        prompt: Text or messages.
        completion: Text or messages.
        add_eos: End with EOS where there is none; serve the model with `append_eos: true` then.

    Raises:
        DataError: If there are messages and no chat template.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        ids = list(tokenizer.encode(prompt + completion))
    else:
        asked = _as_messages(prompt, "user") if prompt else []
        messages = [*asked, *_as_messages(completion, "assistant")]
        ids = _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=False))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if add_eos and eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
    return ids


def pad_right(
    pairs: Sequence[TokenizedPair], *, pad_token_id: int, device: torch.device
) -> PaddedBatch:
    """Pads sequences to the longest of them."""
    length = max(len(pair.input_ids) for pair in pairs)
    input_ids = torch.full((len(pairs), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(pairs), length), dtype=torch.int64)
    completion_mask = torch.zeros((len(pairs), length), dtype=torch.bool)
    for row, pair in enumerate(pairs):
        size = len(pair.input_ids)
        input_ids[row, :size] = torch.tensor(pair.input_ids)
        attention_mask[row, :size] = 1
        completion_mask[row, pair.num_prompt_tokens : size] = True
    return PaddedBatch(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        completion_mask=completion_mask.to(device),
    )


def pack(pairs: Sequence[TokenizedPair], *, device: torch.device) -> PackedBatch:
    """Packs sequences in order; no token is padding. Each has a prompt of at least one token."""
    ids = [token for pair in pairs for token in pair.input_ids]
    positions = [position for pair in pairs for position in range(len(pair.input_ids))]
    is_completion = [
        position >= pair.num_prompt_tokens
        for pair in pairs
        for position in range(len(pair.input_ids))
    ]
    return PackedBatch(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        completion_mask=torch.tensor([is_completion], device=device),
    )


def _as_messages(text: Text, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any
) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            "tokenizer.chat_template: none, and the data has messages; "
            "use a tokenizer with a chat template, or plain text"
        )
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer starts plain text with BOS by itself."""
    return list(tokenizer.encode("a"))[:1] == [tokenizer.bos_token_id]
