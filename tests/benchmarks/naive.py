"""One iteration of `pinmem` as it is first written down, line by line after docs/method.md.

Three copies of the network (θ, θ' and a writer at θ'), each forward whole, graphs retained, anomaly
detection on, the memory written class by class from a full-size one-hot. Only the layers are
pinmem's own. The method's defaults are written out: momentum 0.8, temperature 1, softmax reading.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem_core.config import LossConfig
from pinmem_core.data.batches import Batch
from pinmem_core.models import Segmenter

Terms = dict[str, Tensor]


def naive_iteration(
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    inner_lr: float,
    weights: LossConfig,
) -> dict[str, dict[str, float]]:
    """Take one iteration: parameters, batch-norm statistics and memory change in place.

    Args:
        segmenter: With a memory.
        optimizer: Of the segmenter's parameters, at the iteration's learning rate.
        batch: Of all domains.
        inner_lr: α.
        weights: Of the loss terms.

    Returns:
        The unweighted loss terms and "total", by phase: "inner" and "outer".
    """
    with torch.autograd.set_detect_anomaly(True):
        return _iterate(segmenter, optimizer, batch, inner_lr, weights)


def _iterate(
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    inner_lr: float,
    weights: LossConfig,
) -> dict[str, dict[str, float]]:
    train_images, train_labels = batch.of(batch.meta_train)
    test_images, test_labels = batch.of(batch.meta_test)
    memory = segmenter.memory.slots.clone()

    # 1. Inner losses and gradients at θ.
    segmenter.train()
    optimizer.zero_grad()
    inner = forward(segmenter, train_images, train_labels, memory, weights, write=True)[0]
    inner["total"].backward(retain_graph=True)

    # 2. θ' = θ - α ∇L_inner
    updated = deepcopy(segmenter)
    for new, old in zip(updated.parameters(), segmenter.parameters(), strict=True):
        new.data = old.data - inner_lr * old.grad

    # 3. M' is written at θ'.
    writer = deepcopy(updated)
    rewritten = forward(
        writer, train_images, train_labels, memory, weights, write=True, frozen=True
    )[1]

    # 4. Outer losses and gradients at θ', reading M'. They are summed into those at θ.
    outer = forward(updated, test_images, test_labels, rewritten, weights)[0]
    outer["total"].backward(retain_graph=True)
    for copy in (updated, writer):
        for parameter, moved in zip(segmenter.parameters(), copy.parameters(), strict=True):
            if moved.grad is not None:
                parameter.grad = parameter.grad + moved.grad

    # 5. One step on the sum.
    optimizer.step()

    # 6. The memory is written by the new network.
    segmenter.eval()
    with torch.no_grad():
        refreshed = forward(segmenter, train_images, train_labels, memory, weights, write=True)[1]
    segmenter.memory.slots.copy_(refreshed)
    return {"inner": floats(inner), "outer": floats(outer)}


def forward(
    network: Segmenter,
    images: Tensor,
    labels: Tensor,
    memory: Tensor,
    weights: LossConfig,
    *,
    write: bool = False,
    frozen: bool = False,
) -> tuple[Terms, Tensor]:
    """Run the whole network and return its losses and the memory afterwards.

    Args:
        network: At θ or θ'.
        images: (N, 3, H, W), normalised.
        labels: (N, H, W).
        memory: (K, D), read and then written.
        weights: Of the loss terms.
        write: Write the memory and add the losses on it.
        frozen: Compute everything up to F without gradient.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        features = network.backbone(images)
        feature = network.decoder.project(features)
    refined, scores = read(network, feature, memory)
    logits = resized(network.decoder.decode(refined, features), labels.shape[-2:])
    auxiliary = network.auxiliary(features[-2])
    losses = {
        "seg": F.cross_entropy(logits, labels, ignore_index=255),
        "aux": F.cross_entropy(auxiliary, shrunk(labels, auxiliary), ignore_index=255),
        "read": F.cross_entropy(resized(scores, labels.shape[-2:]), labels, ignore_index=255),
    }
    total = losses["seg"] + weights.auxiliary * losses["aux"] + weights.read * losses["read"]
    if write:
        memory = written(network, feature, labels, memory)
        losses["div"] = divergence(memory)
        classes = torch.arange(len(memory), device=memory.device)
        losses["cls"] = F.cross_entropy(network.memory.classifier(memory), classes)
        total = total + weights.divergence * losses["div"] + weights.classification * losses["cls"]
    losses["total"] = total
    return losses, memory


def read(network: Segmenter, feature: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return F' (N, D, h, w) and the scores (N, K, h, w)."""
    query = F.normalize(feature, dim=1)
    query = query.permute(0, 2, 3, 1)
    scores = query @ memory.T
    value = scores.softmax(dim=-1) @ memory
    joined = torch.cat([query, value], dim=-1).permute(0, 3, 1, 2)
    return F.relu(network.memory.fuse(joined)), scores.permute(0, 3, 1, 2)


def written(network: Segmenter, feature: Tensor, labels: Tensor, memory: Tensor) -> Tensor:
    """Return the memory after writing, one class after the other."""
    classes = len(memory)
    mapped = F.normalize(F.relu(feature + network.memory.write_map(feature)), dim=1)
    mapped = mapped.permute(0, 2, 3, 1)
    one_hot = F.one_hot(labels.masked_fill(labels == 255, classes), classes + 1)
    one_hot = one_hot.permute(0, 3, 1, 2).to(feature.dtype)
    masks = resized(one_hot, feature.shape[-2:])
    rows = []
    for k in range(classes):
        mask = masks[:, k]
        inside = mask > 0
        if not inside.any():
            rows.append(memory[k])
            continue
        share = mask[inside]
        mean = (share[:, None] * mapped[inside]).sum(dim=0) / share.sum()
        rows.append(0.8 * memory[k] + 0.2 * mean)
    return F.normalize(torch.stack(rows), dim=1)


def divergence(memory: Tensor) -> Tensor:
    """Return the mean positive cosine of different slots."""
    classes = len(memory)
    different = ~torch.eye(classes, dtype=torch.bool, device=memory.device)
    return F.relu(memory @ memory.T)[different].sum() / (classes * (classes - 1))


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (N, C, h, w) bilinearly to `size`."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def shrunk(labels: Tensor, like: Tensor) -> Tensor:
    """Resize labels (N, H, W) to the size of `like`, nearest."""
    return F.interpolate(labels[:, None].float(), size=like.shape[-2:], mode="nearest")[:, 0].long()


def floats(terms: Terms) -> dict[str, float]:
    """Return the numbers."""
    return {name: term.item() for name, term in terms.items()}
