"""`distillation`: the promises of a method, its equation, and its teacher."""

import json
import shutil

import pytest
import torch
from conftest import Result, small_config
from method_tester import MethodTester

from pinmem_core.config import ModelConfig
from pinmem_core.data.batches import Batch
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, DataError, StoppedRunError
from pinmem_core.evaluation import TrainedOn
from pinmem_core.events import Progress
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.distillation import distillation_loss
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.models.decoders.base import resize
from pinmem_core.training import resume, train
from pinmem_core.training.run_folder import shareable
from pinmem_core.training.setup import initial_segmenter, resolve


class TestDistillation(MethodTester):
    method = "distillation"
    settings = {"method_config": {"teacher": "starter", "weight": 0.5}}  # noqa: RUF012


def teacher(folder, names=None, sources=("toy:red",), seed=123, **values):
    """Save a model with random weights as the teacher."""
    plain = small_config(**values).model.model_dump() | {"memory": None}
    if names:
        plain |= {"num_classes": len(names), "label_space": {"name": "mine", "classes": names}}
    torch.manual_seed(seed)
    segmenter = Segmenter(ModelConfig.model_validate(plain))
    save_checkpoint(segmenter, folder, {"training": {"sources": [*sources]}})
    return folder


def distilling(folder, **values):
    settings = {"teacher": str(folder), **values.pop("method_config", {})}
    return small_config(method="distillation", method_config=settings, **values)


def one_step(config):
    """Return the losses of a step in float64."""
    config = resolve(config)
    segmenter = initial_segmenter(config).double()
    method = methods.get(config.method)(config)
    method.setup(segmenter)
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2, 2, 3, 64, 64, generator=generator).double()
    labels = torch.randint(0, config.model.num_classes, (2, 2, 64, 64), generator=generator)
    batch = Batch(images, labels, (0,), (1,))
    return method.step(StepContext(segmenter, batch, 0.1, 0)).losses["train"]


def test_the_loss_follows_the_equation():
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    first.requires_grad_()
    total, count, temperature = torch.zeros((), dtype=torch.float64), 0, 2.0
    for n in range(2):
        for y in range(2):
            for x in range(2):
                powers = [
                    [torch.exp(logits[n, k, y, x] / temperature) for k in range(3)]
                    for logits in (first, second)
                ]
                p, q = ([power / sum(of) for power in of] for of in powers)
                total = total + sum(q[k] * torch.log(q[k] / p[k]) for k in range(3))
                count += 1
    expected = temperature**2 * total / count
    loss = distillation_loss(first, second, temperature)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(each, first)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert distillation_loss(first, first.detach(), 1.0).item() == pytest.approx(0, abs=1e-14)
    apart = torch.eye(3, dtype=torch.float64)[None, :, :, None] * 10
    assert distillation_loss(apart.roll(1, 1), apart, 1.0).item() == pytest.approx(10, rel=1e-3)


def test_a_step_adds_the_divergence_from_the_teacher_to_the_losses_of_aggregate(tmp_path):
    folder = teacher(tmp_path / "big", model__backbone="resnet10")
    config = distilling(folder, method_config={"weight": 3.0, "temperature": 2.0})
    losses, plain = one_step(config), one_step(small_config(method="aggregate"))
    assert losses.terms["seg"].item() == plain.terms["seg"].item()
    expected = plain.total + 3 * losses.terms["distill"]
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-12)
    assert losses.terms["distill"] > 0


