"""`spc` against a plain transcription of its equations, in float64 and by loops.

After each of the first two stages, for the style of an image and the bases of the domains m:

    d_m = ‖mean - mean_m‖² + ‖std - std_m‖²,  λ = softmax of 1 / (1 + d_m),
    x' = (Σ λ_m std_m)·(x - mean) / std + Σ λ_m mean_m.

A pixel e of unit length has the score max over m of e·p_cm for class c. L = CE on the scores + 0.4
aux + β·mean of (1 - e·p_ym)² + the weighted InfoNCE of the centres of classes and domains against
all bases. After the step, all bases are moving averages: styles by domain, unit class means by
class and domain.
"""

import pytest
import torch
from transcribed import (
    CLOSE,
    DOMAINS,
    assert_step_agrees,
    auxiliary_loss,
    cross_entropy,
    gradients,
    images_of,
    mean_and_deviation,
    new_method,
    random_batch,
)

CLASSES, EPS = 19, 1e-5
MOMENTUM, TEMPERATURE, BETA, GAMMA, TAU = 0.8, 0.5, 0.7, 0.3, 0.2
SETTINGS = {
    "momentum": MOMENTUM,
    "temperature": TEMPERATURE,
    "compactness": BETA,
    "contrast": GAMMA,
    "contrast_temperature": TAU,
}


class Transcription:
    """The bases, and a step that returns the loss terms and moves the bases."""

    def __init__(self, segmenter):
        self.segmenter = segmenter
        self.styles = [{}, {}]  # by place: (means, deviations) of each domain, once it is known
        self.bases = {}  # by (class, domain)

    def projected(self, place, maps):
        bases, moments, changed = self.styles[place], [], torch.empty_like(maps)
        for n, image in enumerate(maps):
            pairs = [mean_and_deviation(channel, EPS) for channel in image]
            means, stds = (torch.stack(values) for values in zip(*pairs, strict=True))
            moments.append((means.detach(), stds.detach()))
            closeness = []
            for m in range(DOMAINS):
                of_means, of_stds = bases.get(m, (0.0, 1.0))
                apart = ((means - of_means) ** 2).sum() + ((stds - of_stds) ** 2).sum()
                closeness.append((1 / (1 + apart)).exp())
            for c in range(len(image)):
                mean, std = 0.0, 0.0
                for m in range(DOMAINS):
                    share = closeness[m] / sum(closeness)
                    mean = mean + share * (bases[m][0][c] if bases else 0.0)
                    std = std + share * (bases[m][1][c] if bases else 1.0)
                changed[n, c] = std * (image[c] - means[c]) / stds[c] + mean
        return changed, moments

    def move_styles(self, place, moments):
        for m in range(DOMAINS):
            own = moments[m::DOMAINS]
            new = [sum(style[k] for style in own) / len(own) for k in (0, 1)]
            old = self.styles[place].get(m, new)
            mixed = [MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip(old, new, strict=True)]
            self.styles[place][m] = tuple(mixed)

    def step(self, images, labels):
        network = self.segmenter
        network.train()
        backbone, decoder = network.backbone, network.decoder
        first, first_moments = self.projected(0, backbone.stage1(backbone.stem(images)))
        second, second_moments = self.projected(1, backbone.stage2(first))
        features = [first, second, backbone.stage3(second)]
        fused = decoder.fusion(decoder.fine(first), decoder.project(features))
        pixels = fused / (fused**2).sum(dim=1, keepdim=True).sqrt()

        height, width = pixels.shape[-2:]
        scores = []
        for c in range(CLASSES):
            of_domains = [
                torch.einsum("ndhw,d->nhw", pixels, self.bases[c, m])
                if (c, m) in self.bases
                else 0.0 * pixels[:, 0]
                for m in range(DOMAINS)
            ]
            scores.append(torch.maximum(*of_domains))
        members, compact, labelled = {}, 0.0, 0
        for n in range(len(images)):
            for row in range(height):
                for column in range(width):
                    label = int(labels[n, row * 32 // height, column * 32 // width])
                    if label == 255:
                        continue
                    pixel, key = pixels[n, :, row, column], (label, n % DOMAINS)
                    members.setdefault(key, []).append(pixel)
                    cosine = (pixel * self.bases[key]).sum() if key in self.bases else 0.0
                    compact = compact + (1 - cosine) ** 2
                    labelled += 1
        centres = {key: sum(own) / len(own) for key, own in members.items()}
        centres = {key: mean / (mean**2).sum().sqrt() for key, mean in centres.items()}
        contrasts = []
        for key, centre in centres.items():
            if key in self.bases:
                all_bases = [((centre * p).sum() / TAU).exp() for p in self.bases.values()]
                own = (centre * self.bases[key]).sum() / TAU
                contrasts.append(sum(all_bases).log() - own)

        terms = {
            "seg": cross_entropy(torch.stack(scores, dim=1) / TEMPERATURE, labels),
            "aux": auxiliary_loss(network, features, labels),
            "compact": torch.as_tensor(compact / labelled, dtype=torch.float64),
            "contrast": torch.as_tensor(sum(contrasts) / max(1, len(contrasts))).double(),
        }
        self.move_styles(0, first_moments)
        self.move_styles(1, second_moments)
        for key, centre in centres.items():
            moved = MOMENTUM * self.bases.get(key, centre) + (1 - MOMENTUM) * centre
            moved = moved.detach()
            self.bases[key] = moved / (moved**2).sum().sqrt()
        weights = {"seg": 1.0, "aux": 0.4, "compact": BETA, "contrast": GAMMA}
        terms["total"] = sum(weights[name] * term for name, term in terms.items())
        return terms


@pytest.mark.slow
def test_losses_gradients_and_bases_agree_over_three_steps():
    method, segmenter = new_method("spc", method_config=SETTINGS)
    plain = Transcription(new_method("spc", method_config=SETTINGS)[1])
    for part in plain.segmenter.backbone.modules():
        part._forward_hooks.clear()  # the projections; the transcription does them by hand
    for iteration in range(3):
        batch = random_batch(iteration)
        terms = plain.step(*images_of(batch))
        expected = gradients(plain.segmenter, terms["total"])
        expected |= {
            name: torch.zeros_like(parameter)
            for name, parameter in plain.segmenter.named_parameters()
            if name not in expected
        }
        assert_step_agrees(method, segmenter, batch, iteration, terms, expected)
    assert terms["contrast"] > 0.1
    for place, projection in enumerate(segmenter.backbone.style_projection):
        for m in range(DOMAINS):
            means, stds = plain.styles[place][m]
            torch.testing.assert_close(projection.means[m], means, **CLOSE)
            torch.testing.assert_close(projection.stds[m], stds, **CLOSE)
    bases = segmenter.decoder.classifier.bases
    for (c, m), base in plain.bases.items():
        torch.testing.assert_close(bases[c, m], base, **CLOSE)
    assert int(bases.any(dim=2).sum()) == len(plain.bases)
