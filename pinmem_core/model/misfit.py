"""What is wrong with the tensors of a checkpoint, in a clause that names the first of them."""

from collections.abc import Mapping

import torch
from torch import Tensor


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return why `state` is not what `expected` asks for, or None if it is.

    Args:
        state: Tensors by name, as they were read.
        expected: Tensors of the right shapes and kinds, with any values, on any device.

    Returns:
        For example "it lacks 'memory.slots' (and 2 more)". Floating point types may differ.
    """
    lacking, unknown = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if lacking or unknown:
        clauses = [("it lacks", lacking), ("it holds the unknown", unknown)]
        return " and ".join(f"{verb} {_named(names)}" for verb, names in clauses if names)
    reshaped = [name for name in expected if state[name].shape != expected[name].shape]
    if reshaped:
        first = reshaped[0]
        was, wanted = (tuple(tensors[first].shape) for tensors in (state, expected))
        return f"{_named(reshaped)} has the shape {was} instead of {wanted}"
    kinds = [n for n in expected if _is_float(state[n]) != _is_float(expected[n])]
    if kinds:
        return f"{_named(kinds)} is of the type {state[kinds[0]].dtype}"
    infinite = [name for name in expected if not torch.isfinite(state[name]).all()]
    return f"{_named(infinite)} holds values that are not finite" if infinite else None


def _named(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0][:100]!r}{more}"


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
