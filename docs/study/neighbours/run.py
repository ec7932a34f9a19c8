"""Score runs of the backbone study with and without a memory of stored DINOv2 tokens, as JSON.

    python docs/study/neighbours/run.py RUNS OUTPUT

RUNS is the folder of the runs of `docs/study/backbones/run.py` that left out dusk, and OUTPUT a new
file. Tokens of source images, of the frozen backbone and with their majority class, are the memory.
With s_c the mean cosine of a pixel's token and its k nearest ones of class c, the pixel's class
maximises

    log p_head + beta · log softmax over c of s_c / 0.07.

`beta` and `k` are the best on the validation images of the sources, for each run, by two rules:
with the whole memory, or without its tokens of the validated drive. The controls are the same
memory with permuted classes, the memory without the head, and, in place of the memory, a linear
classifier that is trained on the same tokens.
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pinmem_core.data.prepared import Selection, select
from pinmem_core.data.samples import evenly_spaced
from pinmem_core.data.transforms import normalize
from pinmem_core.evaluation.bootstrap import (
    average_paired_interval,
    student_interval,
)
from pinmem_core.evaluation.evaluate import Labelled, read_shard
from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.evaluation.targets import Target, load_target
from pinmem_core.events import ignore
from pinmem_core.inference import Predictor, get_protocol
from pinmem_core.models import Segmenter, load_checkpoint

ARMS, SEEDS = ("frozen-fpn", "lora-linear"), (0, 1, 2, 3, 4)
SOURCES = ("camvid:0006R0", "camvid:0016E5", "camvid:Seq05VD")
TARGETS = {"camvid:0001TP@all": 16, "idd-lite@val": 40}
STORED_IMAGES, VALIDATION_IMAGES = 25, 4  # of each source
PER_CLASS, TEMPERATURE, ENLARGED, DECAY = 500, 0.07, 2, 1e-3
BETAS, NEIGHBOURS = (0.0, 0.3, 1.0, 3.0, 10.0), (1, 10)
PATCH, CLASSES, PROTOCOL = 16, 19, get_protocol("paper-train")
ALONE = float("inf")
"""The `beta` of a memory without head."""
LINEAR = 0
"""The k of the linear classifier."""
MIXED = [(beta, k) for beta in BETAS for k in NEIGHBOURS]
ONLY = [(ALONE, k) for k in NEIGHBOURS]
TRAINED = [(beta, LINEAR) for beta in BETAS]
OFF = MIXED[0]

Logits = list[list[dict[int, Tensor]]]
"""Logits (K, h, w) by k, of each image of each target."""


class Shown(NamedTuple):
    """An image with its tokens of unit length, (D, h, w)."""

    labelled: Labelled
    tokens: Tensor


class Memory(NamedTuple):
    """Stored tokens, (M, D), their classes, (M,), and a classifier of tokens, (K, D)."""

    tokens: Tensor
    classes: Tensor
    classifier: Tensor

    def permuted(self, seed: int) -> "Memory":
        """Return the placebo."""
        order = torch.randperm(len(self.classes), generator=torch.Generator().manual_seed(seed))
        return self._replace(classes=self.classes[order])

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> dict[int, Tensor]:
        """Return logits (K, h, w) of tokens (D, h, w), by the number of neighbours."""
        cosines = torch.einsum("dhw,md->mhw", tokens, self.tokens)
        means = {k: cosines.new_full((CLASSES, *tokens.shape[1:]), -1.0) for k in NEIGHBOURS}
        for number in self.classes.unique().tolist():
            of_class = cosines[self.classes == number]
            nearest = of_class.topk(min(max(NEIGHBOURS), len(of_class)), dim=0).values
            for k, mean in means.items():
                mean[number] = nearest[:k].mean(dim=0)
        linear = torch.einsum("dhw,kd->khw", tokens, self.classifier)
        return {LINEAR: linear} | {k: mean / TEMPERATURE for k, mean in means.items()}


@torch.inference_mode()
def shown(network: Segmenter, target: Target) -> list[Shown]:
    """Return the images of a target, enlarged for the backbone."""
    result = []
    for labelled in read_shard(target.samples, PROTOCOL, on_event=ignore, task="tokens"):
        height, width = labelled.truth.shape
        pixels = torch.from_numpy(labelled.image.copy()).permute(2, 0, 1)[None]
        size = [-(-ENLARGED * side // PATCH) * PATCH for side in (height, width)]
        images = F.interpolate(normalize(pixels, network.normalization), size, mode="bilinear")
        tokens = network.backbone.pretrained_outputs(images)[-1][0]
        result.append(Shown(labelled, F.normalize(tokens, dim=0)))
    return result


def majority(truth: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Return the most frequent class of the pixels of each token, (h, w); 255 counts as one."""
    size = [side * PATCH // ENLARGED for side in grid]
    labels = F.interpolate(torch.from_numpy(truth)[None, None].float(), size, mode="nearest")
    side = PATCH // ENLARGED
    cells = labels[0, 0].unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2)
    return cells.flatten(2).long().mode(dim=2).values


