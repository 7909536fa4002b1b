import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest

from tidegate import Client, InvalidInput

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]


def test_rows_of_fixed_size_are_classified_and_others_refused(served: Served, ask: Ask) -> None:
    with served("mlp") as url:
        printed = ask("mlp", url)
        with Client(f"{url}/benign") as client:
            probability = client.call(np.ones(30, "float32"))
            with pytest.raises(InvalidInput, match=r"expected an array of shape \(30,\), got \(29,\)"):
                client.call([1.0] * 29)
    assert probability.shape == ()
    assert 0 <= probability <= 1
    accuracy = re.search(r"^accuracy +([\d.]+) of 171 tumours$", printed, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) > 0.9
    assert re.findall(r"^(.+?)  +[\d,]+ rows/s$", printed, re.MULTILINE) == ["one by one", "64 at once"]
