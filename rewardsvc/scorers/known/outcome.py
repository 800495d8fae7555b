"""Outcome reward models: one number for a conversation.

All of them are read at the last attended token. Where the original looks for the first pad id, it
errs on texts that contain that id; that is not followed.
"""

from __future__ import annotations

import json

from rewardsvc.scorers.known.rule import FromConfig, Rule

LLAMA3_TURN = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA2_TURN = "<end_of_turn>\n<start_of_turn>model\n"

STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."

REWARD_BENCH = "https://github.com/allenai/reward-bench/blob/main/rewardbench/models"


CONTENT = "{{ m['content'] }}"


def turns(user: str, assistant: str, between: str = "") -> str:
    """A chat template of plain turns, with `between` between them."""
    # As an expression: Jinja would swallow a newline that stands behind a tag.
    last = f"{{% if not loop.last %}}{{{{ {json.dumps(between)} }}}}{{% endif %}}"
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        f"{assistant}{{% else %}}{user}{{% endif %}}{last}{{% endfor %}}"
    )


OUTCOME: tuple[Rule, ...] = (
    Rule(
        name="skywork-reward-v2",
        scorer="orm",
        models="Skywork-Reward-V2 (Llama 3.1 and 3.2, Qwen3)",
        names=("skywork-reward-v2*",),
        settings={"input": "chat", "max_length": 16_384},
        source="https://huggingface.co/Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        note="The card strips a doubled BOS; there is none here.",
    ),
    Rule(
        name="skywork-reward-gemma",
        scorer="orm",
        models="Skywork-Reward-Gemma-2-27B, v0.1 and v0.2",
        names=("skywork-reward-gemma*",),
        settings={"input": "chat", "attention": "eager"},
        source="https://huggingface.co/Skywork/Skywork-Reward-Gemma-2-27B-v0.2",
        note="SDPA leaves the cap on attention logits out, and scores are wrong.",
    ),
    Rule(
        name="skywork-reward",
        scorer="orm",
        models="Skywork-Reward-Llama-3.1-8B, v0.1 and v0.2",
        names=("skywork-reward*",),
        settings={"input": "chat"},
        source="https://huggingface.co/Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",
    ),
    Rule(
        name="qrm-llama",
        scorer="orm",
        models="QRM-Llama3-8B, QRM-Llama3.1-8B",
        model_types=("llama",),
        tensors=("regression_layer.weight", "gating.layers.2.running_mean"),
        settings={
            "head": "gated",
            "input": "chat",
            "gating_pattern": LLAMA3_TURN,
            "gating_temperature": 10.0,
        },
        source=f"{REWARD_BENCH}/qrm.py",
        note="Ids 128009, 128006, 78191, 128007, 271 in Llama 3's tokenizer.",
    ),
    Rule(
        name="qrm-gemma2",
        scorer="orm",
        models="QRM-Gemma-2-27B",
        model_types=("gemma2",),
        tensors=("regression_layer.weight", "gating.layers.2.running_mean"),
        settings={
            "head": "gated",
            "input": "chat",
            "gating_pattern": GEMMA2_TURN,
            "gating_temperature": 1.0,
            "attention": "eager",
        },
        source="https://huggingface.co/nicolinho/QRM-Gemma-2-27B",
    ),
    Rule(
        name="armorm",
        scorer="orm",
        models="ArmoRM-Llama3-8B-v0.1",
        model_types=("llama",),
        tensors=("regression_layer.weight", "gating.layers.0.bias"),
        settings={
            "head": "gated",
            "input": "chat",
            "gating_pattern": LLAMA3_TURN,
            "gating_temperature": 10.0,
        },
        source="https://huggingface.co/RLHFlow/ArmoRM-Llama3-8B-v0.1",
        note="The value is `score`; `components: true` gives the objectives' rewards.",
    ),
    Rule(
        name="grm-sftreg",
        scorer="orm",
        models="GRM-Gemma-2B, -Gemma2-2B, -llama3-8B and -llama3.2-3B, sftreg and distill",
        tensors=("v_head.summary.0.weight",),
        settings={"head": "value_head", "value_head_prefix": "v_head", "input": "chat"},
        source=f"{REWARD_BENCH}/grm.py",
    ),
    Rule(
        name="grm-ft",
        scorer="orm",
        models="GRM …-rewardmodel-ft",
        names=("grm*rewardmodel-ft*",),
        settings={"input": "chat"},
        source="https://huggingface.co/Ray2333/GRM-Llama3-8B-rewardmodel-ft",
        note="Plain sequence classification.",
    ),
    Rule(
        name="inf-orm",
        scorer="orm",
        models="INF-ORM-Llama3.1-70B",
        architectures=("INFORMForSequenceClassification",),
        tensors=("score.0.weight", "score.2.weight"),
        settings={"head": "value_head", "value_head_prefix": "score", "input": "chat"},
        source=f"{REWARD_BENCH}/inform.py",
    ),
    Rule(
        name="internlm2-reward",
        scorer="orm",
        models="internlm2-1_8b-reward, -7b-reward, -20b-reward",
        architectures=("InternLM2ForRewardModel",),
        settings={
            "head": "value_head",
            "value_head_prefix": "v_head",
            "input": "chat",
            "append_token": FromConfig(key="reward_token_id", default=92_527),
        },
        source=f"{REWARD_BENCH}/internlm.py",
        note="The weights are read as a Llama's. The tokenizer is the checkpoint's own code: "
        "convert it once to tokenizer.json and name it under `tokenizer`.",
    ),
    Rule(
        name="starling-7b",
        scorer="orm",
        models="Starling-RM-7B-alpha",
        tensors=("v_head.weight",),
        names=("starling-rm-7b*",),
        settings={
            "head": "value_head",
            "value_head_prefix": "v_head",
            "weight_prefix": "transformer",
            "input": "chat",
            "bos": "always",
            "chat_template": turns(f"<s>[INST] {CONTENT} </s> [/INST]", f" {CONTENT}</s>"),
            "max_length": 2048,
            "truncation_side": "left",
        },
        source="https://huggingface.co/berkeley-nest/Starling-RM-7B-alpha",
        note="Put config.json and tokenizer of Llama-2-7b-chat-hf beside the weights. The card's "
        "example has a doubled BOS; there is one here.",
    ),
    Rule(
        name="starling-34b",
        scorer="orm",
        models="Starling-RM-34B",
        tensors=("v_head.weight",),
        names=("starling-rm-34b*",),
        settings={
            "head": "value_head",
            "value_head_prefix": "v_head",
            "weight_prefix": "transformer",
            "input": "chat",
            "bos": "never",
            "chat_template": turns(
                f"<|im_start|>user\n{CONTENT}<|im_end|>",
                f"<|im_start|>assistant\n{CONTENT}<|im_end|>",
                "\n",
            ),
            "max_length": 2048,
            "truncation_side": "left",
        },
        source="https://huggingface.co/Nexusflow/Starling-RM-34B",
    ),
    Rule(
        name="ultrarm",
        scorer="orm",
        models="UltraRM-13b",
        architectures=("LlamaRewardModel",),
        settings={
            "head": "value_head",
            "value_head_prefix": "regression_head",
            "input": "chat",
            "bos": "always",
            "chat_template": turns(f"Human: {CONTENT}", f"Assistant: {CONTENT}", "\n"),
        },
        source="https://huggingface.co/openbmb/UltraRM-13b",
        note="Published as pytorch_model.bin: convert it, or set allow_bin.",
    ),
    Rule(
        name="eurus-rm",
        scorer="orm",
        models="Eurus-RM-7b",
        architectures=("EurusRewardModel",),
        settings={
            "head": "value_head",
            "value_head_prefix": "regression_head",
            "input": "chat",
            "bos": "always",
            "chat_template": turns(f"[INST] {CONTENT} [\\INST]", CONTENT, " "),
        },
        source="https://huggingface.co/openbmb/Eurus-RM-7b",
        note="`[\\INST]` is how the card writes it.",
    ),
    Rule(
        name="beaver",
        scorer="orm",
        models="beaver-7b-v1.0 to v3.0, reward and cost",
        architectures=("LlamaForScore", "LlamaModelForScore"),
        tensors=("score_head.weight",),
        settings={
            "head": "value_head",
            "value_head_prefix": "score_head",
            "normalize": "checkpoint",
            "input": "chat",
            "bos": "always",
            "chat_template": "BEGINNING OF CONVERSATION: "
            + turns(
                f"USER: {CONTENT} ASSISTANT:",
                CONTENT + "{% if not loop.last %}{{ eos_token }}{% endif %}",
            ),
            "max_length": 2048,
        },
        source=f"{REWARD_BENCH}/beaver.py",
        note="A cost is given as published: more is worse. Subtract it with `sum`.",
    ),
    Rule(
        name="nemotron-reward",
        scorer="orm",
        models="Llama-3.1-Nemotron-70B-Reward-HF, Llama-3.3-Nemotron-70B-Reward",
        names=("llama-3*nemotron*reward*",),
        settings={
            "head": "causal_lm",
            "score_token": 0,
            "input": "chat",
            "max_length": 4096,
        },
        source="https://huggingface.co/nvidia/Llama-3.1-Nemotron-70B-Reward-HF",
        note="The logit of token 0 where the next token would be generated.",
    ),
    Rule(
        name="qwen-math-rm",
        scorer="orm",
        models="Qwen2.5-Math-RM-72B, Qwen2-Math-RM-72B",
        architectures=("Qwen2ForRewardModel",),
        names=("*math*",),
        settings={
            "head": "value_head",
            "value_head_prefix": "score",
            "input": "chat",
            "system": STEP_BY_STEP,
        },
        source="https://github.com/QwenLM/Qwen2.5-Math",
    ),
    Rule(
        name="qwen-rm",
        scorer="orm",
        models="WorldPM-72B and others of this class",
        architectures=("Qwen2ForRewardModel",),
        settings={"head": "value_head", "value_head_prefix": "score", "input": "chat"},
        source=f"{REWARD_BENCH}/worldpm.py",
    ),
)