def stored(images: list[Shown], seed: int) -> Memory:
    """Return at most `PER_CLASS` random tokens of each class."""
    tokens = torch.cat([image.tokens.flatten(1).T for image in images])
    grids = [majority(image.labelled.truth, image.tokens.shape[1:]).flatten() for image in images]
    classes, generator = torch.cat(grids), torch.Generator().manual_seed(seed)
    chosen = []
    for number in classes.unique().tolist():
        if number < CLASSES:
            members = torch.nonzero(classes == number).flatten()
            order = torch.randperm(len(members), generator=generator)[:PER_CLASS]
            chosen.append(members[order])
    index = torch.cat(chosen)
    return Memory(tokens[index], classes[index], trained(tokens[index], classes[index]))


def trained(tokens: Tensor, classes: Tensor) -> Tensor:
    """Return the weights (K, D) of multinomial logistic regression with weight decay."""
    weights = torch.zeros(CLASSES, tokens.shape[1], requires_grad=True)
    scale = tokens.shape[1] ** 0.5  # gives the elements of a token a mean square of 1
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scale * tokens @ weights.T, classes)
        loss = loss + DECAY / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return scale * weights.detach()


class Scored:
    """The pixel counts of the images of a target, for each choice of `beta` and k."""

    def __init__(self, target: Target) -> None:
        self.classes = target.classes
        self.results: dict[tuple[float, int], list[ImageResult]] = {}

    def add(self, choice: tuple[float, int], image: Labelled, scores: Tensor) -> None:
        """Count the pixels of an image by its scores, (K, H, W)."""
        matrix = ConfusionMatrix.empty(len(self.classes.space))
        predicted = scores.max(dim=0).indices.to(torch.uint8).numpy()
        matrix.add(image.truth, self.classes.predicted(predicted))
        result = ImageResult(image.id, matrix.counts, matrix.missed)
        self.results.setdefault(choice, []).append(result)


def miou(results: list[ImageResult]) -> float:
    """Return the mIoU of all images in percent."""
    return 100 * reduce(add, [result.matrix for result in results]).miou()


@torch.inference_mode()
def scored(
    target: Target,
    images: list[Shown],
    heads: list[Tensor],
    logits: list[dict[int, Tensor]],
    choices: list[tuple[float, int]],
) -> Scored:
    """Return the counts of a target."""
    result = Scored(target)
    for image, head, by_k in zip(images, heads, logits, strict=True):
        for k in {k for _, k in choices}:
            maps = F.interpolate(by_k[k][None], head.shape[1:], mode="bilinear")[0]
            shares = maps.log_softmax(dim=0)
            for beta in [beta for beta, of in choices if of == k]:
                scores = shares if beta == ALONE else head + beta * shares
                result.add((beta, k), image.labelled, scores)
    return result


def best(validation: list[Scored], choices: list[tuple[float, int]]) -> tuple[float, int]:
    """Return the choice with the best mean of the sources; the first of equal ones."""
    return max(choices, key=lambda choice: fmean(miou(of.results[choice]) for of in validation))


def source_images(network: Segmenter) -> dict[str, list[Shown]]:
    """Return evenly spaced training images of each source."""
    result = {}
    for name in SOURCES:
        samples = evenly_spaced(select(Selection.parse(f"{name}@train"), "train"), STORED_IMAGES)
        result[name] = shown(network, Target(name, "train", samples))
    return result


def memories(sources: dict[str, list[Shown]], seed: int) -> tuple[Memory, list[Memory]]:
    """Return the memory of all sources, and for each source that of the others."""
    others = [
        [image for name, images in sources.items() if name != left_out for image in images]
        for left_out in SOURCES
    ]
    whole = [image for images in sources.values() for image in images]
    return stored(whole, seed), [stored(images, seed) for images in others]


