"""The loss of mask classification: match queries to the classes of an image, and compare both.

Source: Mask2Former (Cheng et al., CVPR 2022), section 3.3: Hungarian matching, and mask losses at
sampled points, of which most are where a mask is uncertain.
"""

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem_core.distributed import all_reduce_sum, world_size
from pinmem_core.errors import MachineError

POINTS = 12_544
"""Points at which masks are compared: 112 x 112."""
_OVERSAMPLING = 3
_UNCERTAIN = 0.75
"""Share of the points that are chosen where a mask is most uncertain."""
_NO_OBJECT = 0.1
"""Weight of "no object" in the class loss."""
CLASS_WEIGHT, BCE_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0


def match(classes: Tensor, masks: Tensor, labels: Tensor, ignore_index: int) -> dict[str, Tensor]:
    """Return the weighted loss terms "class", "bce" and "dice" of one layer.

    Args:
        classes: Class logits, (N, Q, K+1); the last class is "no object".
        masks: Mask logits, (N, Q, h, w).
        labels: Labels, (N, H, W), in 0..K-1.
        ignore_index: Label of pixels that count nowhere.

    Raises:
        MachineError: scipy is missing.
    """
    targets = torch.full(classes.shape[:2], classes.shape[-1] - 1, device=classes.device)
    queried, wanted, known = [], [], []
    for image, label in enumerate(labels):
        present = label.unique()
        present = present[present != ignore_index]
        if not len(present):
            continue
        truth = (label == present[:, None, None]).to(masks.dtype)
        valid = (label != ignore_index).to(masks.dtype)
        rows, columns = _assign(classes[image], masks[image], present, truth, valid)
        targets[image, rows] = present[columns].to(targets.dtype)
        queried.append(masks[image, rows])
        wanted.append(truth[columns])
        known.append(valid.expand(len(rows), -1, -1))
    weight = classes.new_ones(classes.shape[-1])
    weight[-1] = _NO_OBJECT
    classified = F.cross_entropy(classes.flatten(0, 1), targets.flatten(), weight)
    terms = {"class": CLASS_WEIGHT * classified, "bce": masks.sum() * 0, "dice": masks.sum() * 0}
    count = all_reduce_sum(masks.new_tensor(sum(map(len, queried)))) / world_size()
    if queried:
        logits, truth, valid = torch.cat(queried), torch.cat(wanted), torch.cat(known)
        points = _points(logits)
        logits = _sample(logits, points)
        truth, valid = (_sample(maps, points, mode="nearest") for maps in (truth, valid))
        terms["bce"] = BCE_WEIGHT * _bce(logits, truth, valid).sum() / count
        terms["dice"] = DICE_WEIGHT * _dice(logits, truth, valid).sum() / count
    return terms


@torch.no_grad()
def _assign(
    classes: Tensor, masks: Tensor, present: Tensor, truth: Tensor, valid: Tensor
) -> tuple[Any, Any]:
    """Return the queries and the targets of the cheapest one-to-one assignment of an image."""
    points = torch.rand(1, POINTS, 2, device=masks.device, dtype=masks.dtype)
    logits = _sample(masks, points.expand(len(masks), -1, -1))
    truth = _sample(truth, points.expand(len(truth), -1, -1), mode="nearest")
    valid = _sample(valid[None], points, mode="nearest")
    kept = valid.sum().clamp(min=1)
    negative, positive = F.softplus(logits) * valid, F.softplus(-logits) * valid
    bce = (positive @ truth.T + negative @ (1 - truth).T) / kept
    inside = logits.sigmoid() * valid
    inner = 2 * inside @ truth.T + 1
    dice = 1 - inner / (inside.sum(1)[:, None] + (truth * valid).sum(1)[None] + 1)
    scores = classes.softmax(dim=-1)[:, present.long()]
    cost = BCE_WEIGHT * bce + DICE_WEIGHT * dice - CLASS_WEIGHT * scores
    return _scipy_optimize().linear_sum_assignment(cost.float().nan_to_num(1e4).cpu().numpy())


@torch.no_grad()
def _points(logits: Tensor) -> Tensor:
    """Return points (M, POINTS, 2) in 0..1, most of them where |logit| is smallest."""
    masks, certain = len(logits), round(POINTS * _UNCERTAIN)
    tried = torch.rand(masks, _OVERSAMPLING * POINTS, 2, device=logits.device, dtype=logits.dtype)
    order = _sample(logits, tried).abs().topk(certain, dim=1, largest=False).indices
    uncertain = tried.gather(1, order[..., None].expand(-1, -1, 2))
    anywhere = torch.rand(masks, POINTS - certain, 2, device=logits.device, dtype=logits.dtype)
    return torch.cat([uncertain, anywhere], dim=1)


def _sample(maps: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Return the values (M, P) of maps (M, h, w) at points (M, P, 2), x before y."""
    grid = 2 * points[:, None] - 1
    values = F.grid_sample(
        maps[:, None], grid, mode=mode, padding_mode="border", align_corners=False
    )
    return values[:, 0, 0]


def _bce(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross-entropy of each mask over its valid points, (M,)."""
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (losses * valid).sum(1) / valid.sum(1).clamp(min=1)


def _dice(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - (2 |A B| + 1) / (|A| + |B| + 1) of each mask over its valid points, (M,)."""
    inside, truth = logits.sigmoid() * valid, truth * valid
    return 1 - (2 * (inside * truth).sum(1) + 1) / (inside.sum(1) + truth.sum(1) + 1)


def _scipy_optimize() -> Any:
    try:
        return import_module("scipy.optimize")
    except ImportError:
        raise MachineError(
            "scipy is not installed, which the mask decoder needs for training.",
            "Install it with: pip install 'pinmem[backbones]'",
        ) from None
