"""Large values between a front end and the hub: where they lie, for how long, and what is left when somebody goes."""

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidegate_transports.ipc_memory
from tidegate.workers import shared_memory
from tidegate.workers.shared_memory import FIRST_SIZE, Segment, SharedMemoryFull
from tidegate_transports.ipc_memory import LARGE, Memory, Place
from tidegate_transports.ipc_values import Value, decode_value, encode_value


def mappings() -> int:
    """Pieces of shared memory that this process sees."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:tidegate")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def memories(both_sides: Any) -> Iterator[tuple[Memory, Memory]]:
    ours, theirs = both_sides()
    yield ours, theirs
    ours.close()
    theirs.close()


def arrived(value: Value, memory: Memory) -> Any:
    """What the other process makes of a value that lies in memory."""
    assert value.place is not None
    value.data = memory.inbox.look(value.place)
    made = decode_value(value)
    value.data = None
    return made


def put(memory: Memory, data: bytes) -> Place:
    place = memory.outbox.put(memoryview(data))
    assert place is not None
    return place


# ---------------------------------------------------------------------- values


def test_a_large_array_is_seen_where_it_was_written_and_is_writable(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    array = np.arange(LARGE, dtype=np.float32).reshape(2, -1)
    value = encode_value(array, ours.outbox)
    assert value.data is None
    again = arrived(value, theirs)
    assert (again.dtype, again.shape, again.tolist()) == (array.dtype, array.shape, array.tolist())
    again += 1
    place = value.place
    assert place is not None
    # The same memory, and no copy of it.
    assert np.shares_memory(again, theirs.inbox.look(place))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(LARGE, dtype=">i8"),
        np.arange(LARGE * 2).reshape(2, 4, -1)[::-1, ::2].T,
        np.full(LARGE, "2026-01-01", "datetime64[s]"),
        np.full(LARGE, "ä"),
        np.broadcast_to(np.float32(1), (LARGE, 3)),
        np.frombuffer(bytes(range(256)) * LARGE, np.uint8),
    ],
)
def test_a_large_array_of_any_layout_is_the_same(array: np.ndarray, memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    again = arrived(encode_value(array, ours.outbox), theirs)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert (again == array).all()
    assert again.flags.writeable


def test_large_bytes_are_bytes_again_and_their_block_is_free_at_once(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    data = bytes(range(256)) * LARGE
    value = encode_value(data, ours.outbox)
    again = arrived(value, theirs)
    assert type(again) is bytes
    assert again == data
    assert value.place is not None
    assert theirs.inbox.done() == [value.place[0]]


def test_a_large_tensor_lies_in_the_memory_for_as_long_as_it_is_held(memories: tuple[Memory, Memory]) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = memories
    tensor = torch.arange(LARGE).to(torch.bfloat16).view(4, -1)
    again = arrived(encode_value(tensor, ours.outbox), theirs)
    assert torch.equal(again, tensor)
    row = again[3]
    del again
    assert theirs.inbox.done() == []
    row += 1
    del row
    assert theirs.inbox.done() == [0]


def test_what_is_pickled_is_read_where_it_lies_too(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    value = {"name": "a", "file": b"x" * LARGE, "array": np.ones(LARGE)}
    again = arrived(encode_value(value, ours.outbox), theirs)
    assert (again["name"], again["file"], again["array"].sum()) == ("a", value["file"], LARGE)
    again["array"][:] = 2
    assert theirs.inbox.done() == [0]


@pytest.mark.parametrize("value", [np.zeros(LARGE - 1, np.uint8), b"x" * (LARGE - 1), "x" * LARGE, [b"x"], None, 1])
def test_small_values_and_text_travel_in_the_frame(value: Any, memories: tuple[Memory, Memory]) -> None:
    ours, _ = memories
    assert encode_value(value, ours.outbox).place is None
    assert ours.outbox.used == 0


# ---------------------------------------------------------------------- how long


def test_a_block_is_held_by_whatever_was_made_of_it(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    array = arrived(encode_value(np.arange(LARGE), ours.outbox), theirs)
    keeps: list[Any] = [array.reshape(4, -1)[2, 3:], memoryview(array).cast("B")[7:], array.T.view(np.uint16)]
    del array
    while keeps:
        assert theirs.inbox.done() == []
        keeps.pop()
    assert theirs.inbox.done() == [0]
    assert theirs.inbox.done() == []
    ours.outbox.take_back([0])
    assert ours.outbox.used == 0


def test_the_bytes_under_a_held_array_are_not_written_again(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    kept = [arrived(encode_value(np.full(LARGE, n, np.uint8), ours.outbox), theirs)[:10] for n in range(40)]
    for n in range(100, 200):
        arrived(encode_value(np.full(LARGE, n, np.uint8), ours.outbox), theirs)
        ours.outbox.take_back(theirs.inbox.done())
    assert [set(one.tolist()) for one in kept] == [{n} for n in range(40)]
    assert ours.outbox.used == 40 * LARGE


def test_the_first_end_of_a_look_is_told_at_once_and_the_others_with_it(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    told: list[int] = []
    theirs.inbox.wake = lambda: told.append(threading.get_ident())
    looks = [theirs.inbox.look(put(ours, b"x" * LARGE)) for _ in range(3)]
    thread = threading.Thread(target=looks.clear)
    thread.start()
    thread.join()
    assert told == [thread.ident]
    assert sorted(theirs.inbox.done()) == [0, LARGE, 2 * LARGE]
    theirs.inbox.look((0, LARGE))
    assert len(told) == 2


def test_threads_that_stop_looking_at_once_lose_no_block(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    done: list[int] = []
    places = [put(ours, b"x" * LARGE) for _ in range(400)]
    looks = [theirs.inbox.look(place) for place in places]
    parts = [looks[n::4] for n in range(4)]
    looks.clear()

    def drop(part: list[Any]) -> None:
        while part:
            part.pop()

    threads = [threading.Thread(target=drop, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        done += theirs.inbox.done()
    done += theirs.inbox.done()
    assert sorted(done) == [offset for offset, _ in places]


# ---------------------------------------------------------------------- how much


def test_what_has_no_room_travels_in_the_frame(
    memories: tuple[Memory, Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = memories
    array = np.ones(FIRST_SIZE // 2, np.uint8)
    ours.outbox._arena.limit = FIRST_SIZE
    values = [encode_value(array, ours.outbox) for _ in range(3)]
    assert [value.place is None for value in values] == [False, False, True]
    assert decode_value(values[2]).tolist() == array.tolist()
    arrived(values[0], theirs)
    ours.outbox.take_back(theirs.inbox.done())
    assert encode_value(array, ours.outbox).place == values[0].place

    def none_left(segment: Segment, size: int) -> None:
        raise SharedMemoryFull("no more")

    monkeypatch.setattr(Segment, "grow", none_left)
    ours.outbox._arena.limit = 1 << 40
    assert encode_value(array, ours.outbox).place is None


def test_the_other_side_sees_what_has_grown(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    before = arrived(encode_value(np.full(LARGE, 1, np.uint8), ours.outbox), theirs)
    large = arrived(encode_value(np.full(5 * FIRST_SIZE, 2, np.uint8), ours.outbox), theirs)
    assert (set(before), set(large)) == ({1}, {2})


def test_a_burst_is_given_back_to_the_system(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    held = [arrived(encode_value(np.ones(FIRST_SIZE), ours.outbox), theirs) for _ in range(4)]
    file = ours.descriptors[0]
    assert os.fstat(file).st_blocks * 512 >= 32 << 20
    del held
    for _ in range(3 * 256):
        ours.outbox.take_back(theirs.inbox.done())
        arrived(encode_value(np.ones(LARGE, np.uint8), ours.outbox), theirs)
    assert os.fstat(file).st_blocks * 512 <= 2 * FIRST_SIZE


@pytest.mark.parametrize("place", [(FIRST_SIZE, 1), (-64, 64), (0, -1), (0, FIRST_SIZE + 1), (1 << 62, 1)])
def test_a_place_that_is_not_there_is_an_error_and_no_crash(place: Place, memories: tuple[Memory, Memory]) -> None:
    _, theirs = memories
    with pytest.raises(ValueError, match=r"offset|outside|negative"):
        theirs.inbox.look(place)


# ---------------------------------------------------------------------- the end


def test_a_value_outlives_the_end_of_either_side(memories: tuple[Memory, Memory]) -> None:
    ours, theirs = memories
    told: list[None] = []
    theirs.inbox.wake = lambda: told.append(None)
    array = arrived(encode_value(np.arange(LARGE), ours.outbox), theirs)
    ours.close()
    assert array.sum() == sum(range(LARGE))
    theirs.close()
    array += 1
    assert array.sum() == sum(range(LARGE)) + LARGE
    del array
    assert told == []
    assert theirs.inbox.done() == []


def test_nothing_is_left_of_it_once_nobody_looks(both_sides: Any) -> None:
    before = (descriptors(), mappings())
    for _ in range(5):
        ours, theirs = both_sides()
        array = arrived(encode_value(np.ones(3 * FIRST_SIZE), ours.outbox), theirs)
        other = arrived(encode_value(np.ones(LARGE), theirs.outbox), ours)
        for one in (ours, theirs):
            one.close()
            one.close()
        assert mappings() > before[1]
        del array, other
        assert (descriptors(), mappings()) == before


def test_without_memory_that_is_a_file_of_no_disk_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    made: list[Segment] = []

    def once() -> Segment:
        if made:
            raise SharedMemoryFull("no more")
        made.append(create())
        return made[0]

    create = Segment.create
    monkeypatch.setattr(Segment, "create", once)
    assert Memory.create() is None
    assert len(made) == 1
    assert descriptors() == before
    monkeypatch.setattr(tidegate_transports.ipc_memory, "IN_MEMORY", False)
    monkeypatch.setattr(Segment, "create", create)
    assert Memory.create() is None
    assert Memory.open([]) is None
    assert shared_memory.IN_MEMORY
