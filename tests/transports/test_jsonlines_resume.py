import os
from pathlib import Path

import pytest

from tidegate import HandlerError
from tidegate_transports.jsonl_lines import Enveloped, failed_line
from tidegate_transports.resume import NoCustomId, Previous, complete_lines, reopened

ERROR = HandlerError("ValueError", "no")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def result(custom_id: str) -> bytes:
    return Enveloped(b'"%s"' % custom_id.encode()).result(1, b"0")


def failure(custom_id: str, number: int = 1) -> bytes:
    return Enveloped(b'"%s"' % custom_id.encode()).failure(number, ERROR)


def line(custom_id: str) -> bytes:
    return b'{"custom_id":"%s","body":0}' % custom_id.encode()


def answers(previous: Previous, *lines: bytes | None) -> list[bytes | None]:
    return [previous.answered(number, one) for number, one in enumerate(lines, start=1)]


# ---------------------------------------------------------------------- a file that was cut


@pytest.mark.parametrize(
    ("held", "left"),
    [
        (b"", b""),
        (b"1\n2\n", b"1\n2\n"),
        (b"1\n2", b"1\n"),
        (b"12345", b""),
        (b"1\n" + b"x" * 3_000_000, b"1\n"),
        (b"x" * 3_000_000 + b"\n" + b"y" * 1_048_576, b"x" * 3_000_000 + b"\n"),
    ],
)
def test_a_last_line_that_is_not_whole_is_cut(path: Path, held: bytes, left: bytes) -> None:
    path.write_bytes(held)
    complete_lines(path)
    assert path.read_bytes() == left


# ---------------------------------------------------------------------- in order


def test_the_first_lines_are_answered_and_what_follows_is_appended(path: Path) -> None:
    path.write_bytes(b"1\n2\n3")
    fd, previous = reopened(path, ordered=True, retry=False)
    assert answers(previous, b"a", b"b", b"c") == [b"", b"", None]
    os.write(fd, b"4\n")
    os.close(fd)
    assert path.read_bytes() == b"1\n2\n4\n"


def test_a_file_that_is_not_there_holds_nothing(path: Path) -> None:
    fd, previous = reopened(path, ordered=True, retry=False)
    os.close(fd)
    assert answers(previous, b"a") == [None]
    assert path.read_bytes() == b""


def test_lines_that_failed_before_are_counted_and_stay(path: Path) -> None:
    path.write_bytes(b"1\n" + failed_line(2, ERROR) + failure("c", 3))
    fd, previous = reopened(path, ordered=True, retry=False)
    os.close(fd)
    assert previous.failed == 2
    assert answers(previous, b"a", b"b", b"c", b"d") == [b"", b"", b"", None]


def test_answers_for_which_there_is_no_line_are_left_over(path: Path) -> None:
    path.write_bytes(b"1\n2\n")
    fd, previous = reopened(path, ordered=True, retry=False)
    os.close(fd)
    answers(previous, b"a")
    assert previous.left == 1


# ---------------------------------------------------------------------- with retries


def test_lines_that_failed_run_again_and_the_old_file_is_whole_until_the_new_one_is(path: Path) -> None:
    old = b"1\n" + failed_line(2, ERROR) + b"3\n"
    path.write_bytes(old)
    fd, previous = reopened(path, ordered=True, retry=True)
    assert answers(previous, b"a", b"b", b"c", b"d") == [b"1\n", None, b"3\n", None]
    os.write(fd, b"1\n2\n")
    previous.written(2)
    assert path.read_bytes() == old
    os.write(fd, b"3\n")
    previous.written(3)
    assert path.read_bytes() == b"1\n2\n3\n"
    os.write(fd, b"4\n")
    previous.written(4)
    os.close(fd)
    assert path.read_bytes() == b"1\n2\n3\n4\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


def test_answers_that_were_not_asked_for_are_kept(path: Path) -> None:
    path.write_bytes(b"1\n" + failed_line(2, ERROR) + b"3\n")
    fd, previous = reopened(path, ordered=True, retry=True)
    os.close(fd)
    answers(previous, b"a")
    assert list(previous.rest()) == [failed_line(2, ERROR), b"3\n"]


def test_where_nothing_failed_there_is_no_file_beside(path: Path) -> None:
    path.write_bytes(b"1\n")
    fd, previous = reopened(path, ordered=True, retry=True)
    os.close(fd)
    assert answers(previous, b"a", b"b") == [b"", None]
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


# ---------------------------------------------------------------------- without an order


def test_lines_are_known_by_their_custom_id_as_often_as_they_were_answered(path: Path) -> None:
    path.write_bytes(result("b") + result("a") + result("a"))
    fd, previous = reopened(path, ordered=False, retry=False)
    os.close(fd)
    lines = [line("a"), line("c"), line("a"), line("a"), line("b")]
    assert answers(previous, *lines) == [b"", None, b"", None, b""]


def test_a_line_that_cannot_be_read_is_known_by_its_number(path: Path) -> None:
    path.write_bytes(failed_line(2, ERROR) + result("a"))
    fd, previous = reopened(path, ordered=False, retry=False)
    os.close(fd)
    assert previous.failed == 1
    assert answers(previous, line("a"), b"broken", b"broken", None) == [b"", b"", None, None]


def test_without_an_order_failed_answers_are_taken_out_to_run_again(path: Path) -> None:
    path.write_bytes(failure("a") + result("b") + failed_line(3, ERROR))
    fd, previous = reopened(path, ordered=False, retry=True)
    os.write(fd, result("c"))
    os.close(fd)
    assert path.read_bytes() == result("b") + result("c")
    assert answers(previous, line("a"), line("b"), b"broken") == [None, b"", None]


def test_a_line_without_an_id_is_named(path: Path) -> None:
    path.write_bytes(result("a"))
    fd, previous = reopened(path, ordered=False, retry=False)
    os.close(fd)
    with pytest.raises(NoCustomId, match="line 2 has no custom_id"):
        answers(previous, line("a"), b"[1]")


def test_answers_without_ids_belong_to_no_line(path: Path) -> None:
    path.write_bytes(b"1\n")
    with pytest.raises(NoCustomId, match="without a custom_id"):
        reopened(path, ordered=False, retry=False)


# ---------------------------------------------------------------------- somebody else's


def test_a_file_that_another_run_writes_is_refused(path: Path) -> None:
    fd, _ = reopened(path, ordered=True, retry=False)
    with pytest.raises(ValueError, match="being written to by another run"):
        reopened(path, ordered=True, retry=False)
    os.close(fd)
    fd, _ = reopened(path, ordered=True, retry=False)
    os.close(fd)
