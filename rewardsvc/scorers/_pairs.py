"""How a preference model is shown two completions, and what it says of them.

* `markers`: PairRM reads the prompt and both completions behind a marker each, all in one sequence.
  A small network on the prompt's and a completion's marker gives that completion's worth.
* `choice`: a language model reads a chat whose only turn asks which of two is better, and has a
  logit for each of their names.

Either way one comparison gives a logit: how much better the first one is.

Source: https://github.com/allenai/reward-bench (rewardbench/models/pairrm.py and slicpairpm.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardsvc.engine.types import Encoded, Output
from rewardsvc.errors import ConfigError, ItemErrorCode, ItemFailure
from rewardsvc.scorers._checkpoint import Checkpoint
from rewardsvc.scorers._guard import Draft
from rewardsvc.scorers._heads import token_head
from rewardsvc.scorers._loading import check_same, load_model, model_settings, probe_ids
from rewardsvc.scorers._served import padded_backend
from rewardsvc.scorers._text import SampleEncoder
from rewardsvc.scorers._tokens import overlapping, token_id
from rewardsvc.scorers._writing import Written
from rewardsvc.scoring.types import Message, Text

if TYPE_CHECKING:
    from rewardsvc.engine.torch_backend import Reading
    from rewardsvc.scorers.pairwise import PairwiseConfig

MARKER_KEYS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")

CONVERSATION = (
    "Finish the following coversation in each i-th turn by filling in <Response i> with your "
    "response."
)
"""PairRM's instruction for chats, spelled as it was trained."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two completions of one prompt, in the order in which they are shown."""

    prompt: Text
    first: str
    second: str


class PairHead(ABC):
    """One way of comparing."""

    @abstractmethod
    def load(self, checkpoint: Checkpoint, tokenizer: Any, device: str) -> tuple[Any, Reading]:
        """The model and how it is read.

        Raises:
            ConfigError: If the checkpoint does not fit.
        """

    @abstractmethod
    def encode(self, pair: Comparison, encoder: SampleEncoder) -> Encoded:
        """The comparison as tokens.

        Raises:
            ItemFailure: If it cannot be shown.
        """

    @abstractmethod
    def logit(self, output: Output) -> float:
        """How much better the first completion is."""


class Choice(PairHead):
    """A language model that is asked which is better."""

    def __init__(self, config: PairwiseConfig) -> None:
        self._config = config

    def load(self, checkpoint: Checkpoint, tokenizer: Any, device: str) -> tuple[Any, Reading]:
        """See `PairHead`."""
        import torch

        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        chosen = [token_id(tokenizer, choice, "choices") for choice in self._config.choices]
        model = load_model("AutoModelForCausalLM", self._config, checkpoint, device)
        reading = HiddenStates(model.base_model, ModuleHead(token_head(model, chosen)))
        ids = probe_ids(model)
        probe = Encoded(token_ids=ids, positions=np.arange(len(ids), dtype=np.int32))
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(ids)[None].long().to(device)).logits[0]
        ours = padded_backend(model, reading, device).run([probe])[0]
        check_same(ours, plain[:, chosen], model)
        return model, reading

    def encode(self, pair: Comparison, encoder: SampleEncoder) -> Encoded:
        """See `PairHead`."""
        config = self._config

        def write(draft: Draft) -> Written:
            writer = encoder.writer
            turns = writer.turns(pair.prompt, "user", draft)
            fields = {
                "{context}": writer.apply(turns, chat_template=config.context_template),
                "{a}": draft.theirs(pair.first),
                "{b}": draft.theirs(pair.second),
            }
            # Piece by piece: braces in their texts mean nothing.
            content = "".join(fields.get(piece, piece) for piece in config.pair_pieces)
            asked = writer.with_system([{"role": "user", "content": content}])
            return writer.render([], asked, generation_prompt=config.generation_prompt)

        tokens = encoder.cut(encoder.encode_asked(write))
        last = np.asarray([len(tokens.ids) - 1], np.int32)
        return Encoded(token_ids=tokens.ids, positions=last)

    def logit(self, output: Output) -> float:
        """See `PairHead`."""
        return float(output[0, 0]) - float(output[0, 1])


