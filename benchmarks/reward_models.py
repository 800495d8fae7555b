"""Random reward models for benchmarks, written to disk: a small encoder and a small decoder.

A word of the texts is a token: the tokenizer knows `w0` … and splits at spaces. So lengths are
exact, and every server under test tokenises alike.

    bert    4 layers, 256 wide, 4 heads, feed-forward 1,024
    llama   6 layers, 512 wide, 8 heads, feed-forward 1,376
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

VOCAB_SIZE = 30_000
NUM_SPECIAL = 5
MAX_POSITIONS = 2048

LOGNORMAL_MEAN, LOGNORMAL_SIGMA = 102.0, 0.8
SHORTEST, LONGEST = 4, 1000
"""Words of a synthetic text, cut to what a small model takes."""

HEAD_DEVIATION = 0.3
"""transformers starts heads with 0.02: all scores would be alike. Not so large that a probability
is 0 in float32."""

NAMES = ("bert", "llama")


def write_model(folder: Path, name: str, *, num_labels: int = 1, tiny: bool = False) -> Path:
    """Writes a random checkpoint with its tokenizer; does nothing if the folder has one.

    Args:
        folder: Where to.
        name: One of `NAMES`.
        num_labels: Of the head. Of two, the first one's logit is 0, so that the second one's can be
            told from probabilities, which is all that some servers give.
        tiny: One layer, 32 wide: for tests of the benchmarks themselves.
    """
    import torch
    import transformers

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE + NUM_SPECIAL,
        "max_position_embeddings": MAX_POSITIONS,
        "num_labels": num_labels,
        "pad_token_id": 0,
    }
    if name == "bert":
        shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
        shape |= {"intermediate_size": 1024}
        config: Any = transformers.BertConfig(**shared | shape | (TINY if tiny else {}))
    else:
        shape = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8}
        shape |= {"intermediate_size": 1376, "num_key_value_heads": 8}
        shape |= {"bos_token_id": 1, "eos_token_id": 2}
        config = transformers.LlamaConfig(**shared | shape | (TINY_GROUPED if tiny else {}))
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("score.weight", "classifier.weight")):
                parameter.normal_(0.0, HEAD_DEVIATION)
                if num_labels == 2:
                    parameter[0] = 0.0
    transformers.utils.logging.disable_progress_bar()
    model.eval().save_pretrained(folder)
    _tokenizer(encoder=name == "bert").save_pretrained(folder)
    # The name that transformers 4, which some peers pin, knows this class by.
    _change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    # infinity looks for labels in the file, where transformers leaves two of them out.
    labels = {str(i): f"LABEL_{i}" for i in range(num_labels)}
    _change(folder / "config.json", id2label=labels)
    return folder


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2))


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
TINY_GROUPED = TINY | {"num_key_value_heads": 4}


def _tokenizer(*, encoder: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<s>", "</s>", "<unk>", "<sep>")
    words = (*special, *(f"w{i}" for i in range(VOCAB_SIZE)))
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A <sep>" if encoder else "<s> $A",
        special_tokens=[("<s>", 1), ("<sep>", 4)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="<sep>",
        model_max_length=MAX_POSITIONS,
    )


def texts(
    count: int, *, seed: int = 0, shortest: int = SHORTEST, longest: int = LONGEST
) -> list[str]:
    """Texts of log-normal lengths, 102 words in the mean."""
    rng = random.Random(seed)
    mu = math.log(LOGNORMAL_MEAN) - LOGNORMAL_SIGMA**2 / 2
    found = []
    for _ in range(count):
        length = min(longest, max(shortest, round(rng.lognormvariate(mu, LOGNORMAL_SIGMA))))
        found.append(" ".join(f"w{rng.randrange(VOCAB_SIZE)}" for _ in range(length)))
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("name", choices=NAMES)
    given = options.parse_args()
    print(write_model(given.folder, given.name))
