from collections.abc import Callable
from contextlib import AbstractContextManager

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]


def test_the_client_gets_one_many_a_stream_and_errors(served: Served, ask: Ask) -> None:
    with served("client") as url:
        lines = ask("client", url).splitlines()
    assert lines[:2] == ["one      ndarray (8, 8), at most 14.7", "many     1797 images, the steepest of all 17.7"]
    assert lines[2].startswith("stream   ")
    assert lines[3:] == [
        "refused  422 expected an array of shape (8, 8), got (3,)",
        "missing  404 there is no page 'goto'",
        "too late 504",
        "at once  (8, 8) (8, 8)",
    ]
