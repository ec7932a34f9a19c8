"""Checking a pickle of weights before torch builds anything from it.

A few kilobytes of pickle can ask for a terabyte, for a hash that takes years, or for a function
that runs anything. `PickleCheck` follows the pickle's steps on stand-ins, knows the few functions
that rebuild tensors, and compares what they ask for with what the file stores.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

from pinmem_core.models.pickle_machine import (
    Attributes,
    Machine,
    NotWeightsError,
    OddPickleError,
    Tuple,
    as_key,
)

_MOST_STEPS = 500_000
_MOST_CALLS = 100_000
_MOST_DIMENSIONS = 64
_REPEATED = 2**27
"""Values of tensors beyond those that the file stores: a tensor may repeat a single value."""

_STORAGES = {
    "ComplexDoubleStorage": 16,
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
    "UntypedStorage": 1,
}
"""Bytes of a value, by the class of its storage."""
_TYPES = {
    f"torch {name}": kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)
}
_GLOBALS = {
    *("collections OrderedDict", "collections Counter", "__builtin__ set", "builtins set"),
    *("_codecs encode", "torch Size", "torch device", "torch.serialization _get_layout"),
    *(f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")),
    *(f"torch._utils _rebuild_{name}" for name in ("parameter", "sparse_tensor")),
    "torch._utils _rebuild_meta_tensor_no_storage",
    *("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar"),
    *(f"torch {name}" for name in _STORAGES),
    "torch.storage UntypedStorage",
    *_TYPES,
}
"""What a file of weights may name."""


@dataclass(frozen=True)
class _Global:
    """Stands for a class, function or constant."""

    name: str


@dataclass(frozen=True)
class _Result:
    """Stands for what a function returned."""

    kind: str


@dataclass(frozen=True)
class _Storage:
    """Stands for values that the file stores."""

    values: int
    value_bytes: int


@dataclass
class PickleCheck:
    """The check of the pickles of one file.

    Attributes:
        largest: Returns the bytes that the storage of a key may have.
        file_bytes: Size of the file.
        storages: Bytes of each storage that the pickles refer to, by key.
    """

    largest: Callable[[str], int]
    file_bytes: int
    storages: dict[str, int] = field(default_factory=dict)
    _known: dict[str, _Storage] = field(default_factory=dict)
    _steps: int = 0
    _calls: int = 0
    _values: int = 0

    def run(self, stream: BinaryIO) -> Any:
        """Run the next pickle of a stream on stand-ins, and return what it builds.

        Raises:
            NotWeightsError: It asks for what weights do not need.
            OddPickleError: It is damaged, or not written by torch.save.
        """
        machine = Machine(_find, self._call, self._load, _build)
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._steps += 1
                if self._steps > _MOST_STEPS:
                    raise NotWeightsError(f"takes more than {_MOST_STEPS:,} steps to rebuild")
                machine.step(opcode.name, argument)
            return machine.result()
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise OddPickleError from error

    def _call(self, function: object, arguments: tuple[Any, ...]) -> object:
        self._calls += 1
        if self._calls > _MOST_CALLS:
            raise NotWeightsError(f"holds more than {_MOST_CALLS:,} tensors")
        if not isinstance(function, _Global):
            raise OddPickleError
        name = function.name.rpartition(" ")[2]
        match arguments:
            case (_Storage() as storage, offset, size, stride, *rest) if "_tensor" in name:
                return self._tensor(name, storage, (offset, size, stride), rest)
            case (_Result("tensor") as tensor, _, _) if name == "_rebuild_parameter":
                return tensor
            case (_, (_Result("tensor"), _Result("tensor"), size, *_)) if "_sparse" in name:
                self._count(_counts(size))
                return _Result("sparse tensor")
            case (_, size, stride, _) if name == "_rebuild_meta_tensor_no_storage":
                self._count(_counts(size))
                _counts(stride)
                return _Result("meta tensor")
        return _small(name, arguments)

    def _tensor(
        self, name: str, storage: _Storage, place: tuple[Any, Any, Any], rest: list[Any]
    ) -> _Result:
        """Return a tensor that lies within its storage."""
        value_bytes = storage.value_bytes
        match name, rest:
            case ("_rebuild_tensor", []) | ("_rebuild_tensor_v2", [_, _]):
                pass
            case "_rebuild_tensor_v3", [_, _, _Global(name=kind)] if kind in _TYPES:
                value_bytes = _TYPES[kind].itemsize
            case _:
                raise OddPickleError
        (offset,), size, stride = _counts((place[0],)), _counts(place[1]), _counts(place[2])
        if len(size) != len(stride):
            raise OddPickleError
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and (last + 1) * value_bytes > storage.values * storage.value_bytes:
            raise OddPickleError
        self._count(size)
        return _Result("tensor")

    def _count(self, size: tuple[int, ...]) -> None:
        values = 1
        for count in size:
            values *= count
        self._values += values
        if self._values > _REPEATED + self.file_bytes:
            raise NotWeightsError("holds tensors of far more values than it stores")

    def _load(self, identity: object) -> _Storage:
        """Return the storage of a persistent id."""
        match identity:
            case ("storage", _Global(name=kind), str() as key, str(), int() as values, *view):
                storage = _Storage(values, _STORAGES[kind.rpartition(" ")[2]])
            case _:
                raise OddPickleError
        size = storage.values * storage.value_bytes
        if not 0 <= size <= self.largest(key) or self._known.setdefault(key, storage) != storage:
            raise OddPickleError
        self.storages[key] = size
        match view:
            case [] | [None]:
                return storage
            case [(str() as part, int() as offset, int() as count)] if (
                0 <= offset <= offset + count <= values
            ):
                seen = self._known.setdefault(part, _Storage(count, storage.value_bytes))
                if seen.values == count and seen.value_bytes == storage.value_bytes:
                    return seen
        raise OddPickleError


def _find(name: str) -> _Global:
    if name not in _GLOBALS:
        shown = name.replace(" ", ".")[:100]
        raise NotWeightsError(f"holds '{shown}', which could run code or is no part of weights")
    return _Global(name)


def _small(name: str, arguments: tuple[Any, ...]) -> object:
    """Return what a function of small arguments returns."""
    match name, arguments:
        case "OrderedDict", ():
            return Attributes()
        case "OrderedDict", (list() as pairs,):
            return Attributes({as_key(key): value for key, value in pairs})
        case "Counter", () | (dict(),):
            return Attributes(*arguments)
        case "set", (list() as entries,):
            return {as_key(entry) for entry in entries}
        case "encode", (str() as text, "latin1"):
            return text.encode("latin1")
        case "Size", (tuple() as size,):
            return Tuple(_counts(size))
        case "device" | "_get_layout", (str(), *_):
            return _Result(name)
        case "dtype", (str() as kind, *_) if kind[:1] in "biuf" and kind[1:] in "1248":
            return _Result("numpy.dtype")
        case "scalar", (_Result("numpy.dtype"), bytes() as data) if len(data) <= 32:
            return _Result("number")
    raise OddPickleError


def _build(target: object, state: object) -> None:
    """Raise OddPickleError unless `target` may be given the attributes in `state`."""
    match target, state:
        case Attributes(), dict() if state.keys() <= {"_metadata"}:
            return  # others would hide the methods
        case _Result("numpy.dtype"), (3, "<" | ">" | "|", None, None, None, -1, -1, 0):
            return
    raise OddPickleError


def _counts(numbers: object) -> tuple[int, ...]:
    """Return numbers that may be a size, stride or offset."""
    if not isinstance(numbers, tuple) or len(numbers) > _MOST_DIMENSIONS:
        raise OddPickleError
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise OddPickleError
    return numbers
