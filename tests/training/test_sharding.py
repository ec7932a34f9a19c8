"""A backbone that is sharded over processes (FSDP2) is trained as by one process."""

import multiprocessing
import os
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
from pinmem_core.training.snapshots import newest_snapshot
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
        {
            **{"method": "pinmem", **VIT, "batch": 4},
            **{"compute__recompute": True, "compute__accumulate": 2},
        },
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


def run_config(optimizer: dict) -> TrainConfig:
    return small_config(
        method="mldg",
        iterations=4,
        checkpoint__every=2,
        evaluation__every=2,
        evaluation__max_images=2,
        compute__shard=True,
        loss__auxiliary=0,
        **VIT,
        **optimizer,
        **GROUPS,
        optim__ema_batches=2,
    )


def _trained(rank: int, run: Path, optimizer: dict, until: int | None = None) -> None:
    heard: list[Metrics] = []
    try:
        train(
            run_config(optimizer),
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
    train(run_config(ADAMW), run, on_event=die_in_the_third_iteration)


def _resumed(rank: int, run: Path) -> None:
    resume(run)


def _restored(rank: int, run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors that a new step holds after it has read the newest snapshot of a run."""
    config = resolve(run_config(ADAMW))
    step = TrainStep(config, Segmenter(config.model), torch.device("cpu"))
    step.restore(newest_snapshot(run, print))
    return {name: gathered(state) for name, state in step.states().items()}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoint")[0].state_dict()


def in_new_ranks(work, *arguments, folder: Path) -> list:
    folder.mkdir()
    return in_ranks(work, *arguments, folder=folder)


@pytest.mark.slow
def test_a_killed_sharded_run_resumes_bit_for_bit(tmp_path):
    prepare_synthetic(["toy"])
    whole, killed = tmp_path / "whole", tmp_path / "killed-run"
    in_new_ranks(_trained, whole, ADAMW, folder=tmp_path / "a")
    assert [path.suffix for path in (whole / "checkpoint").glob("*.safetensors")]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_killed, args=(rank, killed)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert -signal.SIGKILL in [process.exitcode for process in processes]
    in_new_ranks(_resumed, killed, folder=tmp_path / "b")
    resumed, expected = weights(killed), weights(whole)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_a_sharded_run_resumes_in_another_number_of_processes(tmp_path):
    """Compared with SGD, because Adam turns the rounding of tiny gradients into whole steps."""
    prepare_synthetic(["toy"])
    sgd = {"optim__name": "sgd", "optim__lr": 0.01, "optim__clip": 0.1}
    in_new_ranks(_trained, tmp_path / "whole", sgd, folder=tmp_path / "a")
    in_new_ranks(_trained, tmp_path / "fewer", sgd, 2, folder=tmp_path / "b")
    resume(tmp_path / "fewer")
    _trained(0, tmp_path / "more", sgd, 2)
    in_new_ranks(_resumed, tmp_path / "more", folder=tmp_path / "c")
    expected = weights(tmp_path / "whole")
    for name in ("fewer", "more"):
        resumed = weights(tmp_path / name)
        for key, value in expected.items():
            torch.testing.assert_close(resumed[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("saved_by", [1, 2])
def test_every_number_of_processes_restores_the_same_snapshot(tmp_path, saved_by):
    prepare_synthetic(["toy"])
    run = tmp_path / "run"
    if saved_by == 1:
        _trained(0, run, ADAMW, 2)
    else:
        in_new_ranks(_trained, run, ADAMW, 2, folder=tmp_path / "a")
    saved = newest_snapshot(run, print).states()
    assert set(saved) == {"model", "optimizer", "ema"}
    for restored in [_restored(0, run), *in_new_ranks(_restored, run, folder=tmp_path / "b")]:
        for name, state in saved.items():
            assert restored[name].keys() == state.keys()
            for key, value in state.items():
                assert torch.equal(restored[name][key], value), (name, key)


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
