"""Linear probing before fine-tuning: classifier rows for the classes that a model lacks.

A run that starts from another model first fits the rows of the new classes by logistic regression
on its features. So the initial network knows the classes, which its mean with the trained one needs
(`optim.initial_share`), and no random rows send random gradients into pretrained layers (LP-FT,
Kumar et al., ICLR 2022).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.distributed import all_reduce_mean, rank
from pinmem_core.events import Listener, Progress
from pinmem_core.models import Segmenter

_BATCHES = 10
"""Batches of the sources whose features are used."""
_PIXELS = 2_000
"""Most pixels of an image that are used, drawn at random."""
_DECAY = 1e-3
"""Weight of the sum of the squared weights in the objective."""


def fit_new_rows(
    segmenter: Segmenter,
    load: Callable[[range], Iterable[Batch]],
    config: TrainConfig,
    on_event: Listener,
) -> None:
    """Fit the rows of `segmenter.new_rows` in classifiers that are a 1x1 convolution.

    The rows of the other classes stay. A new class without a pixel in the batches gets zeros.

    Args:
        segmenter: Network on its device, with its initial memory.
        load: Function that returns the batches of a range of iterations.
        config: Configuration of the run.
        on_event: Callback for progress events.
    """
    classifiers = {}
    for name, rows in segmenter.new_rows.items():
        module = segmenter.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            classifiers[module] = rows
    if not classifiers:
        return
    segmenter.eval()
    generator = torch.Generator().manual_seed(config.seed + rank())
    samples: dict[nn.Conv2d, list[tuple[Tensor, Tensor]]] = {module: [] for module in classifiers}
    inputs: dict[nn.Conv2d, Tensor] = {}

    def keep(module: nn.Conv2d, args: tuple[Tensor]) -> None:
        inputs[module] = args[0].float()

    with ExitStack() as stack, torch.no_grad():
        # Compiled functions may have been traced without the hooks.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in classifiers:
            stack.callback(module.register_forward_pre_hook(keep).remove)
        for done, batch in enumerate(load(range(_BATCHES)), start=1):
            images, labels = batch.all()
            segmenter.auxiliary_logits(segmenter.run(images).encoding)
            for module, features in inputs.items():
                samples[module].append(_pixels(features, labels, generator))
            on_event(Progress("fitting the classifier", done, _BATCHES))
    for module, rows in classifiers.items():
        features, labels = map(torch.cat, zip(*samples[module], strict=True))
        _fit(module, rows, features, labels, config.loss.balance)


def _pixels(features: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return some pixels of features (N, C, h, w), (P, C), and their labels, (P,)."""
    size = features.shape[-2:]
    labels = F.interpolate(labels[:, None].float(), size=size, mode="nearest").flatten(1)
    chosen = torch.randperm(labels.shape[1], generator=generator)[:_PIXELS].to(labels.device)
    of_image = features.flatten(2)[..., chosen].transpose(1, 2)
    return of_image.flatten(0, 1), labels[:, chosen].flatten().long()


@torch.no_grad()
def _fit(
    module: nn.Conv2d, rows: Sequence[int], features: Tensor, labels: Tensor, balance: float
) -> None:
    """Set rows of a classifier; several processes take the mean of their results."""
    weight, bias = module.weight, module.bias
    assert bias is not None
    weight[rows], bias[rows] = 0, 0
    labelled = labels < len(weight)
    features, labels = features[labelled], labels[labelled]
    new = [row for row in rows if (labels == row).any()]
    known = [row for row in range(len(weight)) if row not in new]
    if new:
        position = torch.tensor([*known, *new], device=labels.device).argsort()
        fixed = features @ weight[known].flatten(1).T.float() + bias[known].float()
        fitted = fit_rows(features, position[labels], fixed, balance)
        weight[new] = fitted[:, :-1, None, None].to(weight.dtype)
        bias[new] = fitted[:, -1].to(bias.dtype)
    all_reduce_mean([weight, bias])


def fit_rows(features: Tensor, labels: Tensor, fixed: Tensor, balance: float) -> Tensor:
    """Return the rows of new classes that minimise the cross-entropy over pixels.

    The objective is the mean cross-entropy, in which a pixel of a class with n pixels has the
    weight n^-balance, plus 0.001 times the sum of the squared weights of the rows, without biases.

    Args:
        features: Features of the pixels, (P, C).
        labels: Labels, (P,): 0..F-1 for known classes, F and above for new ones. The highest new
            class occurs.
        fixed: Logits of the F known classes, (P, F).
        balance: Exponent of the class weights, in 0..1.

    Returns:
        Weights and, in the last column, biases of the new classes, (K-F, C+1).
    """
    counts = torch.bincount(labels).to(features.dtype)
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0)
    new = len(counts) - fixed.shape[1]
    rows = features.new_zeros(new, features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([rows], max_iter=100, line_search_fn="strong_wolfe")
    loss = partial(F.cross_entropy, target=labels, weight=weights)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.cat([fixed, features @ rows[:, :-1].T + rows[:, -1]], dim=1)
        objective: Tensor = loss(logits) + _DECAY * rows[:, :-1].square().sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(closure)
    return rows.detach()
