"""One-hot label masks at the resolution of a feature, resized bilinearly."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem_core.label_space import IGNORE_INDEX


def soft_masks(
    labels: Tensor, num_classes: int, size: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return the one-hot masks of `labels`, resized bilinearly with aligned corners.

    The result equals `interpolate(one_hot(labels), size, mode="bilinear", align_corners=True)`,
    without the full-size one-hot tensor: each output position depends on four pixels only. Next to
    an ignored pixel, the masks of a position sum to less than 1.

    Args:
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        num_classes: Number of classes, K.
        size: Size of the result, (h, w).
        dtype: Dtype of the result. It decides which weights at the border are exactly zero.

    Returns:
        Masks (N, K, h, w) in [0, 1].
    """
    (top, bottom, down), (left, right, across) = (
        _taps(source, target, dtype, labels.device)
        for source, target in zip(labels.shape[-2:], size, strict=True)
    )
    classes = torch.where(labels == IGNORE_INDEX, num_classes, labels).long()
    masks = labels.new_zeros((len(labels), *size, num_classes), dtype=dtype)
    for row, row_weight in ((top, 1 - down), (bottom, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            corner = F.one_hot(classes[:, row][:, :, column], num_classes + 1)[..., :num_classes]
            masks += corner * (row_weight[:, None] * column_weight)[..., None]
    return masks.permute(0, 3, 1, 2)


def _taps(
    source: int, target: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower and upper source index, and the upper weight, of `target` positions."""
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    position = torch.arange(target, dtype=dtype, device=device) * torch.tensor(step, dtype=dtype)
    lower = position.long()
    return lower, (lower + 1).clamp(max=source - 1), position - lower
