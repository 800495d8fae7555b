"""What the configuration of every hosted model has in common."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rewardsvc.engine.reuse import CacheSettings
from rewardsvc.scoring.config import ScorerConfigBase

MAX_REPLICAS = 256
WHERE = ("device", "devices", "replicas", "cache")
"""Fields that say where and how a model is served, and change no score."""


class ModelConfig(ScorerConfigBase):
    """A checkpoint, how it is loaded, and how samples become its tokens.

    Attributes:
        model: A folder, or a hub id; weights are read from safetensors files.
        recipe: A published model's settings, for the fields that are not given here: "auto"
            recognises the checkpoint, "none" takes the fields as they are; names are in the table
            of models.
        tokenizer: The same as `model` for the tokenizer; None is the model's own.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether Python code of the checkpoint may run.
        allow_bin: Whether to read `pytorch_model*.bin` where there are no safetensors files. Only
            tensors are unpickled.
        weight_prefix: What the base model's tensors are called, where that is not transformers'
            name for them: "transformer", "pretrained_model".
        dtype: What to compute in; "auto" is the checkpoint's own. For int8, export the model.
        backend: What computes: "torch", or "onnx" for a folder that `rewardsvc export-onnx` wrote.
        device: "auto" is the engine's device.
        devices: Devices of worker processes that serve this model, one each; none: it is served by
            this process, on `device`.
        replicas: Number of worker processes with this model; "auto" as their device is a CUDA
            device each, in turn, where there are any. None: as many as `devices`.
        cache: Keeps the answers of identical samples; None: not.
        attention: The attention implementation; "auto" packs batches where the model allows it, and
            else is transformers' choice, but eager for models that cap their attention logits,
            which SDPA leaves out. Any other is used as it is, with padded batches.
        deterministic: Whether a sample's score is the same to the last bit, whatever else is in its
            batch.
        input: "text" joins prompt and completion; "chat" renders the tokenizer's chat template, a
            plain prompt being the user's turn and a plain completion the assistant's; "auto" is
            chat for samples that come as messages and text for others. Token ids are taken as is.
        text_template: For text: what is scored, with `{prompt}` and `{completion}` filled in.
        chat_template: A Jinja template in place of the tokenizer's.
        system: The system message of chats that have none.
        special_tokens_in_text: What becomes of text that looks like a control token. "split": in
            completions, in messages and in what fills `text_template` it is tokenised as the
            characters that it is; a prompt without a template may be a rendered chat and keeps its
            control tokens, and so does an EOS at the very end of a completion that is plain text.
            "allow": it becomes the control token.
        bos: "auto": text gets the tokenizer's own special tokens, a chat what its template has, and
            never two BOS in a row. "always" and "never" enforce one or none.
        append_eos: Whether an EOS token follows where there is none; reward models of OpenRLHF and
            TRL are trained with it.
        append_token: A token, as text or id, that follows where it is not the last one already.
        max_length: In tokens; None is what the checkpoint says.
        truncation_side: What happens to a longer sample: an error, or which side is cut off.
            Special tokens of the tokenizer stay.
    """

    model: str
    recipe: str = "auto"
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_bin: bool = False
    weight_prefix: str | None = Field(default=None, min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: Literal["torch", "onnx"] = "torch"
    device: str = "auto"
    devices: tuple[str, ...] = ()
    replicas: int | None = Field(default=None, ge=1, le=MAX_REPLICAS)
    cache: CacheSettings | None = None
    deterministic: bool = False
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    input: Literal["auto", "chat", "text"] = "auto"
    text_template: str | None = None
    chat_template: str | None = None
    system: str | None = None
    special_tokens_in_text: Literal["split", "allow"] = "split"
    bos: Literal["auto", "always", "never"] = "auto"
    append_eos: bool = False
    append_token: str | int | None = None
    max_length: int | None = Field(default=None, ge=1)
    truncation_side: Literal["error", "left", "right"] = "error"

    @field_validator("text_template")
    @classmethod
    def _has_a_completion(cls, template: str | None) -> str | None:
        if template is not None and template.count("{completion}") != 1:
            raise ValueError(f"{template!r} must contain {{completion}} once")
        return template

    @field_validator("dtype", mode="before")
    @classmethod
    def _not_quantised(cls, dtype: object) -> object:
        if dtype == "int8":
            raise ValueError(
                "int8 is computed by ONNX Runtime: run `rewardsvc export-onnx --int8`, and serve "
                "the folder with backend: onnx"
            )
        return dtype

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.devices and self.device != "auto":
            raise ValueError(
                f"devices: {list(self.devices)}, and device: {self.device!r}; give one"
            )
        if self.devices and self.replicas is not None and self.replicas != len(self.devices):
            raise ValueError(
                f"replicas: {self.replicas}, but there are {len(self.devices)} devices; a worker "
                "process has one device: leave replicas out, or name a device for each"
            )
        return self

    def worker_devices(self) -> tuple[str, ...]:
        """See `ScorerConfigBase.worker_devices`."""
        return self.devices or (self.device,) * (self.replicas or 0)

    def on_worker(self, device: str) -> dict[str, Any]:
        """See `ScorerConfigBase.on_worker`."""
        section = self.model_dump(mode="json", exclude={"devices", "replicas"}, exclude_unset=True)
        return section | {"type": self.type, "device": device}

    def runs_code_of_the_config(self) -> bool:
        """Remote code is code that the section chooses."""
        return self.trust_remote_code
