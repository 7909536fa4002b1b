"""The process's side of the conversation, held here with one end of its sockets in the test's hands."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tidegate.portable import from_fields
from tidegate.workers import child, frames
from tidegate.workers.child import Channel
from tidegate.workers.packing import pack, unpack
from tidegate.workers.reference import reference_to
from tidegate.workers.runner import STEPS_AHEAD
from tidegate.workers.shared_memory import Arena, Segment


class Conversation:
    """A service's side of one worker, which runs on a thread here."""

    def __init__(self, handler: Any, **changes: Any) -> None:
        handler.freeze()
        reference = reference_to(handler)
        reference = type(reference)(
            **{name: getattr(reference, name) for name in reference.__struct_fields__} | changes
        )
        self.batches, batches = socket.socketpair()
        self.control, control = socket.socketpair()
        self.batches.settimeout(20)
        self.inbox, self.outbox = Segment.create(), Segment.create()
        self.arena = Arena(self.inbox)
        self.channel = Channel(batches, control, self.inbox, self.outbox)
        self._theirs = (batches, control)
        self._reader = frames.FrameReader()
        self._heard: list[frames.Message] = []
        self.thread = threading.Thread(target=self.channel.live)
        self.thread.start()
        self.say(frames.Start(reference, "cpu"))

    def say(self, *messages: frames.Message) -> None:
        self.batches.sendall(b"".join(map(frames.encode, messages)))

    def say_at_once(self, message: frames.Message) -> None:
        self.control.sendall(frames.encode(message))

    def run(self, number: int, *values: Any) -> None:
        self.say(frames.Run(number, pack(values, self.arena)))

    def hear(self) -> Any:
        if not self._heard:
            self._heard = frames.receive(self.batches, self._reader)
            assert self._heard, "it has gone"
        return self._heard.pop(0)

    def answer(self) -> Any:
        """The values, or the error, with which the next batch ends."""
        done = self.hear()
        assert isinstance(done, frames.Done)
        if done.error is not None:
            return from_fields(done.error)
        assert done.values is not None
        return unpack(done.values, self.outbox, copy=True).values

    @property
    def used(self) -> int:
        """Bytes of its memory that it has not got back."""
        return self.channel._arena.used

    def close(self) -> None:
        for end in (self.batches, self.control):
            end.close()
        # What listens must have heard of it before it is asked to end another process than this.
        for thread in threading.enumerate():
            if thread is self.thread or thread.name in ("tidegate-control", "tidegate-batches"):
                thread.join(20)
                assert not thread.is_alive(), thread
        for end in self._theirs:
            end.close()
        self.inbox.close()
        self.outbox.close()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the process would have ended itself."""
    event = threading.Event()

    def leave() -> None:
        event.set()
        raise SystemExit

    others = threading.excepthook
    monkeypatch.setattr(threading, "excepthook", lambda args: args.exc_type is SystemExit or others(args))
    monkeypatch.setattr(child, "_leave", leave)
    # For main threads only; of a process that is nobody else's.
    monkeypatch.setattr(child, "ignore_signals", lambda: None)
    return event


@pytest.fixture
def talk(left: threading.Event) -> Iterator[Callable[..., Conversation]]:
    held: list[Conversation] = []

    def begin(handler: Any, **changes: Any) -> Conversation:
        held.append(Conversation(handler, **changes))
        return held[-1]

    yield begin
    for conversation in held:
        conversation.close()


def test_a_life_from_its_first_message_to_its_last(talk: Any, handlers: Any) -> None:
    it = talk(handlers.one)
    assert it.hear() == frames.Ready(False)
    it.run(1, "a")
    it.run(2, "b")
    assert [it.answer(), it.answer()] == [["a"], ["b"]]
    it.say(frames.Stop())
    assert it.hear() == frames.Ended()


def test_a_handler_that_cannot_be_loaded_is_told_of(talk: Any, handlers: Any) -> None:
    failed = talk(handlers.one, variable="nobody").hear()
    assert isinstance(failed, frames.Failed)
    assert "nobody" in str(from_fields(failed.error))


@pytest.mark.parametrize("name", ["one", "three_at_once", "ahead"])
def test_every_kind_of_handler_reports_each_batch_once(talk: Any, handlers: Any, name: str) -> None:
    it = talk(getattr(handlers, name))
    assert isinstance(it.hear(), frames.Ready)
    value: Any = {} if name == "ahead" else ["return", 5]
    for number in range(1, 20):
        it.run(number, value)
    heard = [it.hear() for _ in range(38 if name == "ahead" else 19)]
    done = [message.batch for message in heard if isinstance(message, frames.Done)]
    assert sorted(done) == list(range(1, 20))
    assert len(heard) - len(done) == sum(isinstance(message, frames.Prepared) for message in heard)
    it.say(frames.Stop())
    assert it.hear() == frames.Ended()


def test_a_cancellation_counts_also_when_it_comes_before_its_batch(talk: Any, handlers: Any) -> None:
    it = talk(handlers.about)
    assert isinstance(it.hear(), frames.Ready)
    it.say_at_once(frames.Cancel(2, 1))
    it.say_at_once(frames.Cancel(2, 0))
    it.say_at_once(frames.Credit(9))  # heard when what came before has been
    while set(it.channel._early.get(2, ())) != {0, 1}:
        threading.Event().wait(0.001)
    it.run(1, "a", "b")
    it.run(2, "a", "b", "c")
    assert [row[-1] for row in it.answer()] == [False, False]
    assert [row[-1] for row in it.answer()] == [True, True, False]
    assert it.channel._early == {}
    # Of a batch that has ended nothing is kept.
    it.say_at_once(frames.Cancel(2, 2))
    it.run(3, "a")
    it.answer()
    assert it.channel._early == {}


def test_values_that_cannot_be_made_here_end_their_batch_and_no_other(
    talk: Any, handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = talk(handlers.one)
    assert isinstance(it.hear(), frames.Ready)
    packed = pack([handlers.Point(1, [])], it.arena)
    monkeypatch.delattr(handlers, "Point")
    it.say(frames.Run(1, packed))
    it.run(2, "b")
    assert "cannot be made again" in str(it.answer())
    assert it.answer() == ["b"]


def test_an_answer_too_large_to_tell_of_is_an_error_and_its_memory_free_again(
    talk: Any, handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = talk(handlers.in_place)
    assert isinstance(it.hear(), frames.Ready)
    monkeypatch.setattr(frames, "LARGEST", 4000)
    it.run(1, ["fail", "ValueError", "long " * 2000], np.zeros(10_000))
    assert "the limit is 4000" in str(it.answer())
    assert it.used == 0


def test_memory_is_its_own_again_when_the_service_has_read_it(talk: Any, handlers: Any) -> None:
    it = talk(handlers.one)
    assert isinstance(it.hear(), frames.Ready)
    it.run(1, np.zeros(10_000))
    done = it.hear()
    assert it.used >= 80_000
    it.say(frames.Run(2, pack([1], it.arena), freed=done.values.freed))
    assert it.answer() == [1]
    assert it.used == 0


def test_a_stream_makes_so_many_steps_and_then_those_for_which_there_is_credit(talk: Any, handlers: Any) -> None:
    it = talk(handlers.count)
    assert isinstance(it.hear(), frames.Ready)
    it.run(1, {"length": STEPS_AHEAD + 6})
    rows = [it.hear() for _ in range(STEPS_AHEAD)]
    assert [unpack(row.values, it.outbox).values for row in rows] == [[n] for n in range(STEPS_AHEAD)]
    it.batches.settimeout(0.1)
    with pytest.raises(TimeoutError):
        it.hear()
    it.batches.settimeout(20)
    it.say_at_once(frames.Credit(1, 4))
    assert [type(it.hear()) for _ in range(4)] == [frames.Row] * 4
    it.say_at_once(frames.Credit(1, 4))
    assert [type(it.hear()) for _ in range(3)] == [frames.Row, frames.Row, frames.Done]
    # Credit for what has ended is for nobody.
    it.say_at_once(frames.Credit(1, 4))
    it.run(2, {"length": 0})
    assert isinstance(it.hear(), frames.Done)


@pytest.mark.parametrize("name", ["one", "in_place"])
def test_an_error_that_poisons_the_gpu_is_this_processs_last_word(
    talk: Any, handlers: Any, left: threading.Event, name: str
) -> None:
    it = talk(getattr(handlers, name))
    assert isinstance(it.hear(), frames.Ready)
    it.run(1, ["fail", "RuntimeError", "CUDA error: device-side assert triggered"])
    assert it.hear() == frames.Poisoned("CUDA error: device-side assert triggered")
    assert left.wait(20)


@pytest.mark.parametrize("which", ["control", "batches"])
def test_when_the_service_has_gone_the_process_goes(
    talk: Any, handlers: Any, left: threading.Event, which: str
) -> None:
    it = talk(handlers.one)
    assert isinstance(it.hear(), frames.Ready)
    getattr(it, which).close()
    assert left.wait(20)
