"""Preference models: which of two completions is better."""

from __future__ import annotations

from rewardsvc.scorers.known.outcome import REWARD_BENCH
from rewardsvc.scorers.known.rule import Rule

PAIRWISE: tuple[Rule, ...] = (
    Rule(
        name="pairrm",
        scorer="pairwise",
        models="PairRM-hf",
        architectures=("DebertaV2PairRM",),
        settings={
            "head": "markers",
            "weight_prefix": "pretrained_model",
            "source_length": 1224,
            "max_length": 2048,
            "truncation_side": "right",
        },
        source=f"{REWARD_BENCH}/pairrm.py",
        note="The source is cut to 1224 tokens, each candidate to half of what is left.",
    ),
    Rule(
        name="rlhflow-pair-pm",
        scorer="pairwise",
        models="pair-preference-model-LLaMA3-8B",
        names=("pair-preference-model*",),
        settings={
            "head": "choice",
            "choices": ["A", "B"],
            "bos": "never",
            "pair_template": "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n",
            "context_template": (
                "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n "
                "{{ message['content'] }}{% else %}\n\n<turn> assistant\n {{ message['content'] }}"
                "{% endif %}{% endfor %}\n\n\n"
            ),
        },
        source=f"{REWARD_BENCH}/slicpairpm.py",
    ),
)
