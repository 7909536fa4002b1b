import enum
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from tidegate import END, SKIP, EncodeError, HandlerError, InvalidInput, Overloaded
from tidegate.collate import Rows, rows_of, split, stack
from tidegate.workers.packing import INLINE, Packed, Unpacked, pack, unpack
from tidegate.workers.shared_memory import Arena, Segment, SharedMemoryFull


class Boxes(NamedTuple):
    corners: Any
    label: str


class Color(enum.Enum):
    RED = 1


@dataclass
class Sample:
    pixels: Any
    name: str = "sample"


class Handover:
    """Both ends of one direction, in this process; messages go through msgpack as in a frame."""

    def __init__(self) -> None:
        self.segment = Segment.create()
        self.arena = Arena(self.segment)
        self.other = Segment.open(os.dup(self.segment.fd))
        self.frame = b""

    def __call__(self, values: Any, *, copy: bool = False, **options: Any) -> Unpacked:
        self.packed = pack(values, self.arena, **options)
        self.frame = msgspec.msgpack.encode(self.packed)
        return unpack(msgspec.msgpack.decode(self.frame, type=Packed), self.other, copy=copy)

    def free(self) -> None:
        for offset in self.packed.freed:
            self.segment.view(*self.packed.block)[:] = b"\xee" * self.packed.block[1]  # type: ignore[misc,index]
            self.arena.free(offset)

    def close(self) -> None:
        self.segment.close()
        self.other.close()


@pytest.fixture
def handover() -> Iterator[Handover]:
    handover = Handover()
    yield handover
    handover.close()


