"""States of completion tokens, with each prompt computed once however many completions it has.

The prompts of a batch run first, left-padded, each different one once. Their keys and values are
then given to every completion of the prompt, and the completions run, right-padded. Gradients flow
back through the keys and values into the prompts: the result is that of separate sequences, and a
group of G completions costs one prompt in place of G.

Under causal attention no real token sees the padding on the right, so it needs no mask.

Legend: N completions, T tokens of the longest one, M completion tokens in all, U different prompts,
W tokens of the longest one, D width of an output, S = N * T slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardsvc.policy_client.train.online.kv_cache import cache_argument, new_cache, select_rows
from rewardsvc.policy_client.train.online.linears import fast_linears
from rewardsvc.policy_client.train.online.padding import left_pad
from rewardsvc.policy_client.train.online.recompute import PromptCache, is_recomputed
from rewardsvc.policy_client.train.online.sequences import Sequences
from rewardsvc.policy_client.train.sharding import has_shards


def completion_outputs(
    model: nn.Module, sequences: Sequences, output_of: Callable[..., Tensor]
) -> Tensor:
    """[M, D]: the model's output at the positions that predict the M completion tokens.

    Args:
        model: A causal model of transformers, or the trunk of one.
        sequences: Prompts and completions, on the model's device.
        output_of: What to take of the model's outputs, such as the last hidden states [rows,
            tokens, D].
    """
    with fast_linears(model):
        return _completion_outputs(model, sequences, output_of)


def _completion_outputs(
    model: nn.Module, sequences: Sequences, output_of: Callable[..., Tensor]
) -> Tensor:
    device = sequences.completion_ids.device
    number_of = {prompt: u for u, prompt in enumerate(dict.fromkeys(sequences.prompts))}
    prompt_of_N = torch.tensor([number_of[prompt] for prompt in sequences.prompts], device=device)
    prompts = left_pad(list(number_of), sequences.pad_id, device)
    # Layers that are computed again ask their cache again.
    again = torch.is_grad_enabled() and is_recomputed(model)
    assert isinstance(model, PreTrainedModel)
    cache = PromptCache(model) if again else new_cache(model)
    output_UWD = output_of(
        model(
            input_ids=prompts.ids,
            attention_mask=prompts.mask,
            position_ids=prompts.positions,
            **cache_argument(model, cache),
            use_cache=True,
        )
    )
    output_N1D = output_UWD[prompt_of_N, -1:]
    width = max(sequences.completion_lengths)
    ids_NT, mask_NT = sequences.completion_ids, sequences.completion_mask[:, :width]
    if width == 1:
        if not has_shards(model):
            return output_N1D[mask_NT]
        # Weights that are divided come together for all processes at once, and others have longer
        # completions: this one runs as often as they, on a token that nobody asks for.
        width, ids_NT, mask_NT = 2, ids_NT[:, :1], F.pad(mask_NT, (0, 1))
    if isinstance(cache, PromptCache):
        cache = cache.for_completions(prompt_of_N)
    else:
        select_rows(cache, prompt_of_N)
    # The last token of a completion predicts nothing here.
    ids_NT = ids_NT[:, : width - 1]
    mask = None
    if prompts.mask is not None:
        mask = torch.cat([prompts.mask[prompt_of_N], torch.ones_like(mask_NT[:, 1:])], 1)
    offsets_T = torch.arange(width - 1, device=device)
    output_NTD = output_of(
        model(
            input_ids=ids_NT,
            attention_mask=mask,
            position_ids=prompts.lengths[prompt_of_N][:, None] + offsets_T[None],
            **cache_argument(model, cache),
            use_cache=True,
        )
    )
    # Selected by number: the backward pass of a mask adds up number by number, in one thread.
    outputs_SD = torch.cat([output_N1D, output_NTD], 1).flatten(0, 1)
    return outputs_SD.index_select(0, mask_NT.flatten().nonzero()[:, 0])
