"""The memory module alone."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pinmem_core.methods.losses import classification_loss, divergence_loss, read_loss
from pinmem_core.models import memory as memory_module
from pinmem_core.models.memory import CategoricalMemory, class_prototypes, gumbel_noise

from .figures import under
from .fixtures import DEVICE, Fixture, every_file
from .names import M_ITEMS, official_tensors, rule_state
from .networks import soft_counts
from .weight_rule import probe

pytestmark = pytest.mark.reference


def rule_memory(fixture: Fixture, *, read: str = "softmax") -> CategoricalMemory:
    classes, dim = fixture.input("m_items").shape
    momentum = fixture.settings.get("momentum", 0.8)
    memory = CategoricalMemory(classes, dim, read=read, momentum=momentum).to(fixture.dtype)
    memory.load_state_dict(rule_state(memory, fixture.seed, "memory."))
    tensors = official_tensors(memory, "memory.")
    fixture.compare({"m_items": tensors[M_ITEMS]})
    fixture.compare({f"weight/{name}": tensor for name, tensor in tensors.items()})
    return memory.to(DEVICE)


def inputs(fixture: Fixture) -> tuple[Tensor, Tensor]:
    return fixture.input("query").requires_grad_(), fixture.input("mask").long()


def probed(name: str, tensor: Tensor) -> Tensor:
    return (
        tensor * torch.from_numpy(probe(name, tensor.numel())).view_as(tensor).to(tensor.device)
    ).sum()


def gradients(
    loss: Tensor, memory: CategoricalMemory, leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of every parameter and leaf that the loss reaches."""
    names = official_tensors(memory, "memory.")
    parameters = dict(zip(names, memory.state_dict(keep_vars=True).values(), strict=True))
    wanted = {k: t for k, t in {**parameters, **leaves}.items() if t.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
    return {key: g for key, g in zip(wanted, found, strict=True) if g is not None}


@every_file("read")
def test_read(fixture: Fixture) -> None:
    for mode in ("train", "eval"):
        for writing in (0, 1):
            read_once(fixture, mode, writing)


def read_once(fixture: Fixture, mode: str, writing: int) -> None:
    memory = rule_memory(fixture).train(mode == "train")
    query, labels = inputs(fixture)
    slots = memory.slots.clone().requires_grad_(not writing)
    refined, scores = memory.read(query, slots)
    loss = read_loss(scores, labels, fixture.settings["temperature"])
    fixture.compare(
        under(
            mode,
            {
                "updated_query": refined,
                "nomask_updated_query": refined,
                "softmax_score_memory": scores.softmax(dim=1).permute(0, 2, 3, 1),
                "readloss": loss,
                "readloss_temp0.5": read_loss(scores, labels, 0.5),
                **under("after", official_tensors(memory, "memory.")),
            },
        )
    )
    leaves = {"query": query, "m_items": slots}
    found = gradients(probed("updated_query", refined) / 1000 + loss, memory, leaves)
    fixture.compare(under(f"{mode}_writing{writing}/grad", found))
    fixture.compare_fact(f"{mode}_writing{writing}_m_items_grad_is_none", "m_items" not in found)


@every_file("gumbel")
def test_read_with_noise(fixture: Fixture) -> None:
    memory = rule_memory(fixture, read="gumbel").train()
    memory.fuse.eval()
    query, labels = inputs(fixture)
    images, _, height, width = query.shape
    noise = fixture.input("gumbel_memory")
    with patch.object(memory_module, "gumbel_noise") as draw:
        draw.return_value = noise.view(images, height, width, -1).permute(0, 3, 1, 2)
        refined, scores = memory.read(query, memory.slots)
    noisy = scores + draw.return_value
    fixture.compare(
        {
            "updated_query": refined,
            "softmax_score_memory": noisy.softmax(dim=1).permute(0, 2, 3, 1),
            "readloss": read_loss(scores, labels, 1),
        }
    )
    torch.manual_seed(1234)
    fixture.compare({"gumbel_query": gumbel_noise(noise)})
    drawn_again = torch.equal(gumbel_noise(noise), noise)
    fixture.compare_fact("noise_reproduced_from_torch_manual_seed_1234", drawn_again)


@every_file("write")
def test_write(fixture: Fixture) -> None:
    for mode in ("train", "eval"):
        for detach in (0, 1):
            write_once(fixture, mode, detach)
    memory = rule_memory(fixture).train()
    query, labels = inputs(fixture)
    refined, scores = memory.read(query, memory.slots)
    written = memory.write(query, labels, memory.slots)
    losses = {"readloss": read_loss(scores, labels, 1), **memory_losses(memory, written)}
    fixture.compare(under("forward", {"updated_query": refined, "m_items_out": written, **losses}))


def write_once(fixture: Fixture, mode: str, detach: int) -> None:
    memory = rule_memory(fixture).train(mode == "train")
    query, labels = inputs(fixture)
    slots = memory.slots.clone().requires_grad_()
    written = memory.write(query, labels, slots)
    losses = memory_losses(memory, written)
    leaves = {"query": query, "m_items_in": slots}
    found = gradients(losses["div"] + losses["cls"], memory, leaves)
    probed_gradient = gradients(probed("m_items_out", written), memory, leaves)
    fixture.compare({"soft_counts": soft_counts(labels, query.shape[-2:], query.dtype)})
    fixture.compare(
        under(
            f"{mode}_detach{detach}",
            {
                "m_items_out": written,
                **losses,
                **under("grad", found),
                **under("grad_memory_probe", probed_gradient),
                **under("after", official_tensors(memory, "memory.")),
            },
        )
    )
    kept = written.detach() if detach else written
    fixture.compare_fact(f"{mode}_detach{detach}_m_items_out_requires_grad", kept.requires_grad)


def memory_losses(memory: CategoricalMemory, written: Tensor) -> dict[str, Tensor]:
    return {
        "div": divergence_loss(written),
        "cls": classification_loss(memory.classifier(written)),
    }


@every_file("init")
def test_initialisation(fixture: Fixture) -> None:
    count = sum(key.startswith("mask") for key in fixture.tensors)
    classes = len(fixture.tensors["m_items"])
    batches = [
        (fixture.input(f"feature{i}"), fixture.input(f"mask{i}").long()) for i in range(count)
    ]
    for i, (features, labels) in enumerate(batches):
        counts = soft_counts(labels, features.shape[-2:], features.dtype)
        fixture.compare({f"soft_counts{i}": counts})
    passes = fixture.settings["epochs"] * batches
    fixture.compare({"m_items": class_prototypes(passes, classes)})
