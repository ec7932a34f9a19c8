"""The steps of a pickle, carried out on stand-ins: nothing is imported and no code is run."""

from collections.abc import Callable, Iterable
from typing import Any

_LARGEST_TUPLE = 1000
"""Entries of a tuple, those of the tuples in it included: a hash visits all of them."""
_LARGEST_BITS = 71
"""Of an integer: many longer ones can share a hash, which makes a dict slow."""
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class OddPickleError(Exception):
    """A pickle that `torch.save` does not write."""


class NotWeightsError(Exception):
    """A pickle that asks for what weights do not need; says so as a sentence's end."""


class Attributes(dict[Any, Any]):
    """Stands for an OrderedDict or a Counter, which may have attributes."""


class Tuple(tuple[Any, ...]):
    """Stands for a tuple; knows how many entries a walk through it visits."""

    entries: int

    def __new__(cls, items: Iterable[Any]) -> "Tuple":
        """Return the tuple of `items`, or raise NotWeightsError if they are too many."""
        new = super().__new__(cls, items)
        new.entries = 1 + sum(item.entries if isinstance(item, Tuple) else 1 for item in new)
        if new.entries > _LARGEST_TUPLE:
            raise NotWeightsError(f"holds a tuple of more than {_LARGEST_TUPLE:,} entries")
        return new


def as_key(value: Any) -> Any:
    """Return `value` if it can be a key whose hash is quick, or raise NotWeightsError."""
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    raise NotWeightsError("holds a key that is neither text nor number")


class Machine:
    """The stack machine that a pickle is a program of, with the steps that torch knows.

    Args:
        find: Returns what stands for a "module name".
        call: Returns what stands for the result of a function called with some arguments.
        load: Returns what stands for the storage of a persistent id.
        build: Checks that an object may be given a state.
    """

    def __init__(
        self,
        find: Callable[[str], object],
        call: Callable[[object, tuple[Any, ...]], object],
        load: Callable[[object], object],
        build: Callable[[object, object], None],
    ) -> None:
        self._find = find
        self._call = call
        self._load = load
        self._build = build
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one step.

        Args:
            name: Of the step, as `pickletools` calls it.
            argument: Of the step, None if it has none.

        Raises:
            NotWeightsError: The step asks for what weights do not need.
            OddPickleError: It is a step that `torch.save` does not write.
        """
        stack = self._stack
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
            self._stack = []
        elif name == "TUPLE":
            items = self._marked()
            self._stack.append(Tuple(items))
        elif name == "GLOBAL":
            stack.append(self._find(argument))
        elif name not in ("PROTO", "STOP"):
            self._change(name)

    def result(self) -> Any:
        """Return what the pickle has built."""
        return self._stack.pop()

    def _change(self, name: str) -> None:
        """Carry out a step that changes the top of the stack, or makes an empty container."""
        match name:
            case "REDUCE":
                arguments = self._popped(tuple)
                self._stack[-1] = self._call(self._stack[-1], arguments)
            case "BINPERSID":
                self._stack[-1] = self._load(self._stack[-1])
            case "BUILD":
                state = self._stack.pop()
                self._build(self._stack[-1], state)
            case "APPEND":
                value = self._stack.pop()
                self._top(list).append(value)
            case "APPENDS":
                values = self._marked()
                self._top(list).extend(values)
            case "SETITEM":
                value, key = self._stack.pop(), self._stack.pop()
                self._top(dict)[as_key(key)] = value
            case "SETITEMS":
                values = self._marked()
                pairs = zip(values[::2], values[1::2], strict=True)
                self._top(dict).update({as_key(key): value for key, value in pairs})
            case "EMPTY_DICT":
                self._stack.append({})
            case "EMPTY_LIST":
                self._stack.append([])
            case "EMPTY_TUPLE":
                self._stack.append(Tuple(()))
            case "EMPTY_SET":
                self._stack.append(set())
            case _:
                raise OddPickleError

    def _shorten(self, count: int) -> None:
        if len(self._stack) < count:
            raise OddPickleError
        self._stack[-count:] = [Tuple(self._stack[-count:])]

    def _marked(self) -> list[Any]:
        """Return what has been put onto the stack since the last mark."""
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _popped(self, kind: type) -> Any:
        value = self._top(kind)
        self._stack.pop()
        return value

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise OddPickleError
        return self._stack[-1]
