"""Tiny random models in memory, of many architectures, and the plain computation beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from tiny_models import FAMILIES, GROUPED, SHAPE, VOCAB_SIZE

from rewardsvc.engine.packing.choice import Wishes, choose_backend
from rewardsvc.engine.torch_backend import (
    HiddenStates,
    LogprobHead,
    ModuleHead,
    OwnForward,
    TorchBackend,
)
from rewardsvc.engine.types import Encoded, LogprobQuery

MAX_LENGTH = 120
WINDOW = 8
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB_SIZE,
}

CAUSAL: dict[str, Callable[..., Any]] = {
    name: FAMILIES[name] for name in ("llama", "qwen2", "qwen3", "mistral")
} | {
    "gemma": lambda **kw: transformers.GemmaConfig(**SHAPE | GROUPED | {"head_dim": 8} | kw),
    "gemma2": lambda **kw: transformers.Gemma2Config(
        **SHAPE
        | GROUPED
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 2.0,
        }
        | kw
    ),
    "gemma3": lambda **kw: transformers.Gemma3TextConfig(
        **SHAPE
        | GROUPED
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        }
        | kw
    ),
    "gpt_neox": lambda **kw: transformers.GPTNeoXConfig(**SHAPE | kw),
    "gpt2": lambda **kw: transformers.GPT2Config(
        **{"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB_SIZE, "pad_token_id": 0}
        | {"n_positions": 128, "bos_token_id": 1, "eos_token_id": 2}
        | kw
    ),
    "opt": lambda **kw: transformers.OPTConfig(
        **SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128} | kw
    ),
    "gpt_oss": lambda **kw: transformers.GptOssConfig(
        **SHAPE
        | GROUPED
        | {"head_dim": 8, "sliding_window": WINDOW, "rope_parameters": {"rope_theta": 1e4}}
        | {"num_local_experts": 4, "num_experts_per_tok": 2}
        | kw
    ),
}
"""What packs with shared prefixes."""

ENCODERS: dict[str, Callable[..., Any]] = {name: FAMILIES[name] for name in ("bert", "roberta")} | {
    "modernbert": lambda **kw: transformers.ModernBertConfig(
        **SHAPE
        | {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2, "cls_token_id": 4}
        | {"sep_token_id": 5, "bos_token_id": 4, "eos_token_id": 5, "classifier_pooling": "mean"}
        | kw
    ),
    "electra": lambda **kw: transformers.ElectraConfig(**SHAPE | {"embedding_size": 32} | kw),
}
"""What packs without."""

PADDED: dict[str, Callable[..., Any]] = {
    "deberta_v2": lambda **kw: transformers.DebertaV2Config(
        **SHAPE
        | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16}
        | kw
    ),
    "bloom": lambda **kw: transformers.BloomConfig(
        **{"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB_SIZE} | kw
    ),
}
"""What does not pack."""

ALL = CAUSAL | ENCODERS | PADDED


def make_model(family: str, auto_class: str, *, seed: int = 0, **config: Any) -> Any:
    """A random model in evaluation mode; scores of its sequences differ clearly."""
    torch.manual_seed(seed)
    settings = ALL[family](pad_token_id=0, **config) if family in PADDED else ALL[family](**config)
    options = {}
    if getattr(settings, "attn_logit_softcapping", None):
        options["attn_implementation"] = "eager"  # SDPA leaves the cap out
    model = getattr(transformers, auto_class).from_config(settings, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model.eval().requires_grad_(False)


class Case:
    """A model, its backend, and what transformers gives for one sequence at a time.

    Args:
        family: A key of `ALL`.
        kind: "orm", "prm" (two labels at several tokens) or "logprobs".
        deterministic: As in the configuration.
        dtype: Of the weights.
    """

    def __init__(
        self,
        family: str,
        kind: str,
        *,
        deterministic: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.kind = kind
        auto_class = {
            "orm": "AutoModelForSequenceClassification",
            "prm": "AutoModelForTokenClassification",
            "logprobs": "AutoModelForCausalLM",
        }[kind]
        labels = {"orm": {"num_labels": 1}, "prm": {"num_labels": 2}, "logprobs": {}}[kind]
        self.model = make_model(family, auto_class, **labels).to(dtype)
        self._plain = make_model(family, auto_class, **labels).to(dtype)
        self.backend: TorchBackend = choose_backend(
            self.model,
            self._reading(),
            device="cpu",
            wishes=Wishes(max_length=MAX_LENGTH, deterministic=deterministic),
        )

    def _reading(self) -> Any:
        if self.kind == "logprobs":
            output = self.model.get_output_embeddings()
            from rewardsvc.scorers._loading import logit_rule

            rule = logit_rule(self.model)
            return HiddenStates(
                self.model.base_model, LogprobHead(output.weight, output.bias, rule)
            )
        if self.kind == "orm" and isinstance(getattr(self.model, "score", None), torch.nn.Module):
            return HiddenStates(self.model.base_model, ModuleHead(self.model.score))
        return OwnForward(self.model)

    def item(self, ids: Sequence[int]) -> Encoded:
        """A sequence, read where this kind of scorer reads."""
        last = len(ids) - 1
        positions = {
            "orm": [last],
            "prm": [*range(0, last, 3), last],
            "logprobs": [*range(last // 2, last)],
        }[self.kind]
        return Encoded(
            token_ids=np.asarray(ids, np.int32),
            positions=np.asarray(positions, np.int32),
            query=LogprobQuery(entropy=True) if self.kind == "logprobs" else None,
        )

    @torch.inference_mode()
    def expected(self, item: Encoded) -> np.ndarray[Any, Any]:
        """transformers' own numbers for the sequence by itself."""
        ids = torch.from_numpy(item.token_ids).long()[None]
        logits = self._plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        if self.kind == "logprobs":
            logprobs = logits[0].log_softmax(-1)
            chosen = logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0]
            entropy = torch.special.entr(logprobs.exp()).sum(-1)
            at = torch.from_numpy(item.positions).long()
            return torch.stack([chosen[at], entropy[at]], -1).numpy()
        if logits.dim() == 2:
            return logits.numpy()
        return logits[0, torch.from_numpy(item.positions).long()].numpy()
