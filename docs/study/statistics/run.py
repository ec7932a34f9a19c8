"""Measure class statistics as a memory for test-time batch norm, on checkpoints and unseen targets.

    python docs/study/statistics/run.py score FOLDER TARGET CHECKPOINT ...
    python docs/study/statistics/run.py table FOLDER > docs/study/statistics/results.json

Test-time batch norm moves the running statistics by rho times the difference between the image's
mean and the running mean. A part of this difference is the content of the image: more road is not
another domain. The memory holds, for each batch norm and class k, the first and second moments m_k
and q_k of its input over the sources, and says what to expect of an image with class shares n_k:

    delta = mean(x) - sum_k n_k m_k
    R = var(x) / (sum_k n_k q_k - (sum_k n_k m_k)^2)
    mean = running mean + rho delta,    variance = running variance (1 - rho + rho R)

`score` writes the confusion matrices of the images for each estimate of the shares and each
control; `table` compares them with plain test-time batch norm of the same rho. "true" takes the
shares from the labels: it is a bound, not a method.
"""

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from moments import FIRST, Memory, Norms, tensor
from shares import ESTIMATES, SMALLEST, confusion, estimates, trained_head
from torch import Tensor

from pinmem_core.checkpoints.hub import checkpoint_of
from pinmem_core.evaluation.bootstrap import average_paired_interval, student_interval
from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.evaluation.targets import load_target
from pinmem_core.models import load_checkpoint
from pinmem_core.models.norm import set_alpha

IMAGES, SOURCE_IMAGES = 12, 24
"""Images of the target, evenly spaced; and of all sources, that the memory is written from."""
ARMS: dict[float, dict[str, tuple[str, ...]]] = {
    0.1: {
        "memory": ("predicted", "drive", "head", "true", "sources"),
        "memory of random classes": ("predicted",),
        "centred": ("predicted", "head", "true"),
    },
    0.05: {},
    0.2: {"memory": ("predicted", "head", "true")},
    0.4: {},
}
"""Estimates of the shares by rho and form of the memory."""
PRIORS = ("predicted", "drive", "confusion", "head", "true")

Pair = tuple[list[ImageResult], list[ImageResult]]
Run = tuple[dict, dict[str, list[ImageResult]]]


def permutation(shares: Tensor) -> Tensor:
    """Return a fixed permutation of the classes that moves each class the sources have."""
    present = (shares > SMALLEST).nonzero()[:, 0]
    order = torch.arange(len(shares))
    mixed = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(0))]
    order[mixed] = mixed.roll(1)
    return order


def predictions(
    memory: Memory, image: Tensor, plain: Tensor, shares: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the logits (K, H, W) of an image by arm; `plain` are those of the first pass."""
    norms, order = memory.norms, permutation(memory.shares)
    every = {**shares, "sources": memory.shares}
    layers = [*norms.running]
    halves = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    yield f"plain @{FIRST}", plain
    yield "running statistics", norms.logits(image)
    for name, half in zip(("first", "last"), halves, strict=True):
        yield f"{name} half of the layers @{FIRST}", norms.logits(image, FIRST, where=half)
    for rho, forms in ARMS.items():
        if rho != FIRST:
            yield f"plain @{rho}", norms.logits(image, rho)
        for form, names in forms.items():
            for name in names:
                of = every[name][order] if form.endswith("random classes") else every[name]
                expected = memory.expected(of, centred=form.startswith("centred"))
                yield f"{form}, {name} @{rho}", norms.logits(image, rho, expected)
    for name in PRIORS:
        ratio = shares[name].clamp_min(SMALLEST) / memory.shares.clamp_min(SMALLEST)
        yield f"prior, {name} @{FIRST}", plain + ratio.log()[:, None, None]


@torch.inference_mode()
def score(folder: str, target_name: str, checkpoint: str) -> None:
    """Write the confusion matrices of one checkpoint on one target."""
    began = time.process_time()
    network, config = load_checkpoint(checkpoint_of(checkpoint))
    training, space = config["training"], network.label_space
    norms = Norms(network.eval().to(memory_format=torch.channels_last))
    count = SOURCE_IMAGES // len(training["sources"])
    samples, held = (
        [
            load_target(f"{source}@{split}", max_images=n, network=space).samples
            for source in training["sources"]
        ]
        for split, n in (("train", count), ("val", max(1, count // 3)))
    )
    memory, matrix = Memory(norms, [*chain(*samples)]), confusion(norms, [*chain(*held)])
    head = trained_head(norms, samples)
    target = load_target(target_name, max_images=IMAGES, network=space)
    read = [sample.read() for sample in target.samples]
    images, truths = [tensor(network, image) for image, _ in read], [truth for _, truth in read]
    plain = [norms.logits(image, FIRST) for image in images]
    shares = estimates(images, plain, truths, memory, matrix, head, target)
    size = len(target.classes.space)
    counts = defaultdict(list)
    for image, truth, first, of_image in zip(images, truths, plain, shares, strict=True):
        for arm, logits in predictions(memory, image, first, of_image):
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
        "source_images": [sum(map(len, samples)), sum(map(len, held))],
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
        if arm != plain_of(arm):
            each = {
                name: compared([pairs(arm, runs, {record["seed"] for record, _ in runs})])
                for name, runs in domains.items()
            }
            every = compared([pairs(arm, runs, seeds) for runs in domains.values()])
            found[arm] = {**each, "all": every}
    return found


def plain_of(arm: str) -> str:
    """Return the plain arm of the same rho; of the first rho for the plain arms themselves."""
    same = f"plain @{arm.rpartition('@')[2]}"
    return f"plain @{FIRST}" if "@" not in arm or arm == same else same


if __name__ == "__main__":
    command, folder, *names = sys.argv[1:]
    if command == "table":
        table(folder)
    for checkpoint in names[1:]:
        score(folder, names[0], checkpoint)
