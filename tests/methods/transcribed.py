"""What plain transcriptions of methods share: a small float64 network, batches and losses."""

import torch
import torch.nn.functional as F
from conftest import small_config

from pinmem_core.data.batches import Batch
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.models import Segmenter
from pinmem_core.training.setup import resolve

SIDE, DOMAINS, IMAGES = 32, 2, 2
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def new_method(name: str, **values):
    """Return a method after its set-up, and its network without dropout."""
    config = resolve(small_config(method=name, **values))
    torch.manual_seed(0)
    segmenter = Segmenter(config.model.model_copy(update={"adapters": {}}))
    segmenter.adapt(config.model)
    segmenter.double()
    segmenter.auxiliary[3].p = 0.0
    method = methods.get(name)(config)
    method.setup(segmenter)
    return method, segmenter


def random_batch(seed: int, views: int = 1) -> Batch:
    """Noise and blocky labels of four classes, some of them things, and 255."""
    rng = torch.Generator().manual_seed(seed)
    shape = (DOMAINS, IMAGES, 3, SIDE, SIDE)
    images, *more = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(views))
    classes = torch.tensor([0, 11, 13, 255])
    blocks = classes[torch.randint(0, 4, (DOMAINS, IMAGES, 4, 4), generator=rng)]
    labels = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels[..., :16, :16] = 13  # fills a cell of the coarsest feature
    return Batch(images, labels, (0,), (1,), more_views=tuple(more))


def images_of(batch: Batch, view: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels: the first of each domain, then the second of each domain."""
    order = [(domain, image) for image in range(IMAGES) for domain in range(DOMAINS)]
    of_view = (batch.images, *batch.more_views)[view]
    images = torch.stack([of_view[place] for place in order])
    return images, torch.stack([batch.labels[place] for place in order])


def cross_entropy(logits, labels):
    resized = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(resized, labels, ignore_index=255)


def auxiliary_loss(segmenter, features, labels):
    logits = segmenter.auxiliary(features[-2])
    small = F.interpolate(labels[:, None].double(), logits.shape[-2:], mode="nearest")[:, 0]
    return F.cross_entropy(logits, small.long(), ignore_index=255)


def jensen_shannon(logits, others):
    """Return the mean over pixels, one pixel at a time."""
    total, count = 0.0, 0
    for image in range(logits.shape[0]):
        for row in range(logits.shape[2]):
            for column in range(logits.shape[3]):
                p = logits[image, :, row, column].exp()
                q = others[image, :, row, column].exp()
                p, q = p / p.sum(), q / q.sum()
                middle = (p + q) / 2
                total = total + (p * (p / middle).log()).sum() / 2
                total = total + (q * (q / middle).log()).sum() / 2
                count += 1
    return total / count


def mean_and_deviation(values, eps: float):
    """Return both of a channel (H, W) of an image, with eps added to the variance."""
    mean = values.sum() / values.numel()
    variance = ((values - mean) ** 2).sum() / values.numel()
    return mean, (variance + eps).sqrt()


def decoded(segmenter, features):
    return segmenter.decoder.decode(segmenter.decoder.project(features), features)


def gradients(segmenter, total) -> dict[str, torch.Tensor]:
    parameters = dict(segmenter.named_parameters())
    found = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
    return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}


def assert_step_agrees(method, segmenter, batch, iteration: int, terms, expected) -> None:
    """Take a step of the method; compare its terms, by name, and its gradients."""
    segmenter.zero_grad()
    torch.manual_seed(iteration)
    result = method.step(StepContext(segmenter, batch, 0.1, iteration)).losses["train"]
    for name, value in terms.items():
        got = result.total if name == "total" else result.terms[name]
        torch.testing.assert_close(got, value, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")
    got = {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient, expected[name], **CLOSE, msg=lambda text, n=name: f"{n}: {text}"
        )
