"""A backbone that is sharded over processes (FSDP2) is trained as by one process."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import small_config
from test_distributed import batches, in_ranks

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, StoppedRunError
from pinmem_core.events import Metrics
from pinmem_core.models import Segmenter, load_checkpoint
from pinmem_core.sharding import gathered, local_part
from pinmem_core.training import resume, train
from pinmem_core.training.setup import resolve
from pinmem_core.training.step import TrainStep

VIT = {
    "model__backbone": "timm:vit_tiny_patch16_224",
    "model__backbone_options": {"depth": 3, "embed_dim": 32, "num_heads": 2},
}
ADAMW = {"optim__name": "adamw", "optim__lr": 0.001, "optim__clip": 0.1}
GROUPS = {"optim__decay_vectors": False, "optim__layer_decay": 0.8, "optim__ema": 0.9}


def learn(config: TrainConfig, part: slice = slice(None)) -> dict:
    """Take three iterations on a part of each batch; return losses, tensors and bytes held."""
    torch.manual_seed(0)
    segmenter = Segmenter(config.model).double()
    if segmenter.auxiliary is not None:
        segmenter.auxiliary[3].p = 0.0  # its random numbers are those of a rank
    step = TrainStep(config, segmenter, torch.device("cpu"))
    losses = []
    parts = [
        Batch(b.images[:, part], b.labels[:, part], b.meta_train, b.meta_test) for b in batches()
    ]
    for number, batch in enumerate(parts):
        result = step.step(number, batch)
        losses += [phase.total.detach() for phase in result.losses.values()]
    parameters = dict(segmenter.backbone.named_parameters())
    held = [*parameters.values(), *(p.grad for p in parameters.values())]
    held += [t for p in parameters.values() for t in step.optimizer.state.get(p, {}).values()]
    return {
        "losses": torch.stack(losses),
        "states": {name: gathered(state) for name, state in step.states().items()},
        "scored": step.network(parts).state_dict(),
        "bytes": sum(local_part(tensor).nbytes for tensor in held if tensor is not None),
    }


def _half(rank: int, config: TrainConfig) -> dict:
    """Learn from images 0 and 2 in one process, and from 1 and 3 in the other."""
    return learn(config, slice(rank, None, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "aggregate", "model__backbone": "resnet10", "compute__recompute": "finest"},
        {"method": "mldg", **VIT, **ADAMW, **GROUPS},
        {"method": "pinmem", **VIT, "compute__recompute": True, "compute__accumulate": 2},
        {"method": "pinmem", "tune": "rein", **VIT, **ADAMW},
        {"method": "pinmem", "tune": "lora", "model__adapters": {"lora": {"rank": 2}}, **VIT},
    ],
    ids=["aggregate", "mldg", "pinmem", "rein", "lora"],
)
def test_two_sharded_processes_compute_what_one_does(tmp_path, settings):
    memory = {"read": "softmax"} if settings["method"] == "pinmem" else None
    config = resolve(small_config(**settings, model__memory=memory, compute__shard=True))
    rounding = 1e-7 if config.optim.name == "adamw" else 1e-9  # it divides by tiny moments
    alone = learn(config)
    first, second = in_ranks(_half, config, folder=tmp_path)
    mean = (first["losses"] + second["losses"]) / 2
    torch.testing.assert_close(mean, alone["losses"], rtol=1e-9, atol=1e-9)
    for name, state in alone["states"].items():
        for key, expected in state.items():
            ours, other = first["states"][name][key], second["states"][name][key]
            assert torch.equal(ours, other), f"the processes differ in {name} {key}"
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=rounding)
    for key, expected in alone["scored"].items():
        torch.testing.assert_close(first["scored"][key], expected, rtol=1e-5, atol=1e-7)
    assert first["bytes"] < 0.55 * alone["bytes"]


def run_config() -> TrainConfig:
    return small_config(
        method="mldg",
        iterations=4,
        checkpoint__every=2,
        evaluation__every=2,
        evaluation__max_images=2,
        compute__shard=True,
        loss__auxiliary=0,
        **VIT,
        **ADAMW,
        **GROUPS,
        optim__ema_batches=2,
    )


def _trained(rank: int, run: Path, until: int | None = None) -> None:
    heard: list[Metrics] = []
    try:
        train(
            run_config(),
            run,
            on_event=lambda event: heard.append(event) if isinstance(event, Metrics) else None,
            stop=lambda: until is not None and any(event.iteration == until for event in heard),
        )
    except StoppedRunError:
        assert until is not None


def _killed(rank: int, run: Path) -> None:
    def die_in_the_third_iteration(event: object) -> None:
        if isinstance(event, Metrics) and event.iteration == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    dist.init_process_group("gloo", f"file://{run.parent / 'killed'}", rank=rank, world_size=2)
    train(run_config(), run, on_event=die_in_the_third_iteration)


def _resumed(rank: int, run: Path) -> None:
    resume(run)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoint")[0].state_dict()


def in_new_ranks(work, *arguments, folder: Path) -> None:
    folder.mkdir()
    in_ranks(work, *arguments, folder=folder)


@pytest.mark.slow
def test_sharded_runs_resume_after_a_kill_and_in_other_numbers_of_processes(tmp_path):
    prepare_synthetic(["toy"])
    whole = tmp_path / "whole"
    in_new_ranks(_trained, whole, folder=tmp_path / "a")
    assert [path.suffix for path in (whole / "checkpoint").glob("*.safetensors")]
    expected = weights(whole)

    killed = tmp_path / "killed-run"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_killed, args=(rank, killed)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert -signal.SIGKILL in [process.exitcode for process in processes]
    fewer = shutil.copytree(killed, tmp_path / "fewer")
    in_new_ranks(_resumed, killed, folder=tmp_path / "b")
    resumed = weights(killed)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())

    resume(fewer)
    _trained(0, tmp_path / "more", 2)
    in_new_ranks(_resumed, tmp_path / "more", folder=tmp_path / "c")
    for name in ("fewer", "more"):
        resumed = weights(tmp_path / name)
        for key, value in expected.items():
            torch.testing.assert_close(resumed[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"compute__precision": "fp16"}, "compute.shard contradicts compute.precision=fp16"),
        ({"compute__channels_last": True}, "compute.shard contradicts compute.channels_last"),
        ({"compute__compile": True}, "compute.shard contradicts compute.compile"),
    ],
)
def test_what_sharding_cannot_compute_is_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        resolve(small_config(compute__shard=True, **setting))