def main(runs: str, output: str) -> None:
    """Score all runs, and write the file after each."""
    torch.set_num_threads(1)
    frozen, _ = load_checkpoint(Path(runs) / f"{ARMS[0]}-{SEEDS[0]}" / "checkpoint")
    sources = source_images(frozen)
    every = [load_target(f"{name}@val", max_images=VALIDATION_IMAGES) for name in SOURCES]
    every += [load_target(name, max_images=most) for name, most in TARGETS.items()]
    images = [shown(frozen, target) for target in every]
    of_seeds: dict[int, tuple[Logits, Logits, Logits]] = {}
    records, results, summary = [], {}, {}
    for arm, seed in product(ARMS, SEEDS):
        if seed not in of_seeds:
            of_seeds[seed] = logits_of(images, *memories(sources, seed), seed)
        segmenter, _ = load_checkpoint(Path(runs) / f"{arm}-{seed}" / "checkpoint")
        for record, counts in mixtures(segmenter, every, images, of_seeds[seed]):
            rule = record["validated with"]
            records.append({"arm": arm, "seed": seed, **record})
            results |= {(rule, arm, seed, name): of for name, of in counts.items()}
        for rule, other in product(("all", "other drives"), ("head", "placebo", "linear")):
            points = differences([of for of in results if of[:2] == (rule, arm)], results, other)
            summary[f"{arm}, {rule}, mixed - {other}"] = points
        seconds = round(time.process_time())
        whole = {"cpu_seconds": seconds, "differences": summary, "runs": records}
        Path(output).write_text(json.dumps(whole, indent=1) + "\n")


def logits_of(
    images: list[list[Shown]], memory: Memory, others: list[Memory], seed: int
) -> tuple[Logits, Logits, Logits]:
    """Return the logits of the memory for each target, of the others for theirs, and the placebo's.

    Args:
        images: Images of the sources' validation, and of the targets.
        memory: Memory of all sources.
        others: Memory without each source.
        seed: Seed of the placebo.
    """
    every = [memory] * len(images), others, [memory.permuted(seed)] * len(images)
    whole, without, permuted = (
        [
            [of.logits(image.tokens) for image in of_target]
            for of, of_target in zip(each, images, strict=False)
        ]
        for each in every
    )
    return whole, without, permuted


def mixtures(
    segmenter: Segmenter,
    every: list[Target],
    images: list[list[Shown]],
    logits: tuple[Logits, Logits, Logits],
) -> Iterator[tuple[dict, dict[str, dict[str, list[ImageResult]]]]]:
    """Yield what is chosen by each rule and its scores, and the counts by target and mixture."""
    predictor = Predictor(segmenter, device="cpu", protocol=PROTOCOL)
    heads = [
        [predictor.scores(image.labelled.image).log_softmax(dim=0) for image in of_target]
        for of_target in images
    ]
    choices = [*MIXED, *ONLY, *TRAINED]
    scores, without = (
        [scored(*of, choices) for of in zip(every, images, heads, found, strict=False)]
        for found in logits[:2]
    )
    for rule, own in (("all", scores[: len(SOURCES)]), ("other drives", without)):
        chosen, alone, linear = (best(own, of) for of in (MIXED, ONLY, TRAINED))
        wrong = [scored(*of, [chosen]) for of in zip(every, images, heads, logits[2], strict=True)]
        counts = {
            target.name: {
                "head": of.results[OFF],
                "mixed": of.results[chosen],
                "placebo": control.results[chosen],
                "linear": of.results[linear],
                "memory alone": of.results[alone],
            }
            for target, of, control in zip(every, scores, wrong, strict=True)
        }
        record = {
            "validated with": rule,
            "beta": chosen[0],
            "neighbours": chosen[1],
            "neighbours alone": alone[1],
            "beta of linear": linear[0],
            "miou": {
                name: {kind: round(miou(results), 2) for kind, results in of.items()}
                for name, of in counts.items()
            },
            "by beta and neighbours": {
                target.name: {
                    f"{beta:g}, {k}": round(miou(of.results[beta, k]), 2) for beta, k in choices
                }
                for target, of in zip(every, scores, strict=True)
            },
        }
        yield record, counts


def differences(runs: list[tuple], results: dict, other: str) -> dict:
    """Return the points of the mixture minus `other`, by target and on average, with intervals."""
    points, pairs = {}, {}
    for name in TARGETS:
        of_seeds = [results[run] for run in runs if run[3] == name]
        pairs[name] = [(of[other], of["mixed"]) for of in of_seeds]
        points[name] = [miou(mixed) - miou(first) for first, mixed in pairs[name]]
    points["average"] = [fmean(of_seed) for of_seed in zip(*points.values(), strict=True)]
    intervals = {name: average_paired_interval([of]) for name, of in pairs.items()}
    intervals["average"] = average_paired_interval([*pairs.values()])
    return {
        name: {
            "mean": round(fmean(of), 2),
            "seeds": [round(value, 2) for value in of],
            "bootstrap": [round(100 * end, 2) for end in intervals[name]],
            "student": [round(end, 2) for end in student_interval(of) or ()],
        }
        for name, of in points.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
