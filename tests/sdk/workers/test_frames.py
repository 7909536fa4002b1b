import errno
import math
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.workers.frames import (
    Cancel,
    Credit,
    Done,
    Ended,
    Failed,
    FrameReader,
    Message,
    Poisoned,
    Prepared,
    ProtocolError,
    Ready,
    Row,
    Run,
    Start,
    Stop,
    encode,
    receive,
    send,
)
from tidegate.workers.packing import Packed
from tidegate.workers.reference import Reference
from tidegate.workers.stacking import Column

PACKED = Packed(
    3, block=(64, 192), columns=[Column(0, "<f8", (3, 2), 0)], dim=0, special={1: "end", 2: {"class": "Overloaded"}}
)
MESSAGES: list[Message] = [
    Start(Reference(variable="square", module="app", changes={"max_batch_size": 4}), "cuda:0"),
    Start(Reference(pickled=b"\x80"), ["cuda:0", "cuda:1"]),
    Run(1, PACKED, ["a", "é"], [1.5, math.inf], [{"x-tenant": "acme"}, {}], [64]),
    Run(2, Packed(1, inline=bytearray(b"\0\xff"), pickled=[(0, 2)])),
    Cancel(1, 2),
    Credit(1, 4, [0, 64]),
    Stop(),
    Ready(True),
    Failed({"class": "HandlerError", "detail": "no", "traceback": "Traceback…"}),
    Prepared(7),
    Row(7, PACKED),
    Done(7, PACKED),
    Done(8, error={"class": "Overloaded", "detail": "x", "retry_after": 2.5}),
    Done(9),
    Poisoned("device-side assert"),
    Ended(),
]


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.settimeout(20)
    other.settimeout(20)
    with one, other:
        yield one, other


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_arrives_as_it_was(message: Message) -> None:
    reader = FrameReader()
    assert reader.feed(encode(message)) == [message]
    assert not reader.unfinished


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.data())
def test_messages_arrive_in_order_in_whatever_pieces(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    reader = FrameReader()
    read: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read += reader.feed(stream[start:end])
    assert read == messages
    assert not reader.unfinished


def test_a_frame_is_read_when_its_last_byte_has_come() -> None:
    frame, reader = encode(Cancel(1, 2)), FrameReader()
    assert [reader.feed(frame[n : n + 1]) for n in range(len(frame) - 1)] == [[]] * (len(frame) - 1)
    assert reader.unfinished
    assert reader.feed(frame[-1:]) == [Cancel(1, 2)]


def test_a_large_frame_arrives_in_small_pieces() -> None:
    # Eight thousand of them: copying what has come with every piece would be seen.
    message = Poisoned("x" * (32 << 20))
    frame, reader = encode(message), FrameReader()
    read = [found for start in range(0, len(frame), 4096) for found in reader.feed(frame[start : start + 4096])]
    assert read == [message]


@pytest.mark.parametrize(
    "stream",
    [
        b"\x02\x00\x00\x00\x91\x63",  # a number that no message has
        b"\x01\x00\x00\x00\xc1",  # no msgpack
        b"\x03\x00\x00\x00\x92\x01\xa1",  # cut short inside
        b"\x00\x00\x00\x00",
        b"hello, I am what a handler wrote to a descriptor that it found",
    ],
)
def test_what_is_no_frame_is_an_error(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameReader(limit=1000).feed(stream)


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_beginning_or_an_error(stream: bytes) -> None:
    reader = FrameReader(limit=100)
    try:
        reader.feed(stream)
    except ProtocolError:
        return


def test_a_frame_above_the_limit_is_refused_before_it_is_collected() -> None:
    frame = encode(Poisoned("x" * 1000))
    with pytest.raises(ProtocolError, match="1005 bytes: the limit is 500"):
        FrameReader(limit=500).feed(frame[:4])


def test_a_message_that_nobody_would_read_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.workers.frames.LARGEST", 100)
    with pytest.raises(ProtocolError, match="send smaller batches"):
        encode(Poisoned("x" * 100))


def test_messages_cross_a_socket(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    reader = FrameReader()
    read: list[Message] = []
    for message in MESSAGES:
        send(one, message)
    while len(read) < len(MESSAGES):
        read += receive(other, reader)
    assert read == MESSAGES


def test_a_message_larger_than_the_sockets_buffer_is_sent_whole(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    message = Poisoned("x" * (4 << 20))
    thread = threading.Thread(target=send, args=(one, message))
    thread.start()
    assert receive(other, FrameReader()) == [message]
    thread.join()


def test_the_end_of_the_other_side_is_no_message(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    one.sendall(encode(Ended()) + encode(Stop())[:3])
    one.close()
    reader = FrameReader()
    assert receive(other, reader) == [Ended()]
    assert receive(other, reader) == []
    assert reader.unfinished


def test_an_end_with_something_unread_is_an_end_too(sockets: tuple[socket.socket, socket.socket]) -> None:
    one, other = sockets
    send(other, Stop())
    one.close()
    assert receive(other, FrameReader()) == []
    with pytest.raises(OSError) as caught:
        send(other, Stop())
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_a_run_of_sixty_four_small_items_is_a_small_frame() -> None:
    run = Run(1, PACKED, [f"{n:016x}" for n in range(64)], [1e6] * 64)
    assert len(encode(run)) < 2000
    assert len(encode(Run(1, PACKED))) < 150
