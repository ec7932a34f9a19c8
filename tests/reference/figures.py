"""From whole tensors to the figures that a fixture stores of them, and how close these must be."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .weight_rule import probe

Computed = Mapping[str, Tensor | float]
"""Our values by the keys that they would have if fixtures stored everything whole."""

ZERO_GRADIENT = "dsn.0.bias"
"""A bias before batch norm: its gradient is 0 but for rounding, so it is compared absolutely."""


def figure(key: str, computed: Computed, about: Mapping[str, Any]) -> Tensor | None:
    """Return our value of a fixture's `key`, or None if it does not follow from `computed`.

    Args:
        key: Its ending tells the reduction (README.md, "Reading the files").
        computed: Whole tensors.
        about: The file's entry in the manifest, for the names of rows.
    """
    for pattern, reduction in _REDUCTIONS.items():
        if match := re.fullmatch(pattern, key):
            return reduction(computed, about, *match.groups())
    return _whole(computed, about, key)


def _whole(computed: Computed, about: Mapping[str, Any], key: str) -> Tensor | None:
    if key not in computed:
        return None
    ours = computed[key]
    return (
        ours.detach().cpu() if isinstance(ours, Tensor) else torch.tensor(ours, dtype=torch.float64)
    )


def _every_nth(computed: Computed, about: Mapping[str, Any], key: str, n: str) -> Tensor | None:
    ours = _whole(computed, about, key)
    return None if ours is None else ours.flatten()[:: int(n)]


def _nth_pixels(computed: Computed, about: Mapping[str, Any], key: str, n: str) -> Tensor | None:
    ours = _whole(computed, about, key)
    return None if ours is None else ours[..., :: int(n), :: int(n)]


def _one(computed: Computed, about: Mapping[str, Any], base: str, kind: str) -> Tensor | None:
    ours = _whole(computed, about, base)
    return None if ours is None else _SUMMARIES[kind](base.rpartition("/")[2], ours)


def _feature(
    computed: Computed, about: Mapping[str, Any], base: str, kind: str, layer: str
) -> Tensor | None:
    ours = _whole(computed, about, f"{base}/{layer}")
    return None if ours is None else _SUMMARIES[kind](f"feat:{layer}", ours)


def _rows(names: str, folder: str) -> Callable[..., Tensor | None]:
    def table(computed: Computed, about: Mapping[str, Any], base: str, kind: str) -> Tensor | None:
        keys = {name: f"{base}{folder}{name}" for name in about[names]}
        if not computed.keys() >= set(keys.values()):
            return None
        rows = [_SUMMARIES[kind](name, torch.as_tensor(computed[k])) for name, k in keys.items()]
        return torch.stack(rows)

    return table


_REDUCTIONS: Mapping[str, Callable[..., Tensor | None]] = {
    r"(.*)@stride(\d+)": _every_nth,
    r"(.*)_s(\d+)": _nth_pixels,
    r"(.*/feat)_(stats|samples)/(.*)": _feature,
    r"(.*)/bn_(stats|samples)": _rows("bn_names", "/buf/"),
    r"(.*(?:grad|param))_(stats|samples)": _rows("param_names", "/"),
    r"(.*)_(stats|samples)": _one,
}
"""By ending of the key, first match."""


def under(prefix: str, computed: Computed) -> dict[str, Tensor | float]:
    """Return `computed` with `prefix/` before every key."""
    return {f"{prefix}/{key}": value for key, value in computed.items()}


def statistics(name: str, tensor: Tensor) -> Tensor:
    """Return sum, L2 norm and dot product with the probe of `name`."""
    values = tensor.detach().cpu().double().flatten()
    weights = torch.from_numpy(probe(name, values.numel()))
    return torch.stack([values.sum(), values.norm(), values @ weights])


def samples(name: str, tensor: Tensor) -> Tensor:
    """Return 16 values, spread evenly over the flat tensor."""
    flat = tensor.detach().cpu().double().flatten()
    return flat[torch.arange(16) * (flat.numel() - 1) // 15]


_SUMMARIES = {"stats": statistics, "samples": samples}


def relative_error(key: str, ours: Tensor, theirs: Tensor, about: Mapping[str, Any]) -> float:
    """Return the largest difference relative to the figure's scale; integers must be equal."""
    assert ours.shape == theirs.shape, (key, ours.shape, theirs.shape)
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(ours.to(theirs.dtype), theirs) else float("inf")
    ours, theirs = ours.double(), theirs.double()
    if not torch.equal(ours.isnan(), theirs.isnan()):
        return float("inf")
    difference = (ours - theirs).abs().nan_to_num() / _scale(key, theirs, about)
    return float(difference.max())


def _scale(key: str, theirs: Tensor, about: Mapping[str, Any]) -> Tensor:
    """Return what differences are relative to.

    Sums and probes may cancel, so statistics are relative to their row's L2 norm; samples to the
    largest of their row, tensors to their largest value.
    """
    magnitude = theirs.abs().nan_to_num()
    if "_stats" in key:
        scale = magnitude[..., 1:2]
    elif "_samples" in key:
        scale = magnitude.amax(dim=-1, keepdim=True)
    else:
        scale = magnitude.max()
    if re.fullmatch(r".*grad_(stats|samples)", key):
        zero = torch.tensor([name == ZERO_GRADIENT for name in about["param_names"]])
        scale = torch.where(zero[:, None], 1.0, scale)
    elif re.fullmatch(rf".*grad/{re.escape(ZERO_GRADIENT)}", key):
        scale = torch.ones(())
    return scale.clamp(min=torch.finfo(torch.float64).tiny)
