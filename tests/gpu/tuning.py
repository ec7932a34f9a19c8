"""How fast a foundation backbone is tuned, in how much memory, and sharded over two processes."""

import time
from argparse import Namespace
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from right import judge, small_run
from rows import Row
from step import held_memory, pinmem_step, process, random_batch, untrained_segmenter
from torch import Tensor

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.models import Segmenter
from pinmem_core.overrides import nested, validate
from pinmem_core.recipe import load_recipe
from pinmem_core.sharding import gathered
from pinmem_core.training.setup import resolve
from pinmem_core.training.step import TrainStep

IMAGES = 4
"""Images of an iteration, of two domains."""
VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}
"""Options of timm for a ViT of three small blocks."""
SHARDED_BOUND = 1e-9
ITERATIONS = 3


def tune_config(options: Namespace, tune: str) -> TrainConfig:
    """Return the recipe for DINOv2-L, with random weights and a decoder that needs no scipy."""
    values: dict[str, Any] = {
        "device": str(options.device),
        "init_weights": None,
        "model.decoder": "linear",
    }
    if options.tiny:
        values |= {
            "model.backbone_options": VIT,
            "augmentation.crop": options.crop,
            "compute.precision": "float32",
        }
        values |= {"model.adapters.lora.rank": 2} if tune == "lora" else {}
    return resolve(validate(nested(load_recipe(f"dinov2-{tune}"), values)))


def _tune(pipe: Connection, options: Namespace, tune: str) -> None:
    """Send the seconds of the rounds, the peak in MB, and the numbers of parameters."""
    if options.device.type == "cpu":
        torch.set_num_threads(options.threads)
    config = tune_config(options, tune)
    segmenter, batch = untrained_segmenter(config), random_batch(config)
    step = pinmem_step(config, segmenter, options.device)
    for number in range(2):  # the first steps choose algorithms
        step(number, batch)()
    seconds = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        for number in range(options.iterations):
            losses = step(number, batch)
        losses()  # waits for the device
        seconds.append((time.perf_counter() - began) / options.iterations)
    parameters = [*segmenter.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    pipe.send((seconds, held_memory(options.device.type)[1], trained, total))


def tuning(row: Row, options: Namespace, tune: str) -> None:
    """Time the iterations of one way of tuning, in a process of its own."""
    text = Namespace(**{k: v for k, v in vars(options).items() if k != "scratch"})
    with process(_tune, text, tune) as pipe:
        if not pipe.poll(180):
            raise TimeoutError("no answer within 180 s")
        seconds, peak, trained, total = pipe.recv()
    row.values |= {
        "images/s": IMAGES / median(seconds),
        "slowest round": IMAGES / max(seconds),
        "fastest round": IMAGES / min(seconds),
        "peak MB": peak,
        "trained parameters in millions": trained / 1e6,
        "parameters in millions": total / 1e6,
    }


def sharded(row: Row, options: Namespace) -> None:
    """Two processes with `compute.shard`, on a GPU each, against one with all their images."""
    if options.device.type == "cuda" and torch.cuda.device_count() < 2:
        row.status, row.note = "skipped", "this machine has one GPU"
        return
    folder = options.scratch / "sharded"
    folder.mkdir()
    config = small_run(
        options,
        device="cpu",
        batch=4,
        compute__shard=True,
        model__backbone="timm:vit_tiny_patch16_224",
        model__backbone_options=VIT,
    )
    arguments = (config, options.device.type, str(folder))
    multiprocessing.spawn(_half, arguments, nprocs=2)
    ours, theirs = torch.load(folder / "0.pt"), _learned(config, options.device, slice(None))
    judge(row, "all weights", float((ours - theirs).norm() / theirs.norm()), SHARDED_BOUND)


def _half(rank: int, config: TrainConfig, device_type: str, folder: str) -> None:
    torch.set_num_threads(1)
    device = torch.device(device_type, rank if device_type == "cuda" else None)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{folder}/meeting", rank=rank, world_size=2)
    state = _learned(config, device, slice(2 * rank, 2 * rank + 2))
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _learned(config: TrainConfig, device: torch.device, part: slice) -> Tensor:
    """Return all weights, in float64, after some iterations on a part of each batch."""
    torch.manual_seed(0)
    segmenter = Segmenter(config.model).double()
    if segmenter.auxiliary is not None:
        segmenter.auxiliary[3].p = 0.0  # each process draws its own dropout
    step = TrainStep(config, segmenter, device)
    for number in range(ITERATIONS):
        batch = random_batch(config).to(device)
        images, labels = batch.images[:, part].double(), batch.labels[:, part]
        step.step(number, Batch(images, labels, batch.meta_train, batch.meta_test))
    state = gathered(step.segmenter.state_dict())
    return torch.cat([value.double().cpu().flatten() for value in state.values()])


CHECKS = {
    "two sharded processes": (sharded, 30),
    "DINOv2-L full": (partial(tuning, tune="full"), 60),
    "DINOv2-L lora": (partial(tuning, tune="lora"), 60),
    "DINOv2-L rein": (partial(tuning, tune="rein"), 60),
}
"""Functions that fill a row, and the seconds that each may take."""
