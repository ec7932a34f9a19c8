"""The rule that makes weights and memory of a fixture from their names, written anew.

`README.md` and `weight_rule.py` of the reference folder state it. Uniforms are numpy's MT19937 with
53 bits, seeded by the CRC-32 of a tag; every value is rounded once, from float64 to float32.
"""

import zlib

import numpy as np
from numpy.typing import NDArray


def uniforms(tag: str, count: int) -> NDArray[np.float64]:
    """Return `count` uniforms in [0, 1) that `tag` determines."""
    return np.random.RandomState(zlib.crc32(tag.encode())).random_sample(count)


def probe(name: str, count: int) -> NDArray[np.float64]:
    """Return the vector in [-1, 1) that statistics of `name` are multiplied with."""
    return 2 * uniforms(f"probe:{name}", count) - 1


def value(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32 | np.int64]:
    """Return the tensor of the original's state-dict key `name`, or of "memory.m_items"."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    tag = f"{seed}:{name}" if seed else name
    uniform = uniforms(tag, int(np.prod(shape))).reshape(shape)
    return _shaped(name, uniform, 2 * uniform - 1).astype(np.float32)


def _shaped(
    name: str, uniform: NDArray[np.float64], centred: NDArray[np.float64]
) -> NDArray[np.float64]:
    kind = name.rpartition(".")[2]
    if kind == "m_items":
        return uniform / np.sqrt((uniform**2).sum(axis=1, keepdims=True))
    if kind == "running_var":
        return 0.5 + uniform
    if kind in ("running_mean", "bias"):
        return 0.1 * centred
    if uniform.ndim > 1:
        return centred * np.sqrt(3 / np.prod(uniform.shape[1:]))
    # The last norm of a bottleneck is small: otherwise gradients grow towards the input.
    return (0.2 if name.endswith(".bn3.weight") else 1.0) * (1 + 0.1 * centred)
