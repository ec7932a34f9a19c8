"""What pinmem adds to the published method, each against what it should equal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pinmem_core.config import ModelConfig
from pinmem_core.data.batches import Batch
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.losses import balanced_cross_entropy
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.models.norm import (
    AlphaBatchNorm,
    PortableSyncBatchNorm,
    set_alpha,
    synchronize_batch_norm,
)
from pinmem_core.overrides import validate

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def norm(share: float) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    module = nn.BatchNorm2d(3).double()
    for values in (module.weight, module.bias, module.running_mean, module.running_var):
        nn.init.uniform_(values, 0.5, 1.5)
    set_alpha(module, share)
    return module.eval()


def maps(height: int = 5, width: int = 7) -> torch.Tensor:
    return 2 + 3 * torch.randn(
        2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(5, 7), (97, 100), (1, 5000)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_statistics_are_mixed_image_by_image(share, size, layout):
    module, images = norm(share), maps(*size).contiguous(memory_format=layout)
    for image, output in zip(images, module(images), strict=True):
        variance, mean = torch.var_mean(image, dim=(1, 2), correction=0)
        expected = F.batch_norm(
            image[None],
            (1 - share) * module.running_mean + share * mean,
            (1 - share) * module.running_var + share * variance,
            module.weight,
            module.bias,
            training=False,
            eps=module.eps,
        )
        torch.testing.assert_close(output[None], expected, **CLOSE)


@torch.no_grad()
def test_the_result_may_take_the_place_of_the_input():
    module, images = norm(0.3), maps()
    expected = module(images)
    module.inplace = True
    assert module(images).data_ptr() == images.data_ptr()
    assert torch.equal(images, expected)


def test_statistics_of_many_pixels_are_as_exact_as_torchs_own():
    module = norm(1.0).float()
    images = (100 + maps(900, 1000)).float().contiguous(memory_format=torch.channels_last)
    exact = norm(1.0)(images.double())
    torch.testing.assert_close(module(images).double(), exact, rtol=0, atol=1e-4)


def test_training_and_single_positions_know_no_mixing():
    mixed, plain = norm(0.5), norm(0.0)
    pooled = maps().mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(mixed(pooled), plain(pooled), **CLOSE)
    mixed.train(), plain.train()
    torch.testing.assert_close(mixed(maps()), plain(maps()), **CLOSE)
    torch.testing.assert_close(mixed.running_var, plain.running_var, **CLOSE)


def test_synchronised_norms_predict_alike():
    network = nn.Sequential(norm(0.4))
    expected = network(maps())
    synchronize_batch_norm(network, torch.device("cpu"))
    assert type(network[0]) is PortableSyncBatchNorm
    plain = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), torch.device("cuda"))
    assert type(plain[0]) is nn.SyncBatchNorm
    calibrated = synchronize_batch_norm(nn.Sequential(network[0]), torch.device("cuda"))
    assert calibrated[0].alpha == network[0].alpha > 0
    torch.testing.assert_close(network.eval()(maps()), expected, **CLOSE)


def test_a_segmenter_says_in_its_config_how_it_normalises():
    config = ModelConfig(backbone="tiny", feature_dim=16, test_time_bn=0.2)
    norms = [m for m in Segmenter(config).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(m, AlphaBatchNorm) and m.alpha == 0.2 for m in norms)
    plain = Segmenter(config.model_copy(update={"test_time_bn": 0.0}))
    assert not any(isinstance(m, AlphaBatchNorm) for m in plain.modules())


def memory(**options: object) -> CategoricalMemory:
    torch.manual_seed(0)
    return CategoricalMemory(4, 3, read="softmax", momentum=0.8, **options).double().eval()


def test_a_low_temperature_reads_the_nearest_slot():
    sharp = memory(temperature=1e-6)
    feature = maps().abs()
    query = F.normalize(feature, dim=1)
    nearest = torch.einsum("ndhw,kd->nkhw", query, sharp.slots).argmax(dim=1)
    value = sharp.slots[nearest].movedim(-1, 1)
    expected = F.relu(sharp.fuse(torch.cat([query, value], dim=1)))
    torch.testing.assert_close(sharp.read(feature, sharp.slots)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_residual_memory_adds_the_feature():
    feature, paper, residual = maps().abs(), memory(), memory(residual=True)
    query = F.normalize(feature, dim=1)
    value = torch.einsum(
        "nkhw,kd->ndhw",
        torch.einsum("ndhw,kd->nkhw", query, paper.slots).softmax(dim=1),
        paper.slots,
    )
    torch.testing.assert_close(residual.read(feature, residual.slots)[0], feature, **CLOSE)
    residual.fuse.load_state_dict(paper.fuse.state_dict())
    added = paper.fuse(torch.cat([query, value], dim=1))
    torch.testing.assert_close(paper.read(feature, paper.slots)[0], F.relu(added), **CLOSE)
    expected = F.relu(feature + added)
    torch.testing.assert_close(residual.read(feature, residual.slots)[0], expected, **CLOSE)


def network(*, memory: bool) -> Segmenter:
    torch.manual_seed(0)
    settings = {"read": "softmax"} if memory else None
    config = {"backbone": "tiny", "feature_dim": 16, "memory": settings}
    segmenter = Segmenter(ModelConfig.model_validate(config)).double()
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return segmenter


def batch() -> Batch:
    rng = torch.Generator().manual_seed(2)
    images = torch.randn((3, 2, 3, 32, 32), generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 19, (3, 2, 4, 4), generator=rng)
    return Batch(images, labels.repeat_interleave(8, 2).repeat_interleave(8, 3), (0, 2), (1,))


def outcome(name: str, *, memory: bool = True, **meta: object) -> dict[str, torch.Tensor]:
    segmenter = network(memory=memory)
    method = methods.get(name)(validate({"method": name, "meta": meta}))
    context = StepContext(segmenter, batch(), inner_lr=0.1)
    method.step(context)
    named = segmenter.named_parameters()
    gradients = {f"gradient of {n}": p.grad for n, p in named if p.grad is not None}
    method.refresh(context)
    return gradients | segmenter.state_dict()


META = pytest.mark.parametrize(("name", "memory"), [("pinmem", True), ("mldg", False)])


@META
def test_an_inner_step_on_all_domains_is_that_of_the_aggregate(name, memory):
    ours = outcome(name, memory=memory, inner="all", outer_weight=0)
    theirs = outcome("aggregate", memory=memory)
    assert ours.keys() == theirs.keys()
    for part, values in theirs.items():
        torch.testing.assert_close(ours[part], values, **CLOSE)


@META
def test_the_outer_losses_weigh_what_is_asked(name, memory):
    none, half, whole = (outcome(name, memory=memory, outer_weight=w) for w in (0, 0.5, 1))
    for part, values in half.items():
        if part.startswith("gradient"):
            torch.testing.assert_close(values * 2, none[part] + whole[part], **CLOSE)
    part = "gradient of decoder.classifier.weight"
    assert not torch.equal(none[part], whole[part])


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_balanced_losses_weigh_pixels_by_the_size_of_their_class(balance):
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn((2, 5, 4, 6), generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 4, 6), generator=rng) ** 2 // 2  # 0, 0, 2, 4: 1 and 3 absent
    labels[0, 0] = 255
    known = labels[labels != 255]
    sizes = torch.bincount(known, minlength=5).double()
    pixelwise = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")[labels != 255]
    weights = sizes[known] ** -balance
    expected = (weights * pixelwise).sum() / weights.sum()
    torch.testing.assert_close(balanced_cross_entropy(logits, labels, balance), expected, **CLOSE)


def test_a_balanced_loss_without_labels_is_zero():
    logits = torch.randn(1, 5, 4, 4)
    assert balanced_cross_entropy(logits, torch.full((1, 4, 4), 255), 0.5) == 0
