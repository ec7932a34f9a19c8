"""ISW, IW and IRW against a plain transcription of their equations, in float64."""

import pytest
import torch
from conftest import small_config

from pinmem_core.data.batches import Batch
from pinmem_core.data.transforms import strong_view
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.isw import above_lowest_cluster, covariance, whitening_loss
from pinmem_core.models.adapters.ibn import InstanceNorm
from pinmem_core.training.setup import initial_segmenter, resolve

CLOSE = {"rtol": 0, "atol": 1e-9}


def covariance_by_hand(image):
    """Return Σ = XXᵀ/(HW-1) + 1e-5·I of one map (C, H, W), element by element."""
    rows = [channel.flatten() for channel in image]
    sigma = [[(x * y).sum() / (len(x) - 1) for y in rows] for x in rows]
    for i in range(len(rows)):
        sigma[i][i] = sigma[i][i] + 1e-5
    return sigma


def loss_by_hand(maps, mask, margin_share):
    """Return the mean over images of max(0, Σ|Σ∘mask| - margin) / #mask."""
    chosen = [(i, j) for i in range(len(mask)) for j in range(len(mask)) if mask[i][j]]
    losses = []
    for image in maps:
        sigma = covariance_by_hand(image)
        size = sum(abs(sigma[i][j]) for i, j in chosen)
        losses.append(torch.relu(size - margin_share * len(chosen)) / len(chosen))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_loss_and_gradient_follow_the_equations(margin):
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    maps[1] *= 2
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).double()
    results = []
    for loss in (whitening_loss, loss_by_hand):
        variable = maps.clone().requires_grad_()
        value = loss(variable, mask, margin)
        results.append((value, *torch.autograd.grad(value, variable)))
    assert results[0][0] > 0.05
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_whitened_maps_cost_nothing():
    torch.manual_seed(0)
    centred = torch.randn(3, 4, 5, 6, dtype=torch.float64).flatten(2)
    centred = centred - centred.mean(dim=2, keepdim=True)
    scatter = centred @ centred.mT / 29
    white = (torch.linalg.inv(torch.linalg.cholesky(scatter)) @ centred).unflatten(2, (5, 6))
    torch.testing.assert_close(covariance(white), 1.00001 * torch.eye(4).double().expand(3, 4, 4))
    assert whitening_loss(white, torch.ones(4, 4).triu(1).double()).item() < 1e-12
    assert whitening_loss(torch.randn(3, 4, 5, 6), torch.zeros(4, 4)).item() == 0


def best_clusters(values, clusters):
    """Return the size of the lowest cluster in the best partition, by trying all of them."""

    def spread(part):
        return ((part - part.mean()) ** 2).sum().item() if len(part) else float("inf")

    def best(rest, count):
        if count == 1:
            return spread(rest), [len(rest)]
        tried = []
        for cut in range(1, len(rest) - count + 2):
            cost, sizes = best(rest[cut:], count - 1)
            tried.append((spread(rest[:cut]) + cost, [cut, *sizes]))
        return min(tried)

    return best(values.sort().values, clusters)[1][0]


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_cluster_is_that_of_the_best_partition(seed):
    torch.manual_seed(seed)
    values = torch.cat([c + 0.1 * torch.rand(6) for c in (0.0, 0.6, 2.0)])[torch.randperm(18)]
    chosen = above_lowest_cluster(values, 3)
    assert int((~chosen).sum()) == best_clusters(values, 3) == 6
    assert values[chosen].min() > values[~chosen].max()
    assert not above_lowest_cluster(torch.zeros(4), 3).any()
    assert above_lowest_cluster(torch.tensor([0.0, torch.nan, torch.inf]), 3).all()  # ends


def run(iterations: int, **settings):
    """Return the method, and context, losses and state of the network after each step."""
    own = {"start": 0.5, "trials": 2, "trial_batches": 2, **settings}
    config = resolve(small_config(method="isw", iterations=10, method_config=own))
    segmenter = initial_segmenter(config).double()
    method = methods.get("isw")(config)
    method.setup(segmenter)
    generator = torch.Generator().manual_seed(0)
    results = []
    for number in range(iterations):
        images = torch.randn(2, 2, 3, 64, 64, generator=generator).double()
        labels = torch.randint(0, 19, (2, 2, 64, 64), generator=generator)
        context = StepContext(segmenter, Batch(images, labels, (0,), (1,)), 0.1, number)
        losses = method.step(context).losses["train"]
        state = {name: value.clone() for name, value in segmenter.state_dict().items()}
        results.append((context, losses, state))
        torch.manual_seed(100 + number)
        method.refresh(context)
    return method, results


