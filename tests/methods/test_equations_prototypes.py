"""`prototypes` against a plain transcription of its equations, in float64 and by loops.

A pixel e of unit length has the score s_k = max over p of e·q_kp for class k. Sinkhorn's algorithm
assigns the pixels of a class to its P prototypes. With o the number of a pixel's own prototype,

    L = CE + 0.4 aux + w·CE(layer norm of s) + c·CE(all e·q / τ, o) + d·mean of (1 - e·q_o)².

After the step, a prototype moves to the unit mean of its pixels: by 1/n in its update n, but by no
less than 1 - momentum.
"""

import itertools

import pytest
import torch
from transcribed import (
    CLOSE,
    assert_step_agrees,
    auxiliary_loss,
    cross_entropy,
    gradients,
    images_of,
    new_method,
    random_batch,
)

CLASSES, PER_CLASS = 19, 3
WEIGHT, CONTRAST, COMPACT, TAU, MOMENTUM = 0.7, 0.3, 0.2, 0.25, 0.6
SETTINGS = {
    "per_class": PER_CLASS,
    "weight": WEIGHT,
    "contrast": CONTRAST,
    "compactness": COMPACT,
    "temperature": TAU,
    "momentum": MOMENTUM,
}


def unit(vector):
    return vector / (vector**2).sum().sqrt()


def sinkhorn(cosines):
    """Return the prototype of each pixel of a class, for the rows of its cosines."""
    plan = [[(cosine / 0.05).exp().item() for cosine in row] for row in cosines]
    plan = [[value / sum(row) for value in row] for row in plan]
    for _ in range(3):
        columns = [sum(row[p] for row in plan) for p in range(PER_CLASS)]
        plan = [[value / columns[p] for p, value in enumerate(row)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    return [max(range(PER_CLASS), key=row.__getitem__) for row in plan]


class Transcription:
    """The prototypes, and a step that returns the loss terms and moves them."""

    def __init__(self, segmenter, prototypes):
        self.segmenter = segmenter
        numbers = itertools.product(range(CLASSES), range(PER_CLASS))
        self.prototypes = {(k, p): prototypes[k, p] for k, p in numbers}
        self.updates = dict.fromkeys(self.prototypes, 0)

    def step(self, images, labels):
        network = self.segmenter
        network.train()
        features = network.backbone(images)
        feature = network.decoder.project(features)
        logits = network.decoder.decode(feature, features)

        height, width = feature.shape[-2:]
        scores = torch.empty(len(images), CLASSES, height, width, dtype=torch.float64)
        members = {}
        for n in range(len(images)):
            for row in range(height):
                for column in range(width):
                    pixel = unit(feature[n, :, row, column])
                    cosines = {key: (pixel * q).sum() for key, q in self.prototypes.items()}
                    of_classes = torch.stack([*cosines.values()]).split(PER_CLASS)
                    best = torch.stack([of_class.max() for of_class in of_classes])
                    mean = best.sum() / CLASSES
                    variance = ((best - mean) ** 2).sum() / CLASSES
                    scores[n, :, row, column] = (best - mean) / (variance + 1e-5).sqrt()
                    label = int(labels[n, row * 32 // height, column * 32 // width])
                    if label != 255:
                        members.setdefault(label, []).append((pixel, cosines))
        contrast, compact, count, owned = 0.0, 0.0, 0, {}
        for k, pixels in members.items():
            rows = [[cosines[k, p] for p in range(PER_CLASS)] for _, cosines in pixels]
            for (pixel, cosines), p in zip(pixels, sinkhorn(rows), strict=True):
                every = sum((cosine / TAU).exp() for cosine in cosines.values())
                contrast = contrast - ((cosines[k, p] / TAU).exp() / every).log()
                compact = compact + (1 - cosines[k, p]) ** 2
                count += 1
                owned.setdefault((k, p), []).append(pixel.detach())
        terms = {
            "seg": cross_entropy(logits, labels),
            "aux": auxiliary_loss(network, features, labels),
            "prototypes": cross_entropy(scores, labels),
            "contrast": contrast / count,
            "compact": compact / count,
        }
        for key, pixels in owned.items():
            self.updates[key] += 1
            share = max(1 / self.updates[key], 1 - MOMENTUM)
            centre = unit(sum(pixels))
            self.prototypes[key] = unit((1 - share) * self.prototypes[key] + share * centre)
        weights = {"aux": 0.4, "prototypes": WEIGHT, "contrast": CONTRAST, "compact": COMPACT}
        terms["total"] = sum(weights.get(name, 1.0) * term for name, term in terms.items())
        return terms


@pytest.mark.slow
def test_losses_gradients_and_prototypes_agree_over_three_steps():
    method, segmenter = new_method("prototypes", method_config=SETTINGS)
    first = method.state_dict()["prototypes"].clone()
    plain = Transcription(new_method("prototypes", method_config=SETTINGS)[1], first)
    for iteration in range(3):
        batch = random_batch(iteration)
        terms = plain.step(*images_of(batch))
        expected = gradients(plain.segmenter, terms["total"])
        assert_step_agrees(method, segmenter, batch, iteration, terms, expected)
        assert terms["contrast"] > 0.1 and terms["compact"] > 1e-3
        state = method.state_dict()
        for (k, p), prototype in plain.prototypes.items():
            torch.testing.assert_close(state["prototypes"][k, p], prototype, **CLOSE)
            assert int(state["updates"][k, p]) == plain.updates[k, p]
    assert max(plain.updates.values()) == 3
    assert torch.equal(first[1], state["prototypes"][1])  # no pixel of class 1