class Markers(PairHead):
    """PairRM: an encoder with a marker before each text."""

    def __init__(self, config: PairwiseConfig, *, max_length: int) -> None:
        self._config = config
        self._max_length = max_length
        self._markers: list[str] = []
        self._bias_D = np.zeros(0)
        self._last_CD = np.zeros((0, 0))

    def load(self, checkpoint: Checkpoint, tokenizer: Any, device: str) -> tuple[Any, Reading]:
        """See `PairHead`.

        The network is linear, tanh, linear on [prompt's hidden state, completion's]. The first
        layer's two halves are applied to every marker on the device, and all that combines markers
        is computed from that in `logit`.
        """
        import torch

        from rewardsvc.engine.torch_backend import HiddenStates, ModuleHead

        stated = model_settings(checkpoint)
        missing = [key for key in MARKER_KEYS if key not in stated]
        if missing or tokenizer is None:
            raise ConfigError(
                f"head: markers needs a tokenizer, and {', '.join(MARKER_KEYS)} in config.json; "
                f"missing: {', '.join(missing) or 'the tokenizer'}"
            )
        ids = [int(stated[key]) for key in MARKER_KEYS]
        self._markers = [str(tokenizer.convert_ids_to_tokens(i)) for i in ids]
        trunk = load_model("AutoModel", self._config, checkpoint, device)
        width = trunk.config.hidden_size
        first = checkpoint.read("head_layer.1.weight").float()
        last = checkpoint.read("head_layer.4.weight").float()
        if tuple(first.shape) != (width, 2 * width) or last.shape[1] != width:
            raise ConfigError(
                f"model: head_layer.1.weight is {tuple(first.shape)} and head_layer.4.weight "
                f"{tuple(last.shape)}; expected ({width}, {2 * width}) and (…, {width})"
            )
        self._bias_D = checkpoint.read("head_layer.1.bias").double().numpy()
        self._last_CD = last.double().numpy()
        halves = torch.cat([first[:, :width], first[:, width:]]).to(device)
        return trunk, HiddenStates(trunk, ModuleHead(lambda hidden: hidden.float() @ halves.T))

    def encode(self, pair: Comparison, encoder: SampleEncoder) -> Encoded:
        """See `PairHead`."""
        ids: list[Any] = []
        places: list[int] = []
        length = 0
        limit = min(self._config.source_length or self._max_length, self._max_length)
        for number, marker in enumerate(self._markers):

            def write(draft: Draft, number: int = number, marker: str = marker) -> Written:
                return Written(text=marker + _shown(pair, number, draft), start=0)

            encoding, _ = encoder.texts.tokenize(write, special=True)
            held = overlapping(encoding.starts, encoding.ends, (0, 1))
            part = self._cut(encoding.ids, encoding.added, limit)
            places.append(length + int(held[0]))
            ids.append(part)
            length += len(part)
            if number == 0:
                limit = (self._max_length - length) // 2
        token_ids = np.concatenate(ids).astype(np.int32)
        encoder.check_ids(token_ids)
        return Encoded(token_ids=token_ids, positions=np.asarray(places, np.int32))

    def _cut(self, ids: Any, added: Any, limit: int) -> Any:
        excess = len(ids) - limit
        if excess <= 0:
            return ids
        cuttable = np.flatnonzero(~added)[1:]  # the marker stays
        side = self._config.truncation_side
        if side == "error" or excess > len(cuttable):
            raise ItemFailure(
                ItemErrorCode.TOO_LONG,
                f"a text has {len(ids)} tokens, and {limit} are left for it; shorten it, or set "
                "truncation_side",
            )
        dropped = cuttable[:excess] if side == "left" else cuttable[-excess:]
        return np.delete(ids, dropped)

    def logit(self, output: Output) -> float:
        """See `PairHead`."""
        width = len(self._bias_D)
        numbers = output.astype(np.float64)
        source_D = numbers[0, :width] + self._bias_D
        worths = [np.tanh(source_D + numbers[i, width:]) @ self._last_CD.T for i in (1, 2)]
        return float((worths[0] - worths[1]).mean())


def _shown(pair: Comparison, number: int, draft: Draft) -> str:
    """The prompt (0), or one of the completions (1 and 2), as PairRM reads them."""
    answer = (pair.first, pair.second)[number - 1]
    if isinstance(pair.prompt, str):
        return draft.theirs(answer if number else pair.prompt)
    turns = [m for m in pair.prompt if isinstance(m, Message)]
    roles = [m.role for m in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ItemFailure(
            ItemErrorCode.INVALID_SAMPLE,
            f"the prompt's roles are {', '.join(roles) or 'none'}; this model reads user and "
            "assistant in turn, the user first and last",
        )
    if number == 0:
        asked = [
            f"USER: {draft.theirs(m.content)}\nAssistant: <Response {i}>"
            for i, m in enumerate(turns[::2], 1)
        ]
        return CONVERSATION + "\n".join(asked)
    given = [draft.theirs(m.content) for m in turns[1::2]] + [draft.theirs(answer)]
    return "\n".join(f"<Response {i}>: {text}" for i, text in enumerate(given, 1))
