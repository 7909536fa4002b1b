from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tidegate import Client, HTTPError, InvalidInput

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]


def test_two_handlers_are_served_together_and_addressed_by_name(served: Served, ask: Ask) -> None:
    with served("multi_handler") as url:
        lines = ask("multi_handler", url).splitlines()
        with Client(url) as client:
            assert client.call("When is a finally clause executed?", handler="page") == "try"
            assert client.call([5.1, 3.5, 1.4, 0.2], handler="flower") == "setosa"
            with pytest.raises(InvalidInput, match="expected an array of shape"):
                client.call([5.1, 3.5], handler="flower")
            # With two of them there is none that /predict could mean.
            with pytest.raises(HTTPError, match="nothing is at /predict; there is POST /flower, POST /page"):
                client.call("a loop")
    assert lines == [
        "When is a finally clause executed?   help('try')",
        "How is a lambda written?             help('lambda')",
        "What does yield do in a generator?   help('yield')",
        "146 of 150 irises named as a botanist named them",
        "5.1 x 3.5 cm, 1.4 x 0.2 cm: setosa",
    ]
