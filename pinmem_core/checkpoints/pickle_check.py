"""Check a pickle of weights before torch builds anything from it.

A few kilobytes of pickle can ask for a terabyte, for a hash that takes years, or for a function
that runs code. `PickleCheck` runs the pickle on placeholders: nothing is imported and nothing is
called. It knows the few functions that rebuild tensors, and compares their arguments with the sizes
of the storages in the file.
"""

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

import torch

_LARGEST_TUPLE = 1000
"""Maximum number of entries of a tuple, nested ones included; a hash visits all of them."""
_LARGEST_BITS = 71
"""Maximum bits of an integer; many longer ones can share a hash, which makes a dict slow."""
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MOST_STEPS = 500_000
_MOST_CALLS = 100_000
_MOST_DIMENSIONS = 64
_REPEATED = 2**27
"""Maximum number of tensor values beyond the stored ones; a tensor may repeat a single value."""

_STORAGES = {
    "ComplexDoubleStorage": 16,
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
    "UntypedStorage": 1,
}
"""Bytes per value by class of storage."""
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
"""Classes, functions and constants that a file of weights may name."""


class OddPickleError(Exception):
    """A pickle that `torch.save` does not write."""


class NotWeightsError(Exception):
    """A pickle that asks for more than weights need; the message ends a sentence."""


class _Attributes(dict[Any, Any]):
    """Placeholder for an OrderedDict or a Counter, which may have attributes."""


class _Tuple(tuple[Any, ...]):
    """Placeholder for a tuple; counts its entries, nested ones included."""

    entries: int

    def __new__(cls, items: Iterable[Any]) -> "_Tuple":
        new = super().__new__(cls, items)
        new.entries = 1 + sum(item.entries if isinstance(item, _Tuple) else 1 for item in new)
        if new.entries > _LARGEST_TUPLE:
            raise NotWeightsError(f"holds a tuple of more than {_LARGEST_TUPLE:,} entries")
        return new


@dataclass(frozen=True)
class _Global:
    """Placeholder for a class, function or constant."""

    name: str


@dataclass(frozen=True)
class _Result:
    """Placeholder for the result of a function."""

    kind: str


@dataclass(frozen=True)
class _Storage:
    """Placeholder for values that the file stores."""

    values: int
    value_bytes: int


@dataclass
class PickleCheck:
    """Check of the pickles of one file.

    Attributes:
        largest: Function that returns the maximum bytes of the storage with a key.
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
        """Run the next pickle of a stream on placeholders, and return its result.

        Raises:
            NotWeightsError: The pickle asks for more than weights need.
            OddPickleError: The pickle is damaged, or not written by torch.save.
        """
        machine = _Machine(self)
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._steps += 1
                if self._steps > _MOST_STEPS:
                    raise NotWeightsError(f"takes more than {_MOST_STEPS:,} steps to rebuild")
                machine.step(opcode.name, argument)
            return machine.stack.pop()
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise OddPickleError from error

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Return the placeholder for the result of a function."""
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
        self._values += prod(size)
        if self._values > _REPEATED + self.file_bytes:
            raise NotWeightsError("holds tensors of far more values than it stores")

    def load(self, identity: object) -> _Storage:
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


class _Machine:
    """The stack machine that runs a pickle, with the opcodes that torch writes."""

    def __init__(self, check: PickleCheck) -> None:
        self.check = check
        self.stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Run the opcode `name`."""
        stack = self.stack
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > _LARGEST_BITS:
                raise NotWeightsError(f"holds an integer of more than {_LARGEST_BITS} bits")
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in _SHORT_TUPLES:
            self._shorten(_SHORT_TUPLES[name])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self._outer.append(stack)
            self.stack = []
        elif name == "TUPLE":
            items = self._marked()
            self.stack.append(_Tuple(items))
        elif name == "GLOBAL":
            stack.append(_find(argument))
        elif name not in ("PROTO", "STOP"):
            self._change(name)

    def _change(self, name: str) -> None:
        """Run an opcode that changes the top of the stack, or makes an empty container."""
        match name:
            case "REDUCE":
                arguments = self._popped(tuple)
                self.stack[-1] = self.check.call(self.stack[-1], arguments)
            case "BINPERSID":
                self.stack[-1] = self.check.load(self.stack[-1])
            case "BUILD":
                state = self.stack.pop()
                _build(self.stack[-1], state)
            case "APPEND":
                value = self.stack.pop()
                self._top(list).append(value)
            case "APPENDS":
                values = self._marked()
                self._top(list).extend(values)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self._top(dict)[_key(key)] = value
            case "SETITEMS":
                values = self._marked()
                pairs = zip(values[::2], values[1::2], strict=True)
                self._top(dict).update({_key(key): value for key, value in pairs})
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(_Tuple(()))
            case "EMPTY_SET":
                self.stack.append(set())
            case _:
                raise OddPickleError

    def _shorten(self, count: int) -> None:
        if len(self.stack) < count:
            raise OddPickleError
        self.stack[-count:] = [_Tuple(self.stack[-count:])]

    def _marked(self) -> list[Any]:
        """Return the values on the stack since the last mark."""
        items = self.stack
        self.stack = self._outer.pop()
        return items

    def _popped(self, kind: type) -> Any:
        value = self._top(kind)
        self.stack.pop()
        return value

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise OddPickleError
        return self.stack[-1]


def _find(name: str) -> _Global:
    if name not in _GLOBALS:
        shown = name.replace(" ", ".")[:100]
        raise NotWeightsError(f"holds '{shown}', which could run code or is no part of weights")
    return _Global(name)


def _small(name: str, arguments: tuple[Any, ...]) -> object:
    """Return the result of a function without tensors."""
    match name, arguments:
        case "OrderedDict", ():
            return _Attributes()
        case "OrderedDict", (list() as pairs,):
            return _Attributes({_key(key): value for key, value in pairs})
        case "Counter", () | (dict(),):
            return _Attributes(*arguments)
        case "set", (list() as entries,):
            return {_key(entry) for entry in entries}
        case "encode", (str() as text, "latin1"):
            return text.encode("latin1")
        case "Size", (tuple() as size,):
            return _Tuple(_counts(size))
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
        case _Attributes(), dict() if state.keys() <= {"_metadata"}:
            return  # others would hide the methods
        case _Result("numpy.dtype"), (3, "<" | ">" | "|", None, None, None, -1, -1, 0):
            return
    raise OddPickleError


def _counts(numbers: object) -> tuple[int, ...]:
    """Return `numbers` if they can be a size, stride or offset."""
    if not isinstance(numbers, tuple) or len(numbers) > _MOST_DIMENSIONS:
        raise OddPickleError
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise OddPickleError
    return numbers


def _key(value: Any) -> Any:
    """Return `value` if it is a key with a fast hash."""
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    raise NotWeightsError("holds a key that is neither text nor number")