def test_the_teacher_sees_images_as_it_was_trained_and_its_classes_are_matched_by_name(
    tmp_path, monkeypatch
):
    names = ["road", "sky", "tree"]
    folder = teacher(tmp_path / "big", [*reversed(names), "car"])
    space = {"name": "mine", "classes": names}
    config = distilling(folder, model__num_classes=3, model__label_space=space)
    segmenter = initial_segmenter(resolve(config)).eval()
    method = methods.get("distillation")(resolve(config))
    method.setup(segmenter)
    # A teacher on another scale of values.
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    monkeypatch.setattr(type(segmenter.backbone), "mean", mean, raising=False)
    monkeypatch.setattr(type(segmenter.backbone), "std", std, raising=False)
    method.teacher.backbone.mean, method.teacher.backbone.std = (0.0,) * 3, (1.0,) * 3
    seen = []
    method.teacher.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.rand(2, 3, 64, 64)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    loss = method.losses(context_of(segmenter, normalised))
    torch.testing.assert_close(seen[0], pixels, rtol=0, atol=1e-6)
    with torch.no_grad():
        all_of_them = method.teacher.run(pixels).logits
        own = segmenter.run(normalised).logits
    wanted = resize(all_of_them[:, [2, 1, 0]], own.shape[-2:])
    expected = distillation_loss(own, wanted, 1.0)
    torch.testing.assert_close(loss.terms["distill"], expected, rtol=1e-4, atol=1e-6)


def context_of(segmenter, images):
    labels = torch.zeros(2, 1, 64, 64, dtype=torch.long)
    return StepContext(segmenter, Batch(images[:, None], labels, (0,), (1,)), 0.1)


def test_what_a_teacher_must_have(tmp_path):
    with pytest.raises(ConfigError, match="needs a model to learn from") as e:
        resolve(small_config(method="distillation"))
    assert "--set method_config.teacher=MODEL" in (e.value.hint or "")
    with pytest.raises(DataError, match="nowhere"):
        resolve(distilling(tmp_path / "nowhere"))
    folder = teacher(tmp_path / "big", ["road", "sky"])
    config = resolve(distilling(folder))
    with pytest.raises(ConfigError, match=r"big cannot teach the classes sidewalk, building"):
        methods.get("distillation")(config).setup(initial_segmenter(config))


def test_the_network_has_seen_what_its_teacher_has_seen(tmp_path):
    prepare_synthetic(["toy:red", "toy:blue"])
    values = {"iterations": 1, "evaluation__max_images": 1, "allow_seen_targets": False}
    big = train(small_config(sources=["toy:blue"], **values), tmp_path / "big").run
    values |= {"sources": ["toy:red"], "targets": ["toy:blue@all"]}
    run = train(distilling(big, **values), tmp_path / "run").run
    assert json.loads((run / "scores.json").read_text())["target"]["toy:blue@all"]["seen"] is True
    _, config = load_checkpoint(run / "checkpoint")
    assert config["training"]["method_config"]["teacher"] == "big"
    assert len(TrainedOn.of_checkpoint(config).digests["toy"]) == 16
    assert shareable(resolve(distilling("starter")))["method_config"]["teacher"] == "starter"


def test_a_run_resumes_with_the_teacher_that_it_began_with(tmp_path, monkeypatch):
    prepare_synthetic(["toy:red", "toy:blue"])
    folder = teacher(tmp_path / "big")
    monkeypatch.chdir(tmp_path)
    config = distilling("big", iterations=4, evaluation__max_images=1)
    whole = train(config, tmp_path / "whole").run
    began = []

    def hear(event):
        if isinstance(event, Progress) and event.task == "training" and event.done == 2:
            began.append(event)

    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "part", on_event=hear, stop=lambda: bool(began))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.rename(tmp_path / "kept")
    teacher(folder, seed=5)
    with pytest.raises(DataError, match=r"big is not the one that the run began to learn from"):
        resume(tmp_path / "part")
    repeated = ["--recipe", str(tmp_path / "part"), "--dry-run"]
    assert Result("train", *repeated).code == 3
    assert Result("train", *repeated, "--set", "method_config.teacher_sha256=none").code == 0
    shutil.rmtree(folder)
    (tmp_path / "kept").rename(folder)
    run = resume(tmp_path / "part").run
    weights = [(each / "checkpoint/model.safetensors").read_bytes() for each in (whole, run)]
    assert weights[0] == weights[1]
