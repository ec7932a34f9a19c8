"""Estimates of the class shares of an image: what a memory of class statistics needs to know."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from moments import FIRST, TINY, Memory, Norms, tensor
from torch import Tensor, nn

from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import Appearance, augment_photometric
from pinmem_core.evaluation.targets import Target

ESTIMATES = ("predicted", "drive", "em", "confusion", "head", "true")
SMALLEST = 1e-3
"""Smallest share of a class, for the prior on the logits."""
ROUNDS = 50
"""Rounds of the EM algorithms."""
VIEWS = 3
"""Strongly augmented views of each image that the head is trained on."""
DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
"""Weight decays of the head, of which the left-out sources choose one."""


def true_shares(truth: np.ndarray, predicted: Tensor, target: Target) -> Tensor:
    """Return the shares of the network's classes in the labels (H, W) of an image.

    Where a scored class unites several classes of the network, its share is split among them as in
    the predicted shares (K,).
    """
    counts = np.bincount(truth.ravel(), minlength=256)
    shares = torch.zeros_like(predicted)
    for train_id in range(len(target.classes.space)):
        members = target.classes.members(train_id)
        members = members[members < len(shares)]
        if len(members):
            split = predicted[members] / predicted[members].sum()
            shares[members] = split * float(counts[train_id])
    return shares / shares.sum() if shares.sum() else predicted


def confusion(norms: Norms, samples: Sequence[Sample]) -> Tensor:
    """Return the mean probabilities (K, K) of each true class in images that no run trained on."""
    size = len(norms.network.label_space)
    sums = torch.eye(size) * TINY
    for sample in samples:
        image, truth = sample.read()
        logits = norms.logits(tensor(norms.network, image), FIRST)
        labels = torch.tensor(truth.ravel(), dtype=torch.long)
        labelled = labels < size
        probabilities = logits.softmax(dim=0).flatten(1).T[labelled]
        sums.index_add_(0, labels[labelled], probabilities)
    return sums / sums.sum(dim=1, keepdim=True)


def unconfused(predicted: Tensor, matrix: Tensor) -> Tensor:
    """Return the shares (K,) that most likely give the predicted ones by a confusion matrix."""
    shares = predicted
    for _ in range(ROUNDS):
        shares = shares * (matrix @ (predicted / (shares @ matrix)))
    return shares / shares.sum()


def shifted_prior(probabilities: Tensor, prior: Tensor) -> Tensor:
    """Return the prior (K,) of pixels (P, K), by EM from that of the sources (Saerens, 2002)."""
    new = prior
    for _ in range(ROUNDS):
        new = adjusted(probabilities, new / prior).mean(dim=0)
    return new


def adjusted(probabilities: Tensor, ratio: Tensor) -> Tensor:
    """Return probabilities (P, K) under another prior, as its ratio (K,) to the old one."""
    return F.normalize(probabilities * ratio, p=1, dim=1)


def estimates(
    images: Sequence[Tensor],
    plain: Sequence[Tensor],
    truths: Sequence[np.ndarray],
    memory: Memory,
    matrix: Tensor,
    head: "ShareHead",
    target: Target,
) -> list[dict[str, Tensor]]:
    """Return the shares (K,) of each image by each estimate, from the logits of the first pass."""
    pixels = [logits[:, ::4, ::4].flatten(1).T.softmax(dim=1) for logits in plain]
    predicted = [logits.softmax(dim=0).mean(dim=(1, 2)) for logits in plain]
    descriptions = [description(memory.norms, image) for image in images]
    drive = torch.stack(predicted).mean(dim=0)
    ratio = shifted_prior(torch.cat(pixels), memory.shares) / memory.shares
    return [
        {
            "predicted": shares,
            "drive": drive,
            "em": adjusted(of_image, ratio).mean(dim=0),
            "confusion": unconfused(shares, matrix),
            "head": head(described[None])[0],
            "true": true_shares(truth, shares, target),
        }
        for shares, of_image, described, truth in zip(
            predicted, pixels, descriptions, truths, strict=True
        )
    ]


class ShareHead(nn.Module):
    """Predicts shares from pooled features, as a correction of the predicted shares.

    shares = softmax(log predicted + W z + b), where z are the standardised means and standard
    deviations of the feature's channels and the log predicted shares.

    Args:
        descriptions: Pooled features of images, (N, C).
        num_classes: Number of classes, K; the last K channels are the log predicted shares.
    """

    def __init__(self, descriptions: Tensor, num_classes: int) -> None:
        super().__init__()
        self.mean, self.deviation = descriptions.mean(dim=0), descriptions.std(dim=0) + TINY
        self.linear = nn.Linear(descriptions.shape[1], num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, descriptions: Tensor) -> Tensor:
        """Return the shares (N, K)."""
        correction = self.linear((descriptions - self.mean) / self.deviation)
        known = descriptions[:, -self.linear.out_features :]
        return (known + correction).softmax(dim=1)


def description(norms: Norms, image: Tensor) -> Tensor:
    """Return the pooled feature (C,) of an image at the share of the first pass."""
    feature, logits = norms.feature_and_logits(image, FIRST)
    shares = logits.softmax(dim=0).mean(dim=(1, 2)).clamp_min(SMALLEST)
    return torch.cat([feature.mean(dim=(1, 2)), feature.std(dim=(1, 2)), shares.log()])


def trained_head(norms: Norms, sources: Sequence[Sequence[Sample]]) -> ShareHead:
    """Return a head trained on strongly augmented views of the images of each source.

    Each source is left out in turn to choose the weight decay; halves stand for a single source.
    """
    network = norms.network
    size = len(network.label_space)
    if len(sources) == 1:
        sources = sources[0][::2], sources[0][1::2]
    described, true = [], []
    for number, samples in enumerate(sources):
        rows = []
        for index, sample in enumerate(samples):
            image, label = sample.read()
            counts = torch.tensor(np.bincount(label.ravel(), minlength=256)[:size]).float()
            pixels = torch.tensor(image).permute(2, 0, 1)[None]
            for view in range(VIEWS):
                how = Appearance(seed=(number * 1000 + index) * VIEWS + view, strong=True)
                changed = augment_photometric(pixels, [how], network.normalization)
                rows.append((description(norms, changed), counts / counts.sum().clamp_min(1)))
        described.append(torch.stack([row[0] for row in rows]))
        true.append(torch.stack([row[1] for row in rows]))

    def left_out_error(decay: float) -> float:
        errors = []
        for out in range(len(sources)):
            others = [i for i in range(len(sources)) if i != out]
            head = _fitted(*(torch.cat([of[i] for i in others]) for of in (described, true)), decay)
            errors.append(float((head(described[out]) - true[out]).abs().sum(dim=1).mean() / 2))
        return fmean(errors)

    return _fitted(torch.cat(described), torch.cat(true), min(DECAYS, key=left_out_error))


@torch.inference_mode(False)
def _fitted(described: Tensor, true: Tensor, decay: float) -> ShareHead:
    described, true = described.clone(), true.clone()
    head = ShareHead(described, true.shape[1])
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -(true * head(described).clamp_min(TINY).log()).sum(dim=1).mean()
        value = value + decay * head.linear.weight.square().mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return head.requires_grad_(False)