@pytest.mark.slow
def test_the_mask_is_the_intersection_of_the_trials():
    method, results = run(5)
    segmenter = results[0][0].segmenter
    kept: list[torch.Tensor] = []
    for part in segmenter.backbone.modules():
        if isinstance(part, InstanceNorm):
            part.register_forward_hook(lambda _, inputs, output: kept.append(output))
    expected = [1.0, 1.0, 1.0]
    for trial in (1, 3):
        totals = [0.0, 0.0, 0.0]
        for number in (trial, trial + 1):
            context, _, state = results[number]
            segmenter.load_state_dict(state)
            segmenter.eval()
            images = context.batch.all()[0]
            torch.manual_seed(100 + number)
            kept.clear()
            with torch.no_grad():
                segmenter.backbone(images)
                segmenter.backbone(strong_view(images, segmenter.normalization))
            for i in range(3):
                for first, second in zip(kept[i], kept[3 + i], strict=True):
                    pair = torch.stack(
                        [torch.tensor(covariance_by_hand(m)) for m in (first, second)]
                    )
                    totals[i] = totals[i] + pair.var(dim=0, correction=0) / len(images)
        for i, total in enumerate(totals):
            upper = [(a, b) for a in range(len(total)) for b in range(a + 1, len(total))]
            values = torch.stack([total[a, b] for a, b in upper])
            threshold = values[~above_lowest_cluster(values, 3)].max()
            mask = torch.zeros(total.shape)
            for a, b in upper:
                mask[a, b] = float(total[a, b] > threshold)
            expected[i] = expected[i] * mask
    for number, mask in enumerate(expected):
        got = method.state_dict()[f"mask.{number}"]
        assert 0 < mask.sum() < len(mask) * (len(mask) - 1) / 2
        assert torch.equal(got, mask.to(got)), number


@pytest.mark.slow
def test_the_loss_begins_after_the_trials_and_has_the_mask_and_the_weight():
    method, results = run(7)
    for context, losses, _ in results:
        others = losses.terms["seg"] + 0.4 * losses.terms["aux"]
        weight = 0.6 if context.iteration >= 5 else 0.0
        torch.testing.assert_close(losses.total, others + weight * losses.terms["isw"], **CLOSE)
    sizes = [int(mask.sum()) for name, mask in method.state_dict().items() if "mask" in name]
    placebo, _ = run(5, placebo=True)
    masks = [mask for name, mask in placebo.state_dict().items() if "mask" in name]
    assert [int(mask.sum()) for mask in masks] == sizes
    assert all(torch.equal(mask, mask.triu(1)) for mask in masks)
    first = method.state_dict()["mask.0"]
    assert not torch.equal(masks[0], first)


@pytest.mark.parametrize("kind", ["iw", "irw"])
def test_the_controls_whiten_all_elements_from_the_first_iteration(kind):
    method, results = run(1, loss=kind)
    losses = results[0][1]
    assert all(
        torch.equal(mask, torch.ones_like(mask).triu(1))
        for name, mask in method.state_dict().items()
        if "mask" in name
    )
    expected = losses.terms["seg"] + 0.4 * losses.terms["aux"] + 0.6 * losses.terms[kind]
    torch.testing.assert_close(losses.total, expected, **CLOSE)


def test_instance_norm_without_scale_and_shift_removes_affine_changes_of_each_channel():
    torch.manual_seed(0)
    norm, maps = InstanceNorm(5, affine=False), torch.randn(2, 5, 8, 8, dtype=torch.float64)
    scale, shift = torch.rand(2, 5, 1, 1).double() + 0.5, torch.randn(2, 5, 1, 1).double()
    torch.testing.assert_close(norm(scale * maps + shift), norm(maps), rtol=0, atol=1e-4)
    assert not [*norm.parameters()]
