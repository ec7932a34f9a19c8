"""`two-views` against a plain transcription: L = CE(x) + CE(x') + λ·JS(p(x), p(x'))."""

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
    new_method,
    random_batch,
)


@pytest.mark.slow
def test_losses_and_gradients_agree():
    method, segmenter = new_method("two-views", method_config={"weight": 7.0})
    batch = random_batch(0, views=2)
    (weak, labels), (strong, _) = images_of(batch), images_of(batch, 1)

    segmenter.train()
    features = segmenter.backbone(torch.cat([weak, strong]))
    logits = decoded(segmenter, features)
    auxiliary = 2 * auxiliary_loss(segmenter, features, torch.cat([labels, labels]))
    supervised = cross_entropy(logits[:4], labels) + cross_entropy(logits[4:], labels)
    js = jensen_shannon(logits[:4], logits[4:])
    total = supervised + 0.4 * auxiliary + 7.0 * js

    expected = gradients(segmenter, total)
    terms = {"seg": supervised / 2, "aux": auxiliary / 2, "js": js, "total": total}
    assert_step_agrees(method, segmenter, batch, 0, terms, expected)
