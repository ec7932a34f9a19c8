"""`shade` against a plain transcription of its equations, in float64 and by loops.

x is the output of the stem. Farthest-point sampling picks the bank from the means m and deviations
s of the images, by the network in evaluation mode. For each image, w ~ Dirichlet(1/n), and

    x' = s(w)·(x - m_x) / s_x + m(w),  m(w) = sum of w_i m_i,  s(w) = sum of w_i s_i.

L = CE and 0.4 aux over x and x' + 10·JS(p, p') + retrospection: the squared distance of the
coarsest features of x and x' to those of the initial network for x, where things fill 75 % of a
cell.
"""

import copy

import pytest
import torch
from transcribed import (
    assert_step_agrees,
    auxiliary_loss,
    cross_entropy,
    decoded,
    gradients,
    images_of,
    jensen_shannon,
    mean_and_deviation,
    new_method,
    random_batch,
)

STYLES, EPS = 3, 1e-6
THINGS = {6, 7, 11, 12, 13, 14, 15, 16, 17, 18}


def styles_of(maps):
    """Return (means, deviations) of each image, as lists of vectors (C,)."""
    styles = []
    for image in maps:
        pairs = [mean_and_deviation(channel, EPS) for channel in image]
        styles.append(tuple(torch.stack(values) for values in zip(*pairs, strict=True)))
    return styles


def farthest(points, count):
    centre = sum(points) / len(points)
    distance = [((point - centre) ** 2).sum() for point in points]
    chosen = [distance.index(max(distance))]
    while len(chosen) < count:
        nearest = [min(((p - points[c]) ** 2).sum() for c in chosen) for p in points]
        chosen.append(nearest.index(max(nearest)))
    return chosen


def restyled(maps, bank, weights):
    changed = torch.empty_like(maps)
    for n, ((means, stds), image) in enumerate(zip(styles_of(maps), maps, strict=True)):
        for c in range(len(image)):
            mean = sum(weights[n, i] * bank[i][0][c] for i in range(STYLES))
            std = sum(weights[n, i] * bank[i][1][c] for i in range(STYLES))
            # The image's own style is a constant.
            normalised = (image[c] - means[c].detach()) / stds[c].detach()
            changed[n, c] = std * normalised + mean
    return changed


def retrospection(features, before, labels):
    total, cells = 0.0, 0
    count, _, height, width = before.shape
    for n in range(count):
        for row in range(height):
            for column in range(width):
                rows = slice(row * 16, row * 16 + 16)
                cell = labels[n, rows, column * 16 : column * 16 + 16].flatten().tolist()
                if sum(label in THINGS for label in cell) < 0.75 * len(cell):
                    continue
                for image in (n, n + count):  # x and x'
                    apart = features[image, :, row, column] - before[n, :, row, column]
                    total = total + (apart**2).mean()
                    cells += 1
    assert cells
    return total / cells


@pytest.mark.slow
def test_losses_and_gradients_agree():
    settings = {"styles": STYLES, "retrospection": 0.5}
    method, segmenter = new_method("shade", init_weights="some", method_config=settings)
    batch, plain = random_batch(0), copy.deepcopy(segmenter)
    images, labels = images_of(batch)
    backbone = plain.backbone

    initial = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        before = initial(images)[-1]
        styles = styles_of(initial.stem(images))
    bank = [styles[i] for i in farthest([torch.cat(style) for style in styles], STYLES)]
    torch.manual_seed(0)
    concentration = torch.full((STYLES,), 1 / STYLES, dtype=torch.float64)
    weights = torch.distributions.Dirichlet(concentration).sample((len(images),))

    plain.train()
    stem = backbone.stem(images)
    first = backbone.stage1(torch.cat([stem, restyled(stem, bank, weights)]))
    second = backbone.stage2(first)
    features = [first, second, backbone.stage3(second)]
    logits, both = decoded(plain, features), torch.cat([labels, labels])
    terms = {
        "seg": cross_entropy(logits, both),
        "aux": auxiliary_loss(plain, features, both),
        "js": jensen_shannon(logits[:4], logits[4:]),
        "retrospection": retrospection(features[-1], before, labels),
    }
    total = terms["seg"] + 0.4 * terms["aux"] + 10 * terms["js"] + 0.5 * terms["retrospection"]
    expected = gradients(plain, total)
    assert_step_agrees(method, segmenter, batch, 0, {**terms, "total": total}, expected)
