"""What the configuration of every hosted model has in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rewardsvc.scoring.config import ScorerConfigBase


class ModelConfig(ScorerConfigBase):
    """A checkpoint, how it is loaded, and how samples become its tokens.

    Attributes:
        model: A folder, or a hub id; weights are read from safetensors files alone.
        tokenizer: The same for the tokenizer; None is the model's own.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether Python code of the checkpoint may run.
        dtype: What to compute in; "auto" is the checkpoint's own.
        device: "auto" is the engine's device.
        attention: The attention implementation; "auto" is transformers' choice, but eager for
            models that cap their attention logits, which SDPA leaves out.
        input: "text" joins prompt and completion; "chat" renders the tokenizer's chat template, a
            plain prompt being the user's turn and a plain completion the assistant's; "auto" is
            chat for samples that come as messages and text for others. Token ids are taken as is.
        text_template: For text: what is scored, with `{prompt}` and `{completion}` filled in.
        bos: "auto": text gets the tokenizer's own special tokens, a chat what its template has, and
            never two BOS in a row. "always" and "never" enforce one or none.
        append_eos: Whether an EOS token follows where there is none; reward models of OpenRLHF and
            TRL are trained with it.
        max_length: In tokens; None is what the checkpoint says.
        truncation_side: What happens to a longer sample: an error, or which side is cut off.
            Special tokens of the tokenizer stay.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    input: Literal["auto", "chat", "text"] = "auto"
    text_template: str | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    append_eos: bool = False
    max_length: int | None = Field(default=None, ge=1)
    truncation_side: Literal["error", "left", "right"] = "error"

    @field_validator("text_template")
    @classmethod
    def _has_a_completion(cls, template: str | None) -> str | None:
        if template is not None and template.count("{completion}") != 1:
            raise ValueError(f"{template!r} must contain {{completion}} once")
        return template

    def runs_code_of_the_config(self) -> bool:
        """Remote code is code that the section chooses."""
        return self.trust_remote_code
