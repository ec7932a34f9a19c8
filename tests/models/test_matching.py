"""The loss of mask classification, against loops and permutations."""

import math
from itertools import permutations

import pytest
import torch

from pinmem_core.config import ModelConfig
from pinmem_core.models import Segmenter
from pinmem_core.models.decoders.matching import match


def case(queries: int = 4, classes: int = 3) -> tuple[torch.Tensor, ...]:
    """Return class logits, masks that are constant over the image, and labels of one class each."""
    torch.manual_seed(0)
    logits = torch.randn(2, queries, classes + 1, dtype=torch.float64)
    masks = torch.randn(2, queries, 1, 1, dtype=torch.float64).expand(-1, -1, 4, 4).contiguous()
    labels = torch.tensor([0, 2])[:, None, None].expand(-1, 8, 8).clone()
    labels[:, :2] = 255
    return logits, masks, labels


def costs(logits: torch.Tensor, mask: float, wanted: int) -> tuple[float, float, float]:
    """Return class score, cross-entropy and dice loss of a constant mask over 1s."""
    score = math.exp(logits[wanted]) / sum(math.exp(value) for value in logits)
    inside, points = 1 / (1 + math.exp(-mask)), 1.0
    return score, -math.log(inside), 1 - (2 * inside * points + 1) / (inside + points + 1)


def test_constant_masks_give_the_loss_of_the_equations():
    logits, masks, labels = case()
    terms = match(logits, masks, labels, 255)
    # With P labelled points of ones, |A| = P sigmoid(m): the "+ 1" vanishes for 12,544 points.
    classified, weights, bce, dice = 0.0, 0.0, 0.0, 0.0
    for image, wanted in enumerate((0, 2)):
        best, cheapest = None, math.inf
        for query in range(4):
            score, entropy, _ = costs(
                logits[image, query].tolist(), masks[image, query, 0, 0], wanted
            )
            inside = 1 / (1 + math.exp(-masks[image, query, 0, 0]))
            cost = 5 * entropy + 5 * (1 - 2 * inside / (inside + 1)) - 2 * score
            if cost < cheapest:
                best, cheapest = query, cost
        for query in range(4):
            target, weight = (wanted, 1.0) if query == best else (3, 0.1)
            score = costs(logits[image, query].tolist(), 0.0, target)[0]
            classified -= weight * math.log(score)
            weights += weight
        inside = 1 / (1 + math.exp(-masks[image, best, 0, 0]))
        bce -= math.log(inside) / 2
        dice += (1 - 2 * inside / (inside + 1)) / 2
    assert terms["class"].item() == pytest.approx(2 * classified / weights, abs=1e-9)
    assert terms["bce"].item() == pytest.approx(5 * bce, abs=1e-9)
    assert terms["dice"].item() == pytest.approx(5 * dice, abs=1e-3)


def test_the_order_of_the_queries_does_not_matter():
    logits, masks, labels = case(queries=3)
    losses = set()
    for order in permutations(range(3)):
        terms = match(logits[:, order], masks[:, order], labels, 255)
        losses.add(sum(terms.values()).item())
    assert max(losses) - min(losses) < 1e-5  # the points are random


def test_masks_of_the_true_classes_have_hardly_any_loss():
    labels = torch.full((1, 8, 8), 255)
    labels[0, :4], labels[0, 4:7] = 1, 0
    truth = torch.stack([labels[0] == 0, labels[0] == 1]).double()
    logits = torch.full((1, 3, 3), -20.0, dtype=torch.float64)
    logits[0, 0, 0] = logits[0, 1, 1] = logits[0, 2, 2] = 20
    masks = torch.cat([40 * truth - 20, torch.zeros(1, 8, 8)])[None]
    terms = match(logits, masks, labels, 255)
    assert terms["class"] < 1e-9
    assert terms["dice"] < 0.2  # between pixels, the logits are interpolated
    swapped = match(logits, masks[:, [1, 0, 2]], labels, 255)
    assert sum(swapped.values()) > 10


def test_images_without_labels_give_finite_gradients():
    logits, masks, labels = case()
    logits.requires_grad_(), masks.requires_grad_()
    terms = match(logits, masks, torch.full_like(labels, 255), 255)
    sum(terms.values()).backward()
    assert terms["bce"] == terms["dice"] == 0
    assert logits.grad.isfinite().all() and not masks.grad.any()


@torch.no_grad()
def test_logits_are_the_logarithm_of_classes_times_masks():
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="tiny", decoder="mask", feature_dim=16)).eval()
    output = segmenter.run(torch.randn(1, 3, 32, 32))
    classes, masks = (output.decoded[name][-1][0] for name in ("classes", "masks"))
    assert len(output.decoded["classes"]) == 7
    for k in range(19):
        expected = sum(
            classes[q].softmax(0)[k] * masks[q, 1, 2].sigmoid() for q in range(len(classes))
        )
        assert output.logits[0, k, 1, 2].exp().item() == pytest.approx(expected.item(), abs=1e-5)
