"""Measure class statistics as a memory for test-time batch norm, on checkpoints and unseen targets.

    python docs/study/statistics/run.py full FOLDER TARGET CHECKPOINT ...
    python docs/study/statistics/run.py short FOLDER TARGET CHECKPOINT ...
    python docs/study/statistics/run.py table FOLDER > docs/study/statistics/results.json

Test-time batch norm moves the running statistics by rho times the difference between the image's
mean and the running mean. A part of this difference is the content of the image: more road is not
another domain. The memory holds, for each batch norm and class k, the first and second moments m_k
and q_k of its input over the sources, and says what to expect of an image with class shares n_k:

    delta = mean(x) - sum_k n_k m_k
    R = var(x) / (sum_k n_k q_k - (sum_k n_k m_k)^2)
    mean = running mean + rho delta,    variance = running variance (1 - rho + rho R)

`full` writes the confusion matrices of the images for each estimate of the shares and each
control, `short` for fewer of them on fewer images; `table` compares them with plain test-time batch
norm of the same rho. "true" takes the shares from the labels: it is a bound, not a method.
"""

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.checkpoints.hub import checkpoint_of
from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import normalize
from pinmem_core.evaluation.bootstrap import average_paired_interval, student_interval
from pinmem_core.evaluation.evaluate import Target, load_target
from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.models import Segmenter, load_checkpoint
from pinmem_core.models.norm import set_alpha

ESTIMATES = ("predicted", "drive", "em", "confusion", "true")
PRIORS = ("predicted", "drive", "em", "true")
FIRST = 0.1
"""Share of the image's own statistics in the pass that the shares are predicted from."""


@dataclass(frozen=True)
class Plan:
    """What is scored.

    Attributes:
        images: Number of images of the target, evenly spaced.
        source_images: Number of training images of all sources that the memory is written from.
        arms: Estimates of the shares by rho and form of the memory.
    """

    images: int
    source_images: int
    arms: dict[float, dict[str, tuple[str, ...]]]


PLANS = {
    "full": Plan(
        16,
        30,
        {
            0.1: {
                "memory": (*ESTIMATES, "sources"),
                "memory of random classes": ("predicted",),
                "centred": ("predicted", "drive", "true"),
                "centred, random classes": ("true",),
            },
            0.2: {"memory": ("predicted", "true"), "centred": ("predicted", "true")},
        },
    ),
    "short": Plan(
        10,
        15,
        {
            0.1: {
                "memory": ("predicted", "true", "sources"),
                "memory of random classes": ("predicted",),
                "centred": ("predicted", "true"),
            },
            0.2: {"memory": ("predicted", "true")},
        },
    ),
}
SMALLEST = 1e-3
"""Smallest share of a class, for the prior on the logits."""
ROUNDS = 50
"""Rounds of the EM algorithms."""
TINY = 1e-8

Statistics = tuple[Tensor, Tensor]
Pair = tuple[list[ImageResult], list[ImageResult]]
Run = tuple[dict, dict[str, list[ImageResult]]]


class Norms:
    """The batch norms of a network, whose statistics can be replaced for one image."""

    def __init__(self, network: Segmenter) -> None:
        set_alpha(network, 0.0)
        self.network = network
        self.running: dict[nn.Module, Statistics] = {
            norm: (norm.running_mean, norm.running_var)
            for norm in network.modules()
            if isinstance(norm, nn.BatchNorm2d)
        }

    @contextmanager
    def each(self, act: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
        """Call `act` with each batch norm and its input (1, C, h, w), if that has a variance."""

        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0][0, 0].numel() > 1:
                act(norm, inputs[0])

        hooks = [norm.register_forward_pre_hook(hook) for norm in self.running]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()
            for norm, (mean, variance) in self.running.items():
                norm.running_mean, norm.running_var = mean, variance

    def logits(
        self,
        image: Tensor,
        rho: float = 0.0,
        expected: Callable[[nn.Module], Statistics] | None = None,
    ) -> Tensor:
        """Return the logits (K, H, W) with the share `rho` of the image's own statistics.

        `expected` gives mean and variance that stand for no change; None for the running ones.
        """
        expected = expected or self.running.__getitem__

        def mix(norm: nn.Module, values: Tensor) -> None:
            mean, variance = torch.batch_norm_update_stats(values, None, None, 0)
            usual_mean, usual_variance = expected(norm)
            running_mean, running_variance = self.running[norm]
            ratio = variance / usual_variance.clamp_min(TINY)
            norm.running_mean = running_mean + rho * (mean - usual_mean)
            norm.running_var = running_variance * (1 - rho + rho * ratio)

        if not rho:
            return self.network(image)[0]
        with self.each(mix):
            return self.network(image)[0]