def same(one: Any, other: Any) -> bool:
    """Equal in type, dtype, shape and every bit, through structures."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(torch.equal(one.detach(), other))
    if isinstance(one, np.ndarray) and one.dtype.hasobject:
        return bool(one.dtype == other.dtype and one.tolist() == other.tolist())
    if isinstance(one, (np.ndarray, np.generic)):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Sample):
        return same(one.pixels, other.pixels) and one.name == other.name
    return bool(one == other)


RNG = np.random.default_rng(0)
STRUCTURED = np.dtype([("x", "f4"), ("when", "M8[s]"), ("name", "U3")], align=True)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape)


MAKERS: dict[str, Callable[[int], Any]] = {
    "four floats": lambda n: floats(4),
    "images": lambda n: RNG.integers(0, 255, (64, 64, 3), np.uint8),
    "0-d arrays": lambda n: np.array(n * 1.5),
    "empty arrays": lambda n: np.zeros((0, 3)),
    "arrays without items inside": lambda n: np.zeros((3, 0), "int32"),
    "Fortran order": lambda n: np.asfortranarray(floats(30, 40)),
    "every second": lambda n: floats(60, 40)[::2, ::-1],
    "big-endian": lambda n: floats(300).astype(">f8"),
    "big-endian texts": lambda n: np.array(["one", "three"] * 300).astype(">U5"),
    "booleans": lambda n: RNG.integers(0, 2, 500).astype(bool),
    "half floats": lambda n: floats(500).astype("float16"),
    "complex": lambda n: floats(500) * 1j,
    "long doubles": lambda n: floats(500).astype(np.longdouble),
    "dates": lambda n: np.arange(400).astype("M8[h]"),
    "texts": lambda n: np.array(["one", "three"] * 300),
    "byte strings": lambda n: np.array([b"one", b"three"] * 300),
    "structured": lambda n: np.zeros(100, STRUCTURED),
    "objects": lambda n: np.array([n, "x", None], object),
    "wide": lambda n: floats(3, 1000),
    "scalars": lambda n: np.float32(n),
    "integers of NumPy": lambda n: np.int64(n),
    "dates of NumPy": lambda n: np.datetime64(n, "s"),
    "texts of NumPy": lambda n: np.str_("x" * n),
    "tensors": lambda n: torch.arange(12).reshape(3, 4) + n,
    "large tensors": lambda n: torch.rand(100, 100),
    "bfloat16": lambda n: torch.rand(1000).to(torch.bfloat16),
    "float8": lambda n: torch.rand(1000).to(torch.float8_e4m3fn).view(torch.uint8),
    "boolean tensors": lambda n: torch.rand(1000) > 0.5,
    "complex tensors": lambda n: torch.rand(1000, dtype=torch.complex64).conj(),
    "0-d tensors": lambda n: torch.tensor(float(n)),
    "empty tensors": lambda n: torch.zeros(0, 3),
    "transposed tensors": lambda n: torch.rand(30, 40).t(),
    "numbers": lambda n: n * 0.5,
    "mixed numbers": lambda n: None if n == 1 else n if n % 2 else n * 0.5,
    "many digits": lambda n: 10**300 + n,
    "text": lambda n: f"text {n} \ud800",
    "long texts": lambda n: f"é{n}" * 100_000,
    "short bytes": lambda n: bytes(n),
    "bodies": lambda n: RNG.bytes(150_000 + n),
    "bytearrays": lambda n: bytearray(RNG.bytes(150_000)),
    "small dicts": lambda n: {"id": n, "text": "x", 3: (1, 2)},
    "forms": lambda n: {"file": RNG.bytes(100_000), "name": f"{n}.png"},
    "dicts of arrays": lambda n: {"pixels": floats(100, 3), "name": f"{n}", "sizes": [1, n]},
    "dicts of tensors": lambda n: {"ids": torch.arange(1000), "mask": torch.ones(1000, dtype=torch.bool)},
    "tuples of arrays": lambda n: (floats(3), {"deep": floats(1000)}),
    "named tuples": lambda n: Boxes(floats(10, 4), "cat"),
    "lists of arrays": lambda n: [floats(1000), torch.rand(1000), torch.rand(10)],
    "arrays of many shapes": lambda n: floats(100 * n),
    "tensors of many shapes": lambda n: torch.rand(100 * n),
    "now arrays, now lists": lambda n: {"x": floats(3) if n else [1.0]},
    "dicts in other orders": lambda n: {"a": floats(3), "b": n} if n else {"b": n, "a": floats(3)},
    "dataclasses with arrays": lambda n: Sample(floats(500)),
    "dataclasses with tensors": lambda n: Sample(torch.rand(500, dtype=torch.float16)),
    "enums": lambda n: Color.RED,
    "nothing": lambda n: None,
}


@pytest.mark.parametrize("copy", [False, True], ids=["in place", "copied"])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("kind", MAKERS)
def test_values_arrive_as_they_were(handover: Handover, kind: str, size: int, copy: bool) -> None:
    values = [MAKERS[kind](n) for n in range(size)]
    unpacked = handover(values, stack_dim=0, copy=copy)
    assert unpacked.size == size
    if copy:
        handover.free()
    expected = [torch.resolve_conj(value) for value in values] if kind == "complex tensors" else values
    assert same(unpacked.values, expected)
    if not copy:
        handover.free()
    assert handover.arena.used == 0


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@pytest.mark.parametrize("make", [lambda: floats(20, 30), lambda: torch.rand(20, 30)], ids=["arrays", "tensors"])
def test_arrays_are_stacked_on_the_axis_that_was_asked_for(
    handover: Handover, make: Callable[[], Any], dim: int
) -> None:
    values = [make() for _ in range(4)]
    unpacked = handover(values, stack_dim=dim)
    assert same(unpacked.stacked, stack(values, dim))
    assert same(unpacked.values, values)


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"text"}))
def test_what_is_stacked_is_what_the_batch_would_have_been(handover: Handover, kind: str) -> None:
    values = [MAKERS[kind](n) for n in range(3)]
    unpacked = handover(values, stack_dim=0)
    if unpacked.stacked is not None:
        assert same(unpacked.stacked, stack(values, 0))


def test_which_kinds_are_stacked(handover: Handover) -> None:
    taken = {
        kind
        for kind, make in MAKERS.items()
        if isinstance(handover([make(n) for n in range(3)], stack_dim=0).stacked, (np.ndarray, torch.Tensor))
    }
    assert {"four floats", "images", "0-d arrays", "empty arrays", "Fortran order", "every second", "dates"} <= taken
    assert {"tensors", "bfloat16", "boolean tensors", "0-d tensors", "transposed tensors"} <= taken
    assert (
        not {"big-endian", "big-endian texts", "objects", "structured", "arrays of many shapes", "lists of arrays"}
        & taken
    )


def test_an_axis_that_is_not_there_is_left_to_the_function_to_complain_of(handover: Handover) -> None:
    values = [floats(3), floats(3)]
    for dim in (2, -3):
        unpacked = handover(values, stack_dim=dim)
        assert unpacked.stacked is None
        assert same(unpacked.values, values)


def test_what_is_not_to_be_stacked_is_not_shown_as_one(handover: Handover) -> None:
    unpacked = handover([floats(1000)] * 3)
    assert unpacked.stacked is None
    assert len(unpacked.values) == 3


def test_a_structures_arrays_are_stacked_leaf_by_leaf(handover: Handover) -> None:
    values = [{"box": Boxes(floats(100, 4), "cat"), "mask": torch.ones(50), "n": n} for n in range(3)]
    unpacked = handover(values, stack_dim=0)
    assert same(unpacked.stacked, stack(values, 0))
    assert isinstance(unpacked.stacked["box"], Boxes)
    assert same(unpacked.values, values)
    assert len(handover.frame) < 300


# ---------------------------------------------------------------------- where they lie


def five(make: Callable[[int], Any]) -> Callable[[], Any]:
    return lambda: stack([make(n) for n in range(5)])


WHOLES: dict[str, Callable[[], Any]] = {
    **{kind: five(make) for kind, make in MAKERS.items()},
    "one number each": lambda: floats(5),
    "one tensor's number each": lambda: torch.arange(5),
    "one date each": lambda: np.arange(5).astype("M8[h]"),
    "masked": lambda: np.ma.masked_array(floats(5, 3), floats(5, 3) > 0),
    "parameters": lambda: torch.nn.Parameter(torch.rand(5, 3)),
}
# The only row of a batch, in memory where it had many neighbours: its strides are larger than it is.
LONE = [torch.rand(6, 7)[:1, 0], torch.rand(6, 7).to(torch.bfloat16)[:1, 0], torch.rand(6, 7, dtype=torch.complex64)[:1, 0],
        np.arange(42.0).reshape(6, 7)[:1, 0], torch.rand(6, 1, 7)[:1, :, 0], np.arange(42.0).reshape(6, 7)[:1, :1]]  # fmt: skip


def is_whole(kind: str) -> bool:
    return kind not in OF_MANY_SHAPES and isinstance(rows_of(WHOLES[kind]()), Rows)


OF_MANY_SHAPES = {"arrays of many shapes", "tensors of many shapes", "dicts in other orders", "now arrays, now lists"}


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("kind", sorted(kind for kind in WHOLES if is_whole(kind)))
def test_an_output_in_one_piece_arrives_as_its_rows_would_have(handover: Handover, kind: str, dim: int) -> None:
    whole = WHOLES[kind]()
    if dim >= whole.ndim:
        pytest.skip("one axis only")
    output = np.moveaxis(whole, 0, dim) if isinstance(whole, np.ndarray) else whole.movedim(0, dim)
    rows = rows_of(output, dim)
    arrived = handover(rows, copy=True).values
    assert len(arrived) == 5
    assert all(same(one, row) for one, row in zip(arrived, split(output, dim), strict=True))
    # Nobody has cut up on the way what has nothing in it but numbers.
    assert isinstance(rows, Rows)
    numbers = isinstance(whole, torch.Tensor) or (type(whole) is np.ndarray and whole.dtype.kind in "biufc")
    assert (rows._rows is None) == bool(numbers)


@pytest.mark.parametrize("whole", LONE)
def test_an_output_of_one_row_arrives_whatever_its_strides_are(handover: Handover, whole: Any) -> None:
    (row,) = split(whole)
    assert same(handover(rows_of(whole), copy=True).values, [row])
    assert same(handover([row, row], copy=True).values, [row, row])
    assert same(handover([[row]], copy=True).values, [[row]])


def address(array: Any) -> int:
    return int(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


@pytest.mark.parametrize("make", [lambda: floats(100, 100), lambda: torch.rand(100, 100)], ids=["arrays", "tensors"])
@pytest.mark.parametrize("nested", [False, True], ids=["stacked", "in a list"])
def test_arrays_are_read_and_written_where_they_lie(handover: Handover, make: Callable[[], Any], nested: bool) -> None:
    values = [[make()] if nested else make() for _ in range(3)]
    unpacked = handover(values, stack_dim=0)
    base = np.frombuffer(handover.other.buffer, np.uint8).ctypes.data
    for value in unpacked.values:
        array = value[0] if nested else value
        assert base <= address(array) < base + handover.other.size
        assert address(array) % 64 == 0
        array[:] = 0
    if not nested:
        assert not bool(unpacked.stacked.any())
        assert address(unpacked.stacked) == address(unpacked.values[0])


@pytest.mark.parametrize("kind", ["four floats", "images", "bfloat16", "dataclasses with arrays", "lists of arrays"])
def test_a_copy_is_nobody_elses(handover: Handover, kind: str) -> None:
    values = [MAKERS[kind](n) for n in range(3)]
    unpacked = handover(values, stack_dim=0, copy=True)
    handover.free()
    assert same(unpacked.values, values)


@pytest.mark.parametrize("nbytes", [100, 10_000])
def test_read_only_arrays_arrive_writable(handover: Handover, nbytes: int) -> None:
    array = np.frombuffer(bytes(nbytes), np.uint8)
    assert not array.flags.writeable
    for unpacked in (handover([array, array]), handover([[array]]), handover([[array]], copy=True)):
        value = unpacked.values[0]
        value = value[0] if isinstance(value, list) else value
        value[:] = 1
        assert value.all()
    assert not array.any()


def test_an_array_that_is_sent_twice_is_one_array_again(handover: Handover) -> None:
    array = floats(5000)
    one, other = handover([[array], [array]]).values
    assert one[0] is other[0]
    assert handover.packed.block is not None
    assert handover.packed.block[1] < 2 * array.nbytes


def test_small_batches_travel_in_the_frame(handover: Handover) -> None:
    for values in ([floats(4) for _ in range(64)], [{"a": n} for n in range(64)], list(range(64)), [b"x"] * 64):
        handover(values, stack_dim=0)
        assert handover.packed.block is None
        assert len(handover.frame) < INLINE + 200
    assert handover.arena.used == 0


def test_large_batches_leave_the_frame_small(handover: Handover) -> None:
    for kind in ("images", "bodies", "large tensors", "long texts", "dicts of tensors", "forms"):
        handover([MAKERS[kind](n) for n in range(16)], stack_dim=0)
        assert len(handover.frame) < 300, kind
        handover.free()


def test_tensors_that_compute_gradients_arrive_as_plain_ones(handover: Handover) -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    values = [parameter * 2, torch.ones(1000, requires_grad=True)]
    for unpacked in (handover(values, stack_dim=0), handover([[value] for value in values]), handover([parameter] * 2)):
        for value in unpacked.values:
            tensor = value[0] if isinstance(value, list) else value
            assert type(tensor) is torch.Tensor
            assert not tensor.requires_grad
            tensor += 1


def test_subclasses_of_arrays_stay_what_they_are(handover: Handover) -> None:
    masked = np.ma.masked_equal(np.arange(1000), 3)
    (value,) = handover([masked]).values
    assert isinstance(value, np.ma.MaskedArray)
    assert value[3] is np.ma.masked
    records = np.arange(3).astype([("n", "i8")]).view(np.recarray)
    assert isinstance(handover([records]).values[0], np.recarray)


def test_a_mapped_file_arrives_as_an_array(handover: Handover, tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", "float32", "w+", shape=(4, 1000))
    mapped[:] = 7
    values = handover([mapped[0], mapped[1]], stack_dim=0).values
    assert [type(value) for value in values] == [np.ndarray, np.ndarray]
    assert all((value == 7).all() for value in values)


@pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor", "ignore:TypedStorage is deprecated", "ignore:Sparse invariant"
)
def test_sparse_and_quantized_tensors_go_torchs_own_way(handover: Handover) -> None:
    sparse = torch.eye(50).to_sparse()
    quantized = torch.quantize_per_tensor(torch.rand(50), 0.1, 0, torch.quint8)
    one, other = handover([sparse, quantized], stack_dim=0).values
    assert torch.equal(one.to_dense(), torch.eye(50))
    assert torch.equal(other.int_repr(), quantized.int_repr())


def test_a_process_without_torch_gets_arrays(handover: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[Any] = [torch.arange(1000) * 0.5, torch.arange(1000) * 0.5]
    for unsent in (values, [[value] for value in values], [value.to(torch.bfloat16) for value in values]):
        with monkeypatch.context() as patch:
            packed = pack(unsent, handover.arena)
            patch.delitem(sys.modules, "torch")
            received = unpack(packed, handover.other, copy=True).values
        for value, sent in zip(received, unsent, strict=True):
            array = value[0] if isinstance(value, list) else value
            assert isinstance(array, np.ndarray)
            tensor = sent[0] if isinstance(sent, list) else sent
            assert array.dtype == np.float32
            assert (array == tensor.float().numpy()).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_gpu_arrive_on_the_host(handover: Handover) -> None:
    values: list[Any] = [torch.full((100, 100), n, device="cuda", dtype=torch.bfloat16) for n in range(3)]
    for unsent in (values, [[value] for value in values], [values[0], values[1].cpu()]):
        for value, sent in zip(handover(unsent, stack_dim=0).values, unsent, strict=True):
            tensor = value[0] if isinstance(value, list) else value
            assert tensor.device.type == "cpu"
            assert torch.equal(tensor, (sent[0] if isinstance(sent, list) else sent).cpu())


@pytest.fixture
def busy_thread() -> Iterator[None]:
    """A thread that gives the GIL up only after a while; whoever gives it up beside it waits for as long."""
    before, ended = sys.getswitchinterval(), threading.Event()

    def spin() -> None:
        while not ended.is_set():
            pass

    thread = threading.Thread(target=spin)
    sys.setswitchinterval(0.2)
    thread.start()
    yield
    ended.set()
    sys.setswitchinterval(before)
    thread.join()


def test_the_copies_do_not_wait_for_the_services_other_threads(handover: Handover, busy_thread: None) -> None:
    values = [floats(200, 200) for _ in range(16)]
    times = []
    for _ in range(4):
        start = time.perf_counter()
        handover(values, stack_dim=0, copy=True)
        handover.free()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


# ---------------------------------------------------------------------- what is no value


def test_errors_and_sentinels_stay_in_their_places(handover: Handover) -> None:
    array = floats(2000)
    values = [END, array, Overloaded(retry_after=3.0), array + 1, SKIP, ValueError("no")]
    for copy in (False, True):
        got = handover(values, copy=copy).values
        assert got[0] is END
        assert got[4] is SKIP
        assert same([got[1], got[3]], [array, array + 1])
        assert isinstance(got[2], Overloaded)
        assert got[2].retry_after == 3.0
        assert isinstance(got[5], HandlerError)
        assert got[5].type_name == "ValueError"
    assert handover(values, stack_dim=0).stacked is None


@pytest.mark.parametrize("values", [[], [END], [SKIP, SKIP], [KeyError("x")]])
def test_a_batch_of_nothing_else_takes_no_memory(handover: Handover, values: list[Any]) -> None:
    got = handover(values).values
    assert len(got) == len(values)
    assert handover.packed.block is None
    assert handover.packed.inline is None


class Stubborn:
    """Says no in a way of its own."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def local_instance() -> Any:
    class Local:
        pass

    return Local()


