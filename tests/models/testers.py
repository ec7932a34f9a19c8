"""Tests that every backbone and every decoder passes: a new one is a subclass of a few lines."""

from typing import Any, ClassVar

import pytest
import torch
from conftest import small_config
from torch import Tensor, nn

from pinmem_core.config import ModelConfig
from pinmem_core.data.batches import Batch
from pinmem_core.errors import StoppedRunError
from pinmem_core.events import Event, Metrics
from pinmem_core.export.files import export_model
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.training import resume, train
from pinmem_core.training.step import TrainStep

OTHER_SIZES = ((64, 64), (33, 128))
"""Sizes that a network is exported for in addition, in the exhaustive tests."""


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


class ModelTester:
    """Tests of a whole network.

    Attributes:
        model: Settings of the section `model` of the configuration.
    """

    model: ClassVar[dict[str, Any]]

    def config(self, **values: object) -> ModelConfig:
        return ModelConfig.model_validate({"feature_dim": 16, **self.model, **values})

    def segmenter(self, **values: object) -> Segmenter:
        torch.manual_seed(0)
        return Segmenter(self.config(**values)).eval()

    def run_config(self, **values: object):
        model = {f"model__{name}": value for name, value in self.model.items()}
        tune = next(iter(self.model.get("adapters", ["full"])))
        return small_config(augmentation__crop=32, tune=tune, **model, **values)

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 40), (100, 7)])
    def test_logits_have_the_size_of_the_image(self, size):
        logits = self.segmenter(num_classes=5)(images(*size))
        assert logits.shape == (2, 5, *size) and logits.isfinite().all()

    @pytest.mark.slow
    @torch.no_grad()
    def test_a_checkpoint_brings_back_the_same_network(self, tmp_path):
        segmenter = self.segmenter()
        save_checkpoint(segmenter, tmp_path / "c", {})
        loaded, _ = load_checkpoint(tmp_path / "c")
        assert torch.equal(loaded(images(40, 56)), segmenter(images(40, 56)))

    @pytest.mark.slow
    def test_a_stopped_run_resumes_exactly(self, tmp_path):
        config = self.run_config(
            iterations=2, evaluation__max_images=1, model__memory__init_batches=0
        )
        train(config, tmp_path / "straight")
        heard: list[Event] = []

        def has_trained() -> bool:
            return any(isinstance(event, Metrics) for event in heard)

        with pytest.raises(StoppedRunError):
            train(config, tmp_path / "run", on_event=heard.append, stop=has_trained)
        resume(tmp_path / "run")
        straight, resumed = (
            load_checkpoint(tmp_path / name / "checkpoint")[0].state_dict()
            for name in ("straight", "run")
        )
        assert all(torch.equal(value, resumed[name]) for name, value in straight.items())

    @pytest.mark.slow
    def test_half_precision_gives_full_logits_and_finite_gradients(self):
        segmenter = self.segmenter().train()
        segmenter.autocast = torch.bfloat16
        logits = segmenter(images(32, 48))
        logits.square().mean().backward()
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        gradients = [p.grad for p in segmenter.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "size",
        [(50, 70), *(pytest.param(size, marks=pytest.mark.exhaustive) for size in OTHER_SIZES)],
    )
    def test_it_is_exported(self, tmp_path, size):
        file = export_model(self.segmenter(), tmp_path / "file.onnx", "onnx", size=size)
        assert all(case.sure_equal >= 0.9999 for case in file.compared) and file.compared


class BackboneTester(ModelTester):
    """Tests of a backbone."""

    @torch.no_grad()
    def test_features_have_the_channels_and_strides_it_declares(self):
        backbone = self.segmenter().backbone
        side = 2 * max(backbone.strides[-1], backbone.size_multiple)
        features = backbone(images(side, 2 * side))
        assert [feature.shape[1] for feature in features] == backbone.channels
        assert backbone.strides == sorted(backbone.strides)
        for feature, stride in zip(features, backbone.strides, strict=True):
            assert feature.shape[2:] == (side // stride, 2 * side // stride)
        assert backbone.strides[-1] == self.config().output_stride

    @torch.no_grad()
    def test_each_block_of_the_stages_is_called_once(self):
        backbone = self.segmenter().backbone
        assert len(backbone.stages()) == len(backbone.channels)
        calls: list[nn.Module] = []
        for block in backbone.blocks():
            block.register_forward_hook(lambda module, inputs, output: calls.append(module))
        backbone(images(64, 64))
        assert len(calls) == len(backbone.blocks()) and set(calls) == set(backbone.blocks())

    @pytest.mark.slow
    def test_recomputing_activations_changes_no_bit(self):
        plain = self.trained(recompute=False)
        for recompute in ("finest", True):
            for name, value in self.trained(recompute=recompute).items():
                assert torch.equal(value, plain[name]), (recompute, name)

    def trained(self, *, recompute: bool | str) -> dict[str, Tensor]:
        """Return the state after a step."""
        config = self.run_config(compute__recompute=recompute, model__memory__read="softmax")
        torch.manual_seed(0)
        step = TrainStep(config, Segmenter(config.model), torch.device("cpu"))
        labels = torch.randint(0, 19, (2, 2, 32, 32), generator=torch.Generator().manual_seed(0))
        step.step(0, Batch(torch.stack([images(32, 32)] * 2), labels, (0,), (1,)))
        return step.segmenter.state_dict()


class DecoderTester(ModelTester):
    """Tests of a decoder, on the tiny backbone."""

    def config(self, **values: object) -> ModelConfig:
        return super().config(**{"backbone": "tiny", **values})

    @pytest.mark.parametrize("memory", [True, pytest.param(False, marks=pytest.mark.slow)])
    def test_it_has_a_feature_for_the_memory_logits_and_a_loss(self, memory):
        segmenter = self.segmenter(memory={} if memory else None)
        output = segmenter.run(images(32, 48))
        assert output.encoding.feature.shape[1] == segmenter.decoder.dim
        assert output.logits.shape[:2] == (2, 19)
        labels = torch.zeros(2, 32, 48, dtype=torch.long)
        terms = segmenter.decoder.loss(output.decoded, labels, lambda logits, labels: logits.mean())
        assert terms and all(term.ndim == 0 for term in terms.values())
        sum(terms.values()).backward()
        assert any(p.grad is not None for p in segmenter.backbone.parameters())
