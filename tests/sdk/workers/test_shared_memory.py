import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.workers import shared_memory
from tidegate.workers.shared_memory import ALIGNMENT, FIRST_SIZE, Arena, Block, Segment, SharedMemoryFull
from tidegate_batching import OutOfMemory
from tidegate_batching.errors import from_foreign


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create()
    yield segment
    segment.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------------- the memory


def test_what_one_process_writes_the_other_reads_and_may_write_over(segment: Segment) -> None:
    segment.view(100, 5)[:] = b"hello"
    code = (
        "import sys\n"
        "from tidegate.workers.shared_memory import Segment\n"
        "view = Segment.open(int(sys.argv[1])).view(100, 5)\n"
        "assert bytes(view) == b'hello'\n"
        "view[:] = b'there'\n"
    )
    command = [sys.executable, "-c", code, str(segment.fd)]
    subprocess.run(command, check=True, timeout=60, pass_fds=[segment.fd])
    assert bytes(segment.view(100, 5)) == b"there"


def test_it_has_no_name_anywhere() -> None:
    before = set(os.listdir("/dev/shm"))
    segment = Segment.create(8 << 20)
    segment.view(0, 8 << 20)[:] = bytes(8 << 20)
    assert set(os.listdir("/dev/shm")) == before
    assert os.readlink(f"/proc/self/fd/{segment.fd}") == "/memfd:tidegate (deleted)"
    assert not os.get_inheritable(segment.fd)
    segment.close()


def test_a_view_outlives_growth_and_the_segment_itself(segment: Segment) -> None:
    other = Segment.open(os.dup(segment.fd))
    view, array = segment.view(0, 4), np.ndarray(4, np.uint8, other.buffer)
    view[:] = b"abcd"
    segment.grow(64 << 20)
    other.ensure(64 << 20)
    # Both mappings are of the same memory.
    segment.view(0, 1)[:] = b"z"
    assert bytes(view) == array.tobytes() == b"zbcd"
    segment.close()
    other.close()
    view[:] = b"more"
    assert array.tobytes() == b"more"


def test_closed_segments_leave_no_descriptor_once_nobody_looks() -> None:
    before = open_descriptors()
    for _ in range(10):
        segment = Segment.create()
        view = segment.view(0, 10)
        segment.grow(4 << 20)
        segment.grow(16 << 20)
        segment.close()
        segment.close()
        del view
    assert open_descriptors() == before


def test_the_other_side_maps_what_has_grown_when_it_is_told_of_it(segment: Segment) -> None:
    other = Segment.open(os.dup(segment.fd))
    size = other.size
    segment.grow(4 * size)
    segment.view(3 * size, 3)[:] = b"far"
    assert other.size == size
    assert bytes(other.view(3 * size, 3)) == b"far"
    other.close()


@pytest.mark.parametrize(("offset", "size"), [(FIRST_SIZE, 1), (0, FIRST_SIZE + 1), (-1, 1), (0, -1), (1 << 62, 1)])
def test_an_offset_that_is_not_there_is_an_error_and_no_crash(segment: Segment, offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="offset"):
        segment.view(offset, size)


def test_a_closed_segment_says_so(segment: Segment) -> None:
    segment.close()
    with pytest.raises(ValueError, match="closed"):
        _ = segment.buffer


def test_nobody_can_take_memory_away_from_under_the_other(segment: Segment) -> None:
    # It would end whoever touches it next.
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)


