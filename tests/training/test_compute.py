"""How a step is computed changes its speed and memory, and what comes of it by rounding alone."""

import shutil
from functools import partial

import pytest
import torch
from conftest import small_config
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from pinmem_core.data.batches import Batch
from pinmem_core.errors import ConfigError, MachineError, PinMemError
from pinmem_core.models import Segmenter
from pinmem_core.models.backbones import backbones
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.training import resume, train
from pinmem_core.training.step import FiniteLossCheck, TrainStep

CPU = torch.device("cpu")


def batch(images: int = 2, seed: int = 0) -> Batch:
    dice = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (2, images, 8, 8), generator=dice)
    return Batch(
        torch.randn(2, images, 3, 64, 64, generator=dice),
        labels.repeat_interleave(8, 2).repeat_interleave(8, 3),
        (0,),
        (1,),
    )


def iteration(method: str = "pinmem", backbone: str = "tiny", **values) -> TrainStep:
    """Return one with the weights of seed 0, `values` naming its compute settings."""
    config = small_config(
        method=method,
        model__backbone=backbone,
        **({} if method == "mldg" else {"model__memory__read": "softmax"}),
        **{f"compute__{name}": value for name, value in values.items()},
    )
    torch.manual_seed(0)
    return TrainStep(config, Segmenter(config.model), CPU)


def outcome(*arguments, steps: int = 2, **values) -> dict[str, torch.Tensor]:
    """Return state, and losses by name, after some steps."""
    step = iteration(*arguments, **values)
    for number in range(steps):
        result = step.step(number, batch(seed=number))
    terms = {f"{p}/{n}": t.detach() for p, of in result.losses.items() for n, t in of.terms.items()}
    return {**step.segmenter.state_dict(), **terms}


@pytest.mark.parametrize("recompute", [True, "finest"])
@pytest.mark.parametrize(
    "backbone",
    ["tiny", *(pytest.param(b, marks=pytest.mark.slow) for b in ("resnet10", "mobilenet_v2"))],
)
def test_recomputing_activations_changes_no_bit(backbone, recompute):
    plain, recomputed = (
        outcome("pinmem", backbone),
        outcome("pinmem", backbone, recompute=recompute),
    )
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.equal(value, recomputed[name]), name


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor, *, slope: float = 0.0) -> torch.Tensor:
        return nn.functional.leaky_relu(self.norm(self.conv(x)), slope)


class _Staged(Backbone):
    """A backbone with blocks in ModuleLists, blocks in Sequentials, or no stages at all."""

    name = "staged"
    channels, strides = [8, 12, 16], [4, 8, 16]

    def __init__(self, output_stride: int, *, holder: str) -> None:
        super().__init__()
        blocks = [_Block(*shape) for shape in ((3, 8, 4), (8, 12, 2), (12, 16, 2))]
        if holder == "sequential":
            self.layers = nn.ModuleList(nn.Sequential(block) for block in blocks)
        else:
            self.layers = nn.ModuleList(nn.ModuleList([block]) for block in blocks)
        self.holder = holder

    def stages(self) -> list[nn.Module]:
        return [] if self.holder == "none" else list(self.layers)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for layer in self.layers:
            x = layer(x) if self.holder == "sequential" else layer[0](x, slope=0.1)
            features.append(x)
        return features


@pytest.mark.parametrize("holder", ["list", "sequential"])
def test_blocks_in_any_container_are_recomputed_bit_equally(holder, monkeypatch):
    monkeypatch.setattr(backbones, "get", lambda name: partial(_Staged, holder=holder))
    kept, results = {}, {}
    for recompute in (False, "finest", True):
        kept[recompute] = _kept_bytes("staged", recompute)
        results[recompute] = outcome("pinmem", "staged", recompute=recompute)
    assert kept[False] > kept["finest"] >= kept[True]
    for name, value in results[False].items():
        assert torch.equal(value, results["finest"][name]), name
        assert torch.equal(value, results[True][name]), name


@pytest.mark.parametrize("recompute", [True, "finest"])
def test_a_backbone_that_cannot_recompute_is_refused(recompute, monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "get", lambda name: partial(_Staged, holder="none"))
    config = small_config(model__backbone="plain", compute__recompute=recompute)
    with pytest.raises(ConfigError, match=r"compute\.recompute cannot be .* backbone 'plain'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recomputing_keeps_less():
    """What autograd keeps of a forward through the backbone, counted by its own hooks."""
    kept = {recompute: _kept_bytes("resnet18", recompute) for recompute in (False, "finest", True)}
    assert kept[True] < 0.4 * kept[False]
    assert kept["finest"] < 0.75 * kept[False]


def _kept_bytes(backbone: str, recompute: bool | str) -> int:
    step = iteration(backbone=backbone, recompute=recompute)
    sizes: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features = step.segmenter.train().backbone(batch().all()[0])
    del features  # kept until here, so that no address is counted twice
    return sum(sizes.values()) - _weights(step.segmenter.backbone)


def _weights(module: torch.nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in module.parameters())


def test_channels_last_is_the_same_but_for_rounding():
    plain, last = outcome(steps=1), outcome(steps=1, channels_last=True)
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-4)
    step = iteration(channels_last=True)
    assert step.segmenter.backbone.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_a_compiled_network_is_the_same_but_for_rounding():
    plain, compiled = outcome(steps=1), outcome(steps=1, compile=True)
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


