"""MixStyle, DSU and WildNet against a plain transcription of their equations, in float64."""

import pytest
import torch
from conftest import small_config

from pinmem_core.data.batches import Batch
from pinmem_core.errors import PinMemError
from pinmem_core.images import write_png
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.dsu import perturb_styles
from pinmem_core.methods.mixstyle import mix_styles
from pinmem_core.methods.wildnet import divergence
from pinmem_core.training.run_folder import shareable
from pinmem_core.training.setup import initial_segmenter, resolve

CLOSE = {"rtol": 0, "atol": 1e-9}


def moments(values):
    """Return mean and variance of a list."""
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / len(values)


def style_by_hand(maps):
    """Return means and standard deviations as lists, by image and channel."""
    each = [[moments([*channel.flatten()]) for channel in image] for image in maps]
    means = [[mean for mean, _ in image] for image in each]
    stds = [[torch.sqrt(variance + 1e-6) for _, variance in image] for image in each]
    return means, stds


def maps_and_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 2, 3, 4)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def agree(ours, by_hand):
    """Compare a loss and its gradient, for both functions of the maps."""
    maps, weights = maps_and_weights()
    results = []
    for function in (ours, by_hand):
        variable = maps.clone().requires_grad_()
        loss = (weights * function(variable)).sum()
        results.append((loss, *torch.autograd.grad(loss, variable)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_mixstyle_follows_the_equations():
    partners, shares = [2, 1, 0], [0.2, 0.7, 1.0]

    def by_hand(maps):
        means, stds = style_by_hand(maps.detach())  # no gradient passes the styles
        result = []
        for n, (partner, share) in enumerate(zip(partners, shares, strict=True)):
            for c in range(2):
                normalized = (maps[n, c] - means[n][c]) / stds[n][c]
                beta = share * means[n][c] + (1 - share) * means[partner][c]
                gamma = share * stds[n][c] + (1 - share) * stds[partner][c]
                result.append(gamma * normalized + beta)
        return torch.stack(result).unflatten(0, (3, 2))

    factors = torch.tensor(shares, dtype=torch.float64)[:, None, None, None]
    agree(lambda maps: mix_styles(maps, torch.tensor(partners), factors), by_hand)


def test_an_own_partner_or_a_share_of_1_changes_nothing():
    maps, _ = maps_and_weights()
    maps = maps.float()
    some = torch.rand(3, 1, 1, 1)
    assert torch.equal(mix_styles(maps, torch.arange(3), some), maps)
    assert torch.equal(mix_styles(maps[:1], torch.zeros(1).long(), some[:1]), maps[:1])
    assert torch.equal(mix_styles(maps, torch.tensor([1, 2, 0]), torch.ones(3, 1, 1, 1)), maps)


@pytest.mark.parametrize("placebo", [False, True])
def test_dsu_follows_the_equations(placebo):
    noise = torch.randn(2, 3, 2, 1, 1, generator=torch.Generator().manual_seed(3)).double()

    def by_hand(maps):
        means, stds = style_by_hand(maps)
        scales = []
        for values in (means, stds):
            columns = [[values[n][c] for n in range(3)] for c in range(2)]
            each = [torch.sqrt(moments(column)[1] + 1e-6) for column in columns]
            scales.append([sum(each) / 2] * 2 if placebo else each)
        result = []
        for n in range(3):
            for c in range(2):
                beta = means[n][c] + noise[0, n, c, 0, 0] * scales[0][c]
                gamma = stds[n][c] + noise[1, n, c, 0, 0] * scales[1][c]
                result.append(gamma * (maps[n, c] - means[n][c]) / stds[n][c] + beta)
        return torch.stack(result).unflatten(0, (3, 2))

    agree(lambda maps: perturb_styles(maps, noise, placebo=placebo), by_hand)
    maps, _ = maps_and_weights()
    assert torch.equal(perturb_styles(maps, torch.zeros_like(noise)), maps)


def test_the_divergence_follows_the_equation():
    torch.manual_seed(0)
    logits, others = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    variables = [logits.clone().requires_grad_(), others.clone().requires_grad_()]
    total = 0.0
    for p_logits, q_logits in zip(*variables, strict=True):
        image = 0.0
        for y in range(3):
            for x in range(3):
                p, q = (values[:, y, x].exp() for values in (p_logits, q_logits))
                p, q = p / p.sum(), q / q.sum()
                image = image + sum(p[k] * torch.log(p[k] / q[k]) for k in range(4))
        total = total + image / (4 * 3 * 3)
    expected = torch.autograd.grad(total / 2, variables)
    again = [logits.clone().requires_grad_(), others.clone().requires_grad_()]
    loss = divergence(*again)
    torch.testing.assert_close(loss, total.detach() / 2, **CLOSE)
    for got, wanted in zip(torch.autograd.grad(loss, again), expected, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)
    assert divergence(logits, logits).item() == 0


def one_step(method, iteration=0, **settings):
    """Return losses, gradients and running statistics of a step of a method."""
    config = resolve(small_config(method=method, method_config=settings))
    segmenter = initial_segmenter(config).double()
    for part in segmenter.modules():
        if isinstance(part, torch.nn.Dropout | torch.nn.Dropout2d):
            part.p = 0.0
    run = methods.get(method)(config)
    run.setup(segmenter)
    generator = torch.Generator().manual_seed(7)
    batch = Batch(
        torch.randn(2, 2, 3, 64, 64, generator=generator).double(),
        torch.randint(0, 19, (2, 2, 64, 64), generator=generator),
        (0,),
        (1,),
    )
    torch.manual_seed(iteration)
    losses = run.step(StepContext(segmenter, batch, 0.1, iteration)).losses["train"]
    gradients = {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}
    buffers = dict(segmenter.named_buffers())
    return losses, gradients, buffers


def same(first, second):
    assert first[0].total.item() == second[0].total.item()
    for values, others in zip(first[1:], second[1:], strict=True):
        assert values.keys() == others.keys()
        assert all(torch.equal(values[name], others[name]) for name in values)


def test_without_changes_a_step_is_that_of_aggregate():
    plain = one_step("aggregate")
    same(one_step("mixstyle", p=0.0), plain)
    same(one_step("dsu", p=0.0), plain)
    same(one_step("mixstyle", p=1.0, placebo=True), plain)


def test_styles_change_a_step_and_depend_on_its_iteration():
    plain = one_step("aggregate")[0].total
    for method in ("mixstyle", "dsu"):
        first, second = (one_step(method, number, p=1.0)[0].total for number in (0, 1))
        assert len({plain.item(), first.item(), second.item()}) == 3


def test_a_step_of_wildnet_adds_its_terms_and_records_statistics_of_the_images_alone():
    losses, _, statistics = one_step("wildnet", weight=7.0)
    terms = losses.terms
    assert terms.keys() == {"seg", "aux", "seg_wild", "aux_wild", "kl"}
    expected = terms["seg"] + 0.4 * terms["aux"] + terms["seg_wild"] + 0.4 * terms["aux_wild"]
    torch.testing.assert_close(losses.total, expected + 7 * terms["kl"], **CLOSE)
    assert terms["kl"] > 0
    plain, _, expected_statistics = one_step("aggregate")
    assert terms["seg"].item() == plain.terms["seg"].item()
    assert all(torch.equal(statistics[name], expected_statistics[name]) for name in statistics)


def test_the_placebo_of_wildnet_is_the_image_itself():
    losses = one_step("wildnet", placebo=True)[0]
    torch.testing.assert_close(losses.terms["seg_wild"], losses.terms["seg"], **CLOSE)
    assert losses.terms["kl"].item() < 1e-12


@pytest.mark.slow
def test_the_images_of_wildnet_come_from_a_folder(tmp_path):
    (tmp_path / "wild/more").mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    for number, name in enumerate(("a.png", "more/b.png")):
        pixels = torch.randint(0, 256, (40, 90 + number, 3), generator=rng, dtype=torch.uint8)
        write_png(tmp_path / "wild" / name, pixels.numpy())
    folder = str(tmp_path / "wild")
    first, second, other = (one_step("wildnet", i, images=folder)[0] for i in (0, 0, 1))
    assert first.total.item() == second.total.item() != other.total.item()
    with pytest.raises(PinMemError, match="nowhere"):
        one_step("wildnet", images=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PinMemError, match="empty"):
        one_step("wildnet", images=str(tmp_path / "empty"))


def test_a_card_does_not_name_the_folder(tmp_path):
    config = small_config(method="wildnet", method_config__images="/somewhere/wild")
    assert shareable(config)["method_config"]["images"] == "wild"