@pytest.mark.parametrize(
    ("limit", "size"), [(resource.RLIMIT_FSIZE, 64 << 20), (resource.RLIMIT_AS, 64 << 30), (None, 1 << 62)]
)
def test_memory_that_is_not_to_be_had_is_an_error_that_says_how_much(limit: int | None, size: int) -> None:
    code = f"""
import resource
from tidegate.workers import shared_memory
from tidegate.workers.shared_memory import Arena, Segment, SharedMemoryFull
arena = Arena(Segment.create())
block = arena.allocate(100)
if {limit!r} is not None:
    resource.setrlimit({limit!r}, ({size // 2}, {size // 2}))
try:
    arena.allocate({size})
except SharedMemoryFull as error:
    assert "{size}" in str(error) or "{size + 4096}" in str(error), error
else:
    raise AssertionError("it was to be had")
arena.free(block.offset)
assert arena.allocate(1000).offset == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_lack_of_shared_memory_counts_as_a_lack_of_memory() -> None:
    assert isinstance(from_foreign(SharedMemoryFull("no 5 bytes")), OutOfMemory)


def test_elsewhere_than_on_linux_an_unlinked_file_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shared_memory, "IN_MEMORY", False)
    arena = Arena(Segment.create())
    assert list(tmp_path.iterdir()) == []
    block = arena.allocate(3 << 20)
    other = Segment.open(os.dup(arena.segment.fd))
    arena.segment.view(block.offset, 3)[:] = b"abc"
    assert bytes(other.view(block.offset, 3)) == b"abc"
    # Written when it grows: on a full disk that is an error, where the first touch would be the end.
    assert os.fstat(other.fd).st_blocks * 512 >= 3 << 20
    other.close()
    arena.segment.close()


# ---------------------------------------------------------------------- its blocks


def test_blocks_are_aligned_and_the_lowest_that_fits_is_taken_again(segment: Segment) -> None:
    arena = Arena(segment)
    first, second, third = arena.allocate(100), arena.allocate(1), arena.allocate(0)
    assert (first, second, third) == (Block(0, 128), Block(128, 64), Block(192, 64))
    arena.free(first.offset)
    assert arena.allocate(129).offset == 256
    assert arena.allocate(128) == first


def test_a_block_can_be_taken_back_only_once_and_only_whole(segment: Segment) -> None:
    arena = Arena(segment)
    block = arena.allocate(1000)
    for offset in (64, -64, 1 << 40):
        with pytest.raises(ValueError, match=str(offset)):
            arena.free(offset)
    arena.free(block.offset)
    with pytest.raises(ValueError, match="taken back before"):
        arena.free(block.offset)


def test_growing_uses_what_is_free_at_the_end(segment: Segment) -> None:
    arena = Arena(segment)
    arena.allocate(FIRST_SIZE // 2)
    block = arena.allocate(3 * FIRST_SIZE)
    assert block.offset == FIRST_SIZE // 2
    assert segment.size == FIRST_SIZE // 2 + 3 * FIRST_SIZE


def test_growth_doubles_at_least(segment: Segment) -> None:
    arena = Arena(segment)
    sizes = set()
    for _ in range(1000):
        arena.allocate(FIRST_SIZE // 10)
        sizes.add(segment.size)
    assert len(sizes) <= 8


def test_it_grows_up_to_its_limit_and_is_of_use_still(segment: Segment) -> None:
    arena = Arena(segment, limit=5 * FIRST_SIZE)
    first = arena.allocate(3 * FIRST_SIZE)
    assert segment.size == 3 * FIRST_SIZE
    arena.allocate(FIRST_SIZE)
    # Twice as much would be more.
    assert segment.size == 5 * FIRST_SIZE
    with pytest.raises(SharedMemoryFull, match=f"limit is {5 * FIRST_SIZE}"):
        arena.allocate(FIRST_SIZE + 1)
    arena.allocate(FIRST_SIZE)
    arena.free(first.offset)
    assert arena.allocate(3 * FIRST_SIZE) == first


def allocated_bytes(segment: Segment) -> int:
    return os.fstat(segment.fd).st_blocks * 512


def test_memory_that_a_burst_needed_is_given_back_when_nobody_has_needed_it_for_long(segment: Segment) -> None:
    arena = Arena(segment, gives_back=True)
    burst = arena.allocate(32 << 20)
    kept = arena.allocate(10)
    segment.view(burst.offset, burst.size)[:] = b"x" * burst.size
    arena.free(burst.offset)
    assert allocated_bytes(segment) >= 32 << 20
    segment.view(kept.offset, 4)[:] = b"kept"
    for _ in range(3 * Arena.REVIEWED_AFTER):
        arena.free(arena.allocate(1000).offset)
    # A block above it is in use, so that is where the memory begins that nobody needs.
    assert allocated_bytes(segment) >= 32 << 20
    arena.free(kept.offset)
    for _ in range(3 * Arena.REVIEWED_AFTER):
        arena.free(arena.allocate(1000).offset)
    assert allocated_bytes(segment) <= 2 * FIRST_SIZE
    block = arena.allocate(32 << 20)
    segment.view(block.offset, block.size)[-1:] = b"y"
    assert bytes(segment.view(block.offset + block.size - 2, 2)) == b"\0y"


def test_memory_is_kept_unless_giving_it_back_was_asked_for(segment: Segment) -> None:
    arena = Arena(segment)
    burst = arena.allocate(32 << 20)
    segment.view(burst.offset, burst.size)[:] = b"x" * burst.size
    arena.free(burst.offset)
    for _ in range(3 * Arena.REVIEWED_AFTER):
        arena.free(arena.allocate(1000).offset)
    assert allocated_bytes(segment) >= 32 << 20


def test_threads_never_get_the_same_bytes(segment: Segment) -> None:
    arena = Arena(segment)
    wrong: list[bytes] = []

    def work(mark: int) -> None:
        for size in range(1, 400):
            block = arena.allocate(size * 7)
            view = segment.view(block.offset, block.size)
            view[:] = bytes([mark]) * block.size
            if bytes(view) != bytes([mark]) * block.size:
                wrong.append(bytes(view))
            arena.free(block.offset)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert arena.holes == [Block(0, segment.size)]


class ArenaMachine(RuleBasedStateMachine):
    """Blocks are handed out and taken back in any order; each holds its own bytes all the while."""

    def __init__(self) -> None:
        super().__init__()
        self.segment = Segment.create(mmap.PAGESIZE)
        self.arena = Arena(self.segment, gives_back=True)
        self.blocks: dict[Block, int] = {}

    @rule(nbytes=st.integers(0, 3000) | st.integers(0, 3 << 20), mark=st.integers(0, 255))
    def allocate(self, nbytes: int, mark: int) -> None:
        block = self.arena.allocate(nbytes)
        assert block.size >= nbytes
        assert block.offset % ALIGNMENT == 0
        assert block.offset + block.size <= self.segment.size
        for other in self.blocks:
            assert block.offset + block.size <= other.offset or other.offset + other.size <= block.offset
        self.segment.view(*block)[:] = bytes([mark]) * block.size
        self.blocks[block] = mark

    @precondition(lambda self: bool(self.blocks))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.blocks)))
        self._free(block)

    @rule()
    def churn(self) -> None:
        for _ in range(Arena.REVIEWED_AFTER):
            self.arena.free(self.arena.allocate(10).offset)

    @invariant()
    def what_is_free_and_what_is_used_are_the_whole(self) -> None:
        assert self.arena.used == sum(block.size for block in self.blocks)
        assert self.arena.used + sum(hole.size for hole in self.arena.holes) == self.segment.size
        for one, following in zip(self.arena.holes, self.arena.holes[1:], strict=False):
            assert one.offset + one.size < following.offset

    def teardown(self) -> None:
        for block in list(self.blocks):
            self._free(block)
        assert self.arena.holes == [Block(0, self.segment.size)]
        self.segment.close()

    def _free(self, block: Block) -> None:
        mark = self.blocks.pop(block)
        assert bytes(self.segment.view(*block)) == bytes([mark]) * block.size
        self.arena.free(block.offset)


TestArenaMachine = ArenaMachine.TestCase


# ---------------------------------------------------------------------- pinned for a GPU


def test_without_a_gpu_nothing_is_pinned_and_nothing_is_said(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert not segment.pin()
    assert not segment.pinned
    assert caplog.text == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pinned_segment_stays_pinned_as_it_grows(segment: Segment) -> None:
    assert segment.pin() == torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    torch.ones(1, device="cuda")
    assert segment.pin()
    first = torch.frombuffer(segment.buffer, dtype=torch.uint8, count=1000)
    assert first.is_pinned()
    segment.grow(16 << 20)
    grown = torch.frombuffer(segment.buffer, dtype=torch.uint8, count=8 << 20, offset=4 << 20)
    assert grown.is_pinned()
    assert segment.pinned
    grown[:] = 7
    assert int(grown.to("cuda", non_blocking=True).sum()) == 7 * (8 << 20)
    segment.close()
    assert not grown.is_pinned()
    assert int(grown[0]) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_failure_to_pin_is_logged_once_and_hurts_nobody(segment: Segment, caplog: pytest.LogCaptureFixture) -> None:
    torch.ones(1, device="cuda")
    assert segment.pin()
    again = Segment.open(os.dup(segment.fd))
    again._mapped = segment.buffer  # the same addresses, which CUDA refuses
    assert not again.pin()
    assert not again.pinned
    assert caplog.text.count("not pinned") == 1
    # The error must not be reported to the next kernel.
    assert float((torch.ones(4, device="cuda") * 2).sum()) == 8
    again.close()