UNSENDABLE: dict[str, Callable[[], Any]] = {
    "_thread.lock": threading.Lock,
    "generator": lambda: (n for n in [1]),
    "function": lambda: lambda: None,
    "list": lambda: nested(100_000),
    "Local": local_instance,
    "memoryview": lambda: memoryview(b"x"),
    "Stubborn": lambda: Stubborn(RuntimeError("never")),
    "dict": lambda: {"deep": [threading.Lock()]},
}


@pytest.mark.parametrize("kind", UNSENDABLE)
def test_a_value_that_cannot_be_sent_is_its_items_error_alone(handover: Handover, kind: str) -> None:
    array = floats(5000)
    values = [{"x": array}, UNSENDABLE[kind](), {"x": array + 1}, END]
    got = handover(values, unsendable=InvalidInput).values
    assert same([got[0], got[2]], [values[0], values[2]])
    assert got[3] is END
    assert isinstance(got[1], InvalidInput)
    assert "cannot send a value of type" in got[1].detail
    assert kind in got[1].detail
    handover.free()
    assert handover.arena.used == 0


def test_an_output_that_cannot_be_sent_is_an_error_of_the_handlers(handover: Handover) -> None:
    (error,) = handover([threading.Lock()]).values
    assert isinstance(error, EncodeError)
    assert error.status == 500
    assert "cannot send a value of type _thread.lock between processes: TypeError" in error.detail


