"""What every training method promises. A subclass names a method; pytest runs the rest.

class TestMine(MethodTester):
    method = "mine"
    settings = {"method_config": {"weight": 0.5}}
"""

from typing import ClassVar

import pytest
import torch
from conftest import small_config
from safetensors.torch import load_file

from pinmem_core.data.batches import Batch
from pinmem_core.events import ignore
from pinmem_core.export.graph import Graph, trace
from pinmem_core.inference.onnx_runner import Signature
from pinmem_core.models import load_checkpoint
from pinmem_core.training import train
from pinmem_core.training.dry_run import iteration_cost
from pinmem_core.training.optim import optimizer_state
from pinmem_core.training.setup import initial_segmenter, resolve
from pinmem_core.training.snapshots import SnapshotMeta, newest_snapshot, save_snapshot
from pinmem_core.training.step import TrainStep

CPU = torch.device("cpu")


class MethodTester:
    """Tests of the method `method` with `settings`, dotted keys of the configuration as `a__b`."""

    method: ClassVar[str]
    settings: ClassVar[dict] = {}

    def config(self, **values):
        return resolve(small_config(method=self.method, **{**self.settings, **values}))

    def train_step(self, **values) -> TrainStep:
        config = self.config(**values)
        return TrainStep(config, initial_segmenter(config), CPU)

    def batch(self, step: TrainStep, domains: int = 2, images: int = 4) -> Batch:
        generator = torch.Generator().manual_seed(7)
        shape = (domains, images, 3, 64, 64)
        first, *more = (torch.randn(shape, generator=generator) for _ in range(step.method.views))
        labels = torch.randint(0, 19, (domains, images, 8, 8), generator=generator)
        labels = labels.repeat_interleave(8, 2).repeat_interleave(8, 3)
        every = tuple(range(domains))
        return Batch(first, labels, every[:1], every[1:], more_views=tuple(more))

    def weights(self, **values) -> dict[str, torch.Tensor]:
        """Return the state after two steps."""
        step = self.train_step(**values)
        for iteration in range(2):
            step.step(iteration, self.batch(step))
        return {f"{kind}/{k}": v for kind, state in step.states().items() for k, v in state.items()}

    def test_a_step_changes_weights_and_is_bit_equal_when_repeated(self):
        first, second = self.weights(), self.weights()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        start = self.train_step().states()["model"]
        assert any(not torch.equal(v, first[f"model/{k}"]) for k, v in start.items())

    def test_parameters_stay_in_the_step_until_the_optimizer_moves_them(self):
        step = self.train_step(optim__lr=1e-30, optim__weight_decay=0.0)
        before = {n: p.detach().clone() for n, p in step.segmenter.named_parameters()}
        step.step(0, self.batch(step))
        for name, parameter in step.segmenter.named_parameters():
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-12)

    @pytest.mark.slow
    @pytest.mark.parametrize("compute", [{"precision": "bf16"}, {"accumulate": 2}])
    def test_half_precision_and_accumulation_give_similar_losses(self, compute):
        """Only similar: with accumulation, batch norm sees parts of the batch."""
        losses = []
        for settings in ({}, {f"compute__{name}": value for name, value in compute.items()}):
            step = self.train_step(batch=4, **settings)
            result = step.step(0, self.batch(step, images=4))
            losses.append(torch.stack([phase.total for phase in result.losses.values()]))
        torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0)

    @pytest.mark.slow
    def test_the_cost_of_an_iteration_is_counted_without_values(self):
        step = self.train_step()
        cost = iteration_cost(step, self.batch(step))
        assert cost.flops > 0 and cost.memory_bytes > 0

    def test_a_restored_step_goes_on_bit_equally(self, tmp_path):
        straight, resumed = self.train_step(), self.train_step(seed=1)
        batch = self.batch(straight)
        for iteration in range(2):
            straight.step(iteration, batch)
        numbers = optimizer_state(straight.optimizer, straight.segmenter)[1]
        meta = SnapshotMeta(iteration=2, logged=0, scaler={}, processes=1, optimizer=numbers)
        save_snapshot(tmp_path, meta, straight.states(), keep=1)
        resumed.restore(newest_snapshot(tmp_path, ignore))
        resumed.config = resumed.method.config = straight.config
        for step in (straight, resumed):
            step.step(2, batch)
        for kind, state in straight.states().items():
            for name, value in state.items():
                assert torch.equal(resumed.states()[kind][name], value), name

    @pytest.mark.slow
    @pytest.mark.parametrize("sources", [["toy:red"], ["toy:red", "toy:blue"]])
    def test_a_run_ends_in_a_checkpoint_that_can_be_exported(self, tmp_path, sources):
        config = self.config(sources=sources, iterations=2, evaluation__max_images=1)
        run = train(config, tmp_path / "run").run
        if len(sources) == 1:
            self.check_checkpoint(run / "checkpoint")

    def check_checkpoint(self, folder) -> None:
        segmenter, config = load_checkpoint(folder)
        assert config["training"]["method"] == self.method
        settings = self.settings.get("method_config", {})
        assert config["training"]["method_config"].items() >= settings.items()
        assert load_file(folder / "model.safetensors").keys() == segmenter.state_dict().keys()
        images = torch.rand(1, 3, 64, 64)
        program = trace(Graph(segmenter, Signature(size=(64, 64)), half=False)).module()
        torch.testing.assert_close(program(images), segmenter(images), rtol=1e-3, atol=1e-3)
