"""One iteration of `pinmem`, and what it is made of, against figures of the original.

`pytest -m reference` compares everything with the reference folder; these few figures of its
`iter_memory_mldg_f64` need none. Weights follow from their names, the images from random seeds
(`SEEDS`); the labels are stored. All in float64, where the original repeats itself to 1e-12.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference.names import model_config, official_parameters, official_tensors
from reference.networks import rule_segmenter, soft_counts

from pinmem_core.config import OptimConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.inference.sliding_window import window_counts, windows
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.training.optim import inner_learning_rate, learning_rate

LABELS = Path(__file__).parents[1] / "golden" / "labels.npz"

SEEDS = ((3408698148, 1176763157, 340149251), (1938881601, 4271873136, 3743061926))
"""Of the blocks, noise and gains of each domain's images."""

CLOSE = {"rel": 1e-9}


def images(domain: int) -> NDArray[np.float32]:
    """Return the (3, 3, 128, 128) images of a domain: blocks of 8 pixels and noise."""
    shapes = (3, 3, 16, 16), (3, 3, 128, 128), (3, 6)
    blocks, noise, gains = (
        np.random.RandomState(seed).random_sample(shape)
        for seed, shape in zip(SEEDS[domain], shapes, strict=True)
    )
    blocks = (2 * blocks - 1).repeat(8, axis=2).repeat(8, axis=3)
    gain, offset = gains[:, :3, None, None], gains[:, 3:, None, None]
    pixels = (1.6 * blocks + 0.5 * (2 * noise - 1)) * (0.4 + 1.2 * gain) * (1 + 0.25 * domain)
    return (pixels + (2 * offset - 1) + 0.3 * domain).astype(np.float32)


@pytest.fixture(scope="module")
def batch() -> Batch:
    pixels = torch.from_numpy(np.stack([images(0), images(1)])).double()
    labels = torch.from_numpy(np.load(LABELS)["labels"]).long()
    return Batch(pixels, labels, meta_train=(0,), meta_test=(1,))


@pytest.fixture(scope="module")
def iteration(batch):
    """Return the segmenter after an iteration, what the step returned, and norms of gradients."""
    config = model_config("DeepR50V3PlusD", 16, memory=True)
    segmenter = rule_segmenter(config, 0, torch.float64)
    optim = OptimConfig()
    method = methods.get("pinmem")(TrainConfig())
    optimizer = torch.optim.SGD(
        segmenter.parameters(),
        lr=learning_rate(optim, 0, 1),
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
    )
    context = StepContext(segmenter, batch, inner_learning_rate(optim, 0, 1))
    result = method.step(context)
    norms = {name: p.grad.norm() for name, p in official_parameters(segmenter).items()}
    optimizer.step()
    method.refresh(context)
    return segmenter, result, norms


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (
            "inner",
            {
                "seg": 3.24717349270233,
                "aux": 3.112961527862925,
                "read": 2.9468436414348558,
                "div": 0.7942024376134328,
                "cls": 2.9561192171728483,
                "total": 5.460199795156141,
            },
        ),
        (
            "outer",
            {
                "seg": 3.1531292664744783,
                "aux": 3.2099565906908647,
                "read": 2.9431159291391147,
                "total": 4.495974221333606,
            },
        ),
    ],
)
def test_every_loss_term_is_the_originals(iteration, phase, expected):
    losses = iteration[1].losses[phase]
    terms = {name: term.item() for name, term in losses.terms.items()}
    assert {**terms, "total": losses.total.item()} == pytest.approx(expected, **CLOSE)


def test_the_memory_is_the_originals_after_each_write(iteration):
    segmenter, result, _ = iteration
    for slots, total, first in (
        (result.losses["inner"].written, 271.1440317021158, 0.07966919494428214),
        (result.rewritten, 271.14613830837925, 0.07964204759351423),
        (segmenter.memory.slots, 269.4306617008297, 0.07423787451646145),
    ):
        assert slots.sum().item() == pytest.approx(total, **CLOSE)
        assert slots[0, 0].item() == pytest.approx(first, **CLOSE)
        assert slots[16, 5].item() == pytest.approx(0.053081139944488216, **CLOSE)  # unwritten


def test_gradients_and_parameters_are_the_originals(iteration):
    segmenter, _, norms = iteration
    assert torch.stack([*norms.values()]).norm().item() == pytest.approx(
        13.048671227853218, **CLOSE
    )
    parameters = official_parameters(segmenter)
    for name, gradient, parameter in (
        ("layer0.0.weight", 4.5006126220356135, 7.976409706121698),
        ("final2.0.weight", 1.9760592292455572, 4.305574432127561),
        ("memory.writenet.writefeat.0.weight", 0.003160521850318743, 16.001601107596155),
        ("memory.clsfier.weight", 0.020539083828245475, 4.3491738202144505),
    ):
        assert norms[name].item() == pytest.approx(gradient, **CLOSE)
        assert parameters[name].norm().item() == pytest.approx(parameter, **CLOSE)


def test_batch_norm_statistics_have_moved_once(iteration):
    tensors = official_tensors(iteration[0])
    variance = tensors["memory.writenet.writefeat.1.running_var"]
    assert variance.sum().item() == pytest.approx(247.07191162872311, **CLOSE)
    assert {int(t) for name, t in tensors.items() if name.endswith("tracked")} == {1}


def test_soft_masks_count_what_the_originals_do(batch):
    counts = soft_counts(batch.labels[0], (8, 8), torch.float64)
    expected = {0: 9.18367346938776, 4: 19.85714285714287, 7: 0, 16: 0, 19: 34.938775510204074}
    assert {k: counts[k].item() for k in expected} == pytest.approx(expected, **CLOSE)


def test_windows_are_counted_as_by_the_original_only_on_demand():
    places = windows(128, 192, 96, 1 / 3)
    assert [(rows.start, columns.start) for rows, columns in places] == [
        (0, 0), (32, 0), (0, 64), (32, 64), (0, 96), (32, 96),
    ]  # fmt: skip
    exact = window_counts(places, (19, 128, 192), "windows")
    assert exact[3, 0, [0, 64, 191]].tolist() == [1, 2, 1]
    assert exact[3, 64, [0, 64, 191]].tolist() == [2, 4, 2]
    slipped = window_counts(places, (19, 128, 192), "original")
    assert slipped[3, [0, 63, 64, 127], 0].tolist() == [1, 1, 2, 2]
    assert torch.equal(slipped, slipped[:1, :, :1].expand_as(slipped))