class Memory:
    """Moments of the input of each batch norm by class, and the class shares of the sources."""

    def __init__(self, norms: Norms, samples: Sequence[Sample]) -> None:
        sums: dict[nn.Module, list[Tensor]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        each = []
        for sample in samples:
            seen: dict[nn.Module, Tensor] = {}
            with norms.each(seen.__setitem__):
                logits = norms.logits(tensor(norms.network, sample.read()[0]))
            probabilities = logits.softmax(dim=0)
            each.append(probabilities.mean(dim=(1, 2)))
            for norm, values in seen.items():
                weights = F.adaptive_avg_pool2d(probabilities, values.shape[-2:]).flatten(1)
                flat = values[0].flatten(1).T - norm.running_mean
                parts = weights.sum(dim=1), weights @ flat, weights @ flat.square()
                sums[norm] = [a + b.double() for a, b in zip(sums[norm], parts, strict=True)]
        self.shares = torch.stack(each).mean(dim=0)
        self.running = norms.running
        self.moments = {
            norm: (first / count[:, None], second / count[:, None])
            for norm, (count, first, second) in sums.items()
        }

    def expected(
        self, shares: Tensor, *, centred: bool = False
    ) -> Callable[[nn.Module], Statistics]:
        """Return the mean and variance of a batch norm's input in an image of these shares (K,).

        With `centred`, the shares of the sources give the running statistics, so that the memory
        says only what changes with the shares.
        """

        def of(norm: nn.Module) -> Statistics:
            mean, variance = self._mixture(norm, shares)
            running_mean, running_variance = self.running[norm]
            if centred:
                usual_mean, usual_variance = self._mixture(norm, self.shares)
                mean = mean - usual_mean
                variance = running_variance * variance / usual_variance.clamp_min(TINY)
            return running_mean + mean.float(), variance.float()

        return of

    def _mixture(self, norm: nn.Module, shares: Tensor) -> Statistics:
        """Return mean, relative to the running mean, and variance of a mixture of the classes."""
        first, second = (shares.double() @ moments for moments in self.moments[norm])
        return first, second - first.square()


def tensor(network: Segmenter, image: np.ndarray) -> Tensor:
    """Return an RGB image (H, W, 3) as the input of the network, (1, 3, H, W)."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None]
    return normalize(pixels, network.normalization).to(memory_format=torch.channels_last)


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
    plain: Sequence[Tensor], truths: Sequence[np.ndarray], memory: Memory, matrix: Tensor,
    target: Target,
) -> list[dict[str, Tensor]]:  # fmt: skip
    """Return the shares (K,) of each image by each estimate, from the logits of the first pass."""
    pixels = [logits[:, ::4, ::4].flatten(1).T.softmax(dim=1) for logits in plain]
    predicted = [logits.softmax(dim=0).mean(dim=(1, 2)) for logits in plain]
    drive = torch.stack(predicted).mean(dim=0)
    ratio = shifted_prior(torch.cat(pixels), memory.shares) / memory.shares
    return [
        {
            "predicted": shares,
            "drive": drive,
            "em": adjusted(of_image, ratio).mean(dim=0),
            "confusion": unconfused(shares, matrix),
            "true": true_shares(truth, shares, target),
        }
        for shares, of_image, truth in zip(predicted, pixels, truths, strict=True)
    ]


def permutation(shares: Tensor) -> Tensor:
    """Return a fixed permutation of the classes that moves each class the sources have."""
    present = (shares > SMALLEST).nonzero()[:, 0]
    order = torch.arange(len(shares))
    mixed = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(0))]
    order[mixed] = mixed.roll(1)
    return order


def predictions(
    plan: Plan,
    norms: Norms,
    memory: Memory,
    image: Tensor,
    plain: Tensor,
    shares: dict[str, Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the logits (K, H, W) of an image by arm; `plain` are those of the first pass."""
    order = permutation(memory.shares)
    every = {**shares, "sources": memory.shares}
    yield "running statistics", norms.logits(image)
    for rho, forms in plan.arms.items():
        plain = plain if rho == FIRST else norms.logits(image, rho)
        yield f"plain @{rho}", plain
        for form, names in forms.items():
            for name in names:
                of = every[name][order] if form.endswith("random classes") else every[name]
                expected = memory.expected(of, centred=form.startswith("centred"))
                yield f"{form}, {name} @{rho}", norms.logits(image, rho, expected)
        for name in PRIORS:
            ratio = shares[name].clamp_min(SMALLEST) / memory.shares.clamp_min(SMALLEST)
            yield f"prior, {name} @{rho}", plain + ratio.log()[:, None, None]


@torch.inference_mode()
def score(plan: Plan, folder: str, target_name: str, checkpoint: str) -> None:
    """Write the confusion matrices of one checkpoint on one target."""
    began = time.process_time()
    network, config = load_checkpoint(checkpoint_of(checkpoint))
    training, space = config["training"], network.label_space
    norms = Norms(network.eval().to(memory_format=torch.channels_last))
    count = plan.source_images // len(training["sources"])
    samples, held = (
        [
            sample
            for source in training["sources"]
            for sample in load_target(f"{source}@{split}", max_images=n, network=space).samples
        ]
        for split, n in (("train", count), ("val", max(1, count // 3)))
    )
    memory, matrix = Memory(norms, samples), confusion(norms, held)
    target = load_target(target_name, max_images=plan.images, network=space)
    read = [sample.read() for sample in target.samples]
    images, truths = [tensor(network, image) for image, _ in read], [truth for _, truth in read]
    plain = [norms.logits(image, FIRST) for image in images]
    shares = estimates(plain, truths, memory, matrix, target)
    size = len(target.classes.space)
    counts = defaultdict(list)
    for image, truth, first, of_image in zip(images, truths, plain, shares, strict=True):
        for arm, logits in predictions(plan, norms, memory, image, first, of_image):
            of = ConfusionMatrix.empty(size)
            of.add(truth, target.classes.predicted(logits.argmax(dim=0).byte().numpy()))
            counts[arm].append(np.column_stack([of.counts, of.missed]))
    own = Memory(norms, target.samples[:1])  # moments of the image itself: delta is 0
    none = norms.logits(images[0], FIRST, own.expected(own.shares)) - norms.logits(images[0])
    set_alpha(network, FIRST)
    same = network(images[0])[0] - plain[0]
    errors = {
        name: fmean(float((of[name] - of["true"]).abs().sum() / 2) for of in shares)
        for name in ESTIMATES
    } | {"sources": fmean(float((memory.shares - of["true"]).abs().sum() / 2) for of in shares)}
    record = {
        "classes": len(space),
        "target": target_name,
        "sources": training["sources"],
        "method": training["method"],
        "iterations": training["iterations"],
        "seed": training["seed"],
        "ids": [sample.id for sample in target.samples],
        "source_images": [len(samples), len(held)],
        "share_error": errors,
        "plain_differs_from_test_time_bn": float(same.abs().max() / plain[0].abs().max()),
        "own_moments_differ_from_running": float(none.abs().max() / plain[0].abs().max()),
        "cpu_seconds": round(time.process_time() - began, 1),
        "device": f"CPU, {torch.get_num_threads()} thread, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    name = f"{target_name.replace(':', '-')}-{len(space)}-{record['iterations']}-{record['seed']}"
    path = Path(folder) / f"{name}.npz"
    matrices = {arm: np.array(of) for arm, of in counts.items()}
    np.savez_compressed(path, record=json.dumps(record), **matrices)


def results_of(record: dict, counts: np.ndarray) -> list[ImageResult]:
    """Return the results of the images of one arm."""
    return [
        ImageResult(name, of[:, :-1].astype(np.int64), of[:, -1].astype(np.int64))
        for name, of in zip(record["ids"], counts, strict=True)
    ]


def miou(results: Sequence[ImageResult]) -> float:
    """Return the mIoU of a domain in %."""
    size = len(results[0].missed)
    return 100 * sum((each.matrix for each in results), ConfusionMatrix.empty(size)).miou()


def compared(runs: list[list[Pair]]) -> dict:
    """Return the mean difference of pairs by domain and seed, with its intervals, in points."""
    differences = [[miou(second) - miou(first) for first, second in pairs] for pairs in runs]
    low, high = average_paired_interval(runs)
    every = [value for of in differences for value in of]
    units = [fmean(of) for of in differences] if len(runs) > 1 else every
    found = {
        "difference": round(fmean(fmean(of) for of in differences), 2),
        "bootstrap": [round(100 * low, 2), round(100 * high, 2)],
        "student": [round(end, 2) for end in student_interval(units) or ()],
    }
    if len(runs) > 1:
        found["student_of_all_runs"] = [round(end, 2) for end in student_interval(every) or ()]
    return found | {"positive": f"{sum(value > 0 for value in every)} of {len(every)}"}


def table(folder: str) -> None:
    """Print the comparison of all runs in a folder as JSON."""
    groups: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(Path(folder).glob("*.npz")):
        file = np.load(path)
        record = json.loads(str(file["record"]))
        arms = {name: results_of(record, file[name]) for name in file.files if name != "record"}
        group = (
            f"{record.pop('method')}, {record['iterations']} iterations, "
            f"{len(record['ids'])} images"
        )
        domain = f"{record.pop('target')}, {record.pop('classes')} classes"
        groups[group][domain].append((record, arms))
    output = {
        group: {
            "runs": {
                name: [described(*run) for run in sorted(runs, key=lambda run: run[0]["seed"])]
                for name, runs in domains.items()
            },
            "against_plain": against_plain(domains),
        }
        for group, domains in groups.items()
    }
    sys.stdout.write(json.dumps(output, indent=1) + "\n")


def described(record: dict, arms: dict[str, list[ImageResult]]) -> dict:
    """Return the record of one run with its scores."""
    scores = {arm: round(miou(results), 2) for arm, results in arms.items()}
    return {**record, "ids": len(record["ids"]), "miou": scores}


def against_plain(domains: dict[str, list[Run]]) -> dict:
    """Return the comparison of each arm with the plain one of its rho, by domain and over all.

    "all" uses the seeds that every domain has.
    """
    seeds = set.intersection(*({record["seed"] for record, _ in runs} for runs in domains.values()))

    def pairs(arm: str, runs: list[Run], seeds: set[int]) -> list[Pair]:
        return [(of[plain_of(arm)], of[arm]) for record, of in runs if record["seed"] in seeds]

    found = {}
    for arm in next(iter(domains.values()))[0][1]:
        if "@" in arm and arm != plain_of(arm):
            each = {
                name: compared([pairs(arm, runs, {record["seed"] for record, _ in runs})])
                for name, runs in domains.items()
            }
            every = compared([pairs(arm, runs, seeds) for runs in domains.values()])
            found[arm] = {**each, "all": every}
    return found


def plain_of(arm: str) -> str:
    """Return the plain arm of the same rho."""
    return f"plain @{arm.split('@')[1]}"


if __name__ == "__main__":
    command, folder, *names = sys.argv[1:]
    if command == "table":
        table(folder)
    for checkpoint in names[1:]:
        score(PLANS[command], folder, names[0], checkpoint)
