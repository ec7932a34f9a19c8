"""Comparison of a checkpoint's tensors with those that the network expects."""

from collections.abc import Mapping

import torch
from torch import Tensor


def state_dict_mismatch(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return the first mismatch between `state` and `expected`, or None if they match.

    Floating-point dtypes may differ.

    Args:
        state: Tensors by name, as read from the file.
        expected: Tensors by name with the expected shapes and kinds; values and device do not
            matter.

    Returns:
        A clause such as "it lacks 'memory.slots' (and 2 more)".
    """
    missing, unknown = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or unknown:
        clauses = [("it lacks", missing), ("it holds the unknown", unknown)]
        return " and ".join(f"{verb} {_named(names)}" for verb, names in clauses if names)
    reshaped = [name for name in expected if state[name].shape != expected[name].shape]
    if reshaped:
        first = reshaped[0]
        actual, wanted = (tuple(tensors[first].shape) for tensors in (state, expected))
        return f"{_named(reshaped)} has the shape {actual} instead of {wanted}"
    kinds = [n for n in expected if _is_float(state[n]) != _is_float(expected[n])]
    if kinds:
        return f"{_named(kinds)} has the dtype {state[kinds[0]].dtype}"
    infinite = [name for name in expected if not torch.isfinite(state[name]).all()]
    return f"{_named(infinite)} holds values that are not finite" if infinite else None


def _named(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0][:100]!r}{more}"


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
