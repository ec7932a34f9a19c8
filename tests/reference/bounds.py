"""How close each figure must be.

Float64 must agree to 1e-9; two runs of the original agree to about 1e-12. For float32, the table
"How close is close" in the reference folder's README.md says how far one run of the original is
from float64, and what is useless there. Errors are relative to a figure's scale (`figures.py`).
"""

import re
from typing import NamedTuple

import torch

FLOAT64 = 1e-9

MARGIN = 4
"""Two float32 runs are up to twice as far apart as one is from float64, and machines differ."""

LEFT_OUT = {r".*softmax_score_query": "a softmax over all pixels that is used by nothing"}
"""What no file is compared in, and why."""


class Float32(NamedTuple):
    """How far float32 may be from float64, or None for a figure that is not compared; and why."""

    error: float | None
    why: str


_LOSS = r"(inner|outer|loss|fwd\d+_\w+)/(seg|aux|read|div|cls|total)"
_MEMORY = r"(fwd\d+_\w+/mem_(before|after)|mem_final)"
_LARGEST = 0.1
"""Of a unit row of the memory; the table's figures for it are absolute."""

FLOAT32 = {
    r"\w+/eval/.*|(pool|sliding)/.*": Float32(5e-7 / 0.18, "logits of standard deviation 0.18"),
    r"\w+/train/(seg|aux|read|div|cls)": Float32(1e-6, "losses of an iteration's first forward"),
    r"\w+/train/.*": Float32(2.5e-5, "batch norm over the few images of a pooled map magnifies"),
    rf"it1/{_LOSS}": Float32(1e-6, "losses of iteration 1"),
    rf"it1/{_MEMORY}": Float32(1e-5 / _LARGEST, "memory of iteration 1"),
    r"it1/bn/.*": Float32(2.5e-5, "as in a training forward"),
    r"it1/grad_global_norm": Float32(4e-3, "L2 norms of gradients of iteration 1"),
    r"it1/param(/|_).*": Float32(2.5e-4, "the gradients' noise times the learning rate"),
    rf"it[23]/{_LOSS}": Float32(5e-4, "losses of iteration 3"),
    rf"it[23]/{_MEMORY}": Float32(1.2e-3 / _LARGEST, "memory of iteration 3"),
    r"it\d+/((inner_|outer_)?grad|param|bn).*": Float32(None, "single values are mostly noise"),
    rf"it\d+/({_LOSS}|{_MEMORY})": Float32(None, "the table ends at iteration 3"),
    r".*": Float32(2e-6, "the memory module and its gradients"),
}
"""By key, first match."""


def bound(key: str, dtype: torch.dtype) -> float | None:
    """Return the largest error that a figure may have, or None if it is not compared."""
    if any(re.fullmatch(pattern, key) for pattern in LEFT_OUT):
        return None
    if dtype == torch.float64:
        return FLOAT64
    error = next(rule.error for pattern, rule in FLOAT32.items() if re.fullmatch(pattern, key))
    return None if error is None else MARGIN * error