def test_what_torch_cannot_compile_is_said(tmp_path, monkeypatch):
    def fail(*inputs):
        raise TorchDynamoException("no compiler.\n\nand many more lines")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    with pytest.raises(MachineError, match=r"could not compile the network: no compiler\.$"):
        train(small_config(compute__compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["aggregate", "mldg", "pinmem"])
def test_half_precision_comes_close_and_spares_memory_and_losses(precision, method):
    full, half = outcome(method, steps=1), outcome(method, steps=1, precision=precision)
    for name, value in full.items():
        assert half[name].dtype == value.dtype, name
        if "/" in name:
            torch.testing.assert_close(half[name], value, rtol=0.03, atol=0.03)
        if name == "memory.slots":
            assert (half[name] * value).sum(dim=1).min() > 0.99
    assert not torch.equal(half["decoder.classifier.weight"], full["decoder.classifier.weight"])


def test_the_memory_and_what_it_gives_are_float32_in_half_precision():
    step = iteration(precision="bf16")
    seen = {}
    memory = step.segmenter.memory
    assert memory is not None
    for name in ("fuse", "write_map", "classifier"):
        getattr(memory, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.dtype})
        )
    step.segmenter.backbone.stem[0].register_forward_hook(
        lambda module, inputs, output: seen.update(backbone=output.dtype)
    )
    result = step.step(0, batch())
    assert seen == {
        **dict.fromkeys(("fuse", "write_map", "classifier"), torch.float32),
        "backbone": torch.bfloat16,
    }
    assert all(losses.total.dtype == torch.float32 for losses in result.losses.values())


def test_gradients_that_overflow_in_fp16_cost_a_step_and_lower_the_scale():
    step = iteration(precision="fp16")
    before = {n: t.clone() for n, t in step.segmenter.named_parameters()}
    step.scaler.scale(torch.ones(()))  # makes its tensors
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 2.0**40})
    step.step(0, batch())
    assert step.scaler.get_scale() == 2.0**39
    for name, parameter in step.segmenter.named_parameters():
        assert torch.equal(parameter, before[name])
    buffers = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    assert all((buffer == 0).all() for buffer in buffers)
    step.check()
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 0.5})
    with pytest.raises(PinMemError, match="overflow in fp16"):
        step.check()


@pytest.mark.slow
def test_a_run_in_fp16_is_resumed_exactly(tmp_path):
    config = small_config(iterations=4, checkpoint__every=2, compute__precision="fp16")
    straight = train(config, tmp_path / "straight").run
    run = train(config, tmp_path / "run").run
    shutil.rmtree(run / "snapshots" / "00000004")
    (run / "scores.json").unlink()
    resume(run)
    for name in ("metrics.jsonl", "snapshots/00000004/model.safetensors"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize("method", ["aggregate", "pinmem"])
def test_accumulating_averages_the_gradients_of_the_parts(method):
    whole = batch(images=4)
    parts = whole.parts(2)
    gradients = []
    for part in parts:
        alone = iteration(method)
        alone.segmenter.auxiliary[3].p = 0.0
        alone.step(0, part)
        gradients.append({n: p.grad for n, p in alone.segmenter.named_parameters()})
    accumulated = iteration(method, accumulate=2)
    accumulated.segmenter.auxiliary[3].p = 0.0
    result = accumulated.step(0, whole)
    for name, parameter in accumulated.segmenter.named_parameters():
        zero = torch.zeros_like(parameter)
        expected = sum(zero if g[name] is None else g[name] for g in gradients) / 2
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)
    assert all(losses.total.isfinite() for losses in result.losses.values())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", ["aggregate", "mldg", "pinmem"])
def test_frozen_parameters_stay_where_they_are(method, accumulate):
    step = iteration(method, accumulate=accumulate)
    frozen = dict(step.segmenter.backbone.named_parameters())
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in frozen.items()}
    for number in range(2):
        step.step(number, batch(images=4, seed=number))
    for name, parameter in frozen.items():
        assert torch.equal(parameter, before[name]), name


def test_the_verdict_on_losses_is_read_when_asked_for(monkeypatch):
    step = iteration()
    step.loss_check = FiniteLossCheck(CPU, deferred=True)
    bad = batch(seed=1)
    bad.images[0, 0, 0, 0, 0] = float("inf")
    step.step(0, batch())
    after_first = {n: p.detach().clone() for n, p in step.segmenter.named_parameters()}
    step.check()
    step.step(1, bad)
    step.step(2, batch())
    for name, parameter in step.segmenter.named_parameters():
        assert torch.equal(parameter, after_first[name]), name
    with pytest.raises(PinMemError, match=r"not finite in iteration 2 \(inner: seg"):
        step.check()