class Unmakeable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_values_that_cannot_be_made_again_are_told_with_the_reason(handover: Handover) -> None:
    with pytest.raises(TypeError, match="cannot be made again in this process: ValueError: invalid literal"):
        handover([Unmakeable()])


def test_a_block_beyond_the_memory_is_an_error(handover: Handover) -> None:
    handover([floats(2000)])
    lie = msgspec.structs.replace(handover.packed, block=(1 << 40, 16_000))
    with pytest.raises(ValueError, match="outside of the shared memory"):
        unpack(lie, handover.other)


def test_a_lack_of_memory_is_told_and_leaves_nothing_taken(handover: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> None:
        raise SharedMemoryFull("no more")

    monkeypatch.setattr(handover.segment, "grow", full)
    with pytest.raises(SharedMemoryFull):
        handover([floats(1000, 1000)] * 2)
    assert handover.arena.used == 0


def test_values_that_cannot_be_stacked_after_all_are_sent_as_they_are(
    handover: Handover, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("not these")

    values = [floats(300, 30).T for _ in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(np, "stack", fail)
        unpacked = handover(values, stack_dim=0)
    assert unpacked.stacked is None
    assert same(unpacked.values, values)
    handover.free()
    assert handover.arena.used == 0


class Vanishing:
    """Can be pickled once for each item, and then no more."""

    left = 0

    def __reduce__(self) -> Any:
        type(self).left -= 1
        if type(self).left < 0:
            raise RuntimeError("gone")
        return int, ()


def test_values_that_change_their_mind_are_all_told_so(handover: Handover) -> None:
    # The first attempt fails at the lock; each alone can be sent; together again they cannot.
    Vanishing.left = 2
    got = handover([Vanishing(), threading.Lock()]).values
    assert all(isinstance(value, EncodeError) for value in got)


def test_nothing_of_a_batch_is_kept_once_it_is_packed(handover: Handover) -> None:
    for make in (lambda: floats(2000), lambda: Sample(floats(2000)), lambda: torch.rand(2000)):
        value = make()
        gone = weakref.ref(value)
        handover([value])
        del value
        assert gone() is None
        handover.free()


def test_classes_of_a_notebook_travel_by_value(handover: Handover) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Typed:\n    def __init__(self, x): self.x = x", namespace)  # noqa: S102 - as a notebook does
    array = floats(5000)
    (value,) = handover([namespace["Typed"](array)], by_value=True).values
    assert type(value).__name__ == "Typed"
    assert same(value.x, array)
    base = np.frombuffer(handover.other.buffer, np.uint8).ctypes.data
    assert base <= address(value.x) < base + handover.other.size
