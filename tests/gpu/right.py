"""Whether a device computes what a CPU computes, and a run survives on it."""

import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from conftest import camvid_folder
from rows import Row
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pinmem_core.config import ModelConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.distributed import all_reduce_sum
from pinmem_core.errors import PinMemError
from pinmem_core.inference import PROTOCOLS, Predictor, load
from pinmem_core.methods.losses import training_losses
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.models.norm import PortableSyncBatchNorm
from pinmem_core.overrides import nested, validate
from pinmem_core.synthetic import draw_scene
from pinmem_core.training.step import TrainStep

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FLOAT64_BOUND = 1e-9
GRAPH_BOUND = 1e-3
"""A graph reads its learning rates in float32; the rounding grows from step to step."""
RESUME_BOUND = 0.02
"""Relative difference of the weights that rounding may make in 60 iterations at a small rate."""
TIE = 1e-4
"""Lead of the best class, relative to the largest score, below which two devices may differ."""


# What is compared.


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def worst(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, float]:
    """Return the name that differs most, and by how much."""
    errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
    name = max(errors, key=errors.__getitem__)
    return name, errors[name]


def judge(row: Row, name: str, error: float, bound: float) -> None:
    """Note an error and fail where it is above its bound."""
    row.values |= {"largest error": error, "of": name, "bound": bound}
    assert error <= bound, f"{name} differs by {error:.2e}"


def small_run(options: Namespace, **settings: object) -> TrainConfig:
    """Return the configuration of some iterations; `a__b` sets a.b."""
    values = {
        "sources": ["demo:arcade", "demo:toytown"],
        "batch": 2,
        "iterations": 1000,
        "model.backbone": "resnet10" if options.tiny else "resnet18",
        "model.feature_dim": 32,
        "model.memory.read": "softmax",
        "augmentation.crop": 64 if options.tiny else 128,
    }
    return validate(nested({}, values | {k.replace("__", "."): v for k, v in settings.items()}))


def new_segmenter(config: ModelConfig, *, dropout: bool = False) -> Segmenter:
    """Return the same random network each time, its residual branches small."""
    torch.manual_seed(0)
    segmenter = Segmenter(config)
    for name, module in segmenter.named_modules():
        if isinstance(module, nn.Dropout2d) and not dropout:
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d) and name.endswith(("bn2", "bn3")):
            nn.init.constant_(module.weight, 0.3)
    return segmenter


def new_batch(config: TrainConfig, number: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Return random images of two domains with labels in blocks; some pixels are ignored."""
    dice = torch.Generator().manual_seed(number)
    crop, each = config.augmentation.crop, config.batch
    images = torch.randn(2, each, 3, crop, crop, generator=dice, dtype=dtype)
    labels = torch.randint(0, 20, (2, each, crop // 16, crop // 16), generator=dice)
    labels = labels.repeat_interleave(16, 2).repeat_interleave(16, 3)
    samples = tuple(tuple(f"domain{d}/image{number}-{i}" for i in range(each)) for d in range(2))
    split = (number % 2,), (1 - number % 2,)
    return Batch(images, labels.masked_fill(labels == 19, 255), *split, samples=samples)


# The checks.


def memory(row: Row, options: Namespace) -> None:
    """Reading, writing and their gradients."""
    size = (2, 32, 12, 10) if options.tiny else (4, 256, 48, 48)
    found = {}
    for device in (CPU, options.device):
        torch.manual_seed(0)
        module = CategoricalMemory(19, size[1], read="softmax", momentum=0.8).double()
        feature = torch.rand(size, dtype=torch.float64)
        labels = torch.randint(0, 19, (size[0], 16 * size[2], 16 * size[3]))
        module, feature, labels = module.to(device), feature.to(device), labels.to(device)
        feature.requires_grad_()
        refined, scores = module.read(feature, module.slots)
        written = module.write(feature, labels, module.slots)
        loss = refined.square().mean() + scores.square().mean() + written[:, 0].sum()
        loss.backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        outputs = {"refined": refined, "scores": scores, "written": written, "input": feature.grad}
        found[device.type] = {**outputs, **gradients}
    judge(row, *worst(found[options.device.type], found["cpu"]), FLOAT64_BOUND)


def network(row: Row, options: Namespace) -> None:
    """A forward and backward pass of the paper's network."""
    run = small_run(options)
    config = run.model
    if not options.tiny:
        values = {
            "backbone": "resnet50",
            "memory": {"read": "softmax"},
        }  # Gumbel noise is a device's
        config = ModelConfig.model_validate(values)
    found = {}
    for device in (CPU, options.device):
        segmenter = new_segmenter(config).double().to(device).train()
        batch = new_batch(run, 0, torch.float64).to(device)
        losses = training_losses(segmenter, *batch.all(), run.loss, write=True)
        losses.total.backward()
        gradients = {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}
        gradients.pop("auxiliary.0.bias")  # before a batch norm: 0 but for rounding
        found[device.type] = {"loss": losses.total, **gradients}
    judge(row, *worst(found[options.device.type], found["cpu"]), FLOAT64_BOUND)


def iterations(row: Row, options: Namespace) -> None:
    """Three iterations of each method: step, optimizer and refresh."""
    errors = {}
    for method in ("pinmem", "mldg", "aggregate"):
        config = small_run(options, method=method)
        model = config.model
        if method != "pinmem":
            model = model.model_copy(update={"memory": None})
        found = {}
        for device in (CPU, options.device):
            step = TrainStep(config, new_segmenter(model).double(), device)
            losses = {}
            for number in range(3):
                result = step.step(number, new_batch(config, number, torch.float64).to(device))
                losses |= {f"{p}{number}": of.total for p, of in result.losses.items()}
            step.check()
            state = {k: v for k, v in step.segmenter.state_dict().items() if v.is_floating_point()}
            state.pop("auxiliary.0.bias")
            found[device.type] = {**losses, **state}
        name, error = worst(found[options.device.type], found["cpu"])
        errors[f"{method}: {name}"] = error
    name = max(errors, key=errors.__getitem__)
    judge(row, name, errors[name], FLOAT64_BOUND)


def reference(row: Row, options: Namespace) -> None:
    """The figures of a run of the original, where they are present."""
    if not (options.reference / "manifest.json").is_file():
        row.status, row.note = "skipped", "no reference figures on this machine"
        return
    present = sorted(path.stem for path in options.reference.glob("*_f64.safetensors"))
    command = [sys.executable, "-m", "pytest", "-m", "reference", "-q", "-p", "no:cacheprovider"]
    command += ["-k", " or ".join(present), str(ROOT / "tests/reference")]
    environment = {
        **os.environ,
        "PINMEM_REFERENCE": str(options.reference),
        "PINMEM_REFERENCE_DEVICE": options.device.type,
    }
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    closing = run.stdout.strip().splitlines()[-1]
    row.values["files"] = len(present)
    row.values["pytest"] = closing
    assert run.returncode == 0, f"{closing}\n{run.stdout[-1500:]}"


def no_synchronisation(row: Row, options: Namespace) -> None:
    """The host queues whole iterations without waiting for the device."""
    config = small_run(options, compute__precision="bf16", compute__channels_last=True)
    step = TrainStep(config, new_segmenter(config.model, dropout=True), options.device)
    batches = [new_batch(config, number).to(options.device) for number in range(6)]
    for number in range(3):
        step.step(number, batches[number])
    cuda = options.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")  # a synchronising call raises an error
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for number in range(3, 6):
                step.step(number, batches[number])
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
    waits = ("aten::item", "aten::_local_scalar_dense", "cudaStreamSynchronize")
    counts = {e.key: e.count for e in profiler.key_averages() if e.key in waits}
    row.values |= {"iterations": 3, "waits": sum(counts.values())}
    row.values["operations of a step"] = sum(e.count for e in profiler.key_averages()) // 3
    if cuda:
        assert not counts, f"the host waits: {counts}"


def non_finite(row: Row, options: Namespace) -> None:
    """A loss that is not finite is found at the next check, with its samples named."""
    config = small_run(options)
    step = TrainStep(config, new_segmenter(config.model), options.device)
    message = ""
    try:
        for number in range(5):
            batch = new_batch(config, number).to(options.device)
            if number == 2:
                batch.images[batch.meta_train[0], 0, :, 3, 3] = torch.nan
            step.step(number, batch)
        step.check()
    except PinMemError as error:
        message = str(error)
    row.values["message"] = message
    assert "iteration 3" in message and "image2-0" in message, message or "no error was raised"
    assert all(p.isfinite().all() for p in step.segmenter.parameters()), "the weights are spoilt"


def graph(row: Row, options: Namespace) -> None:
    """Iterations replayed from CUDA graphs against plain ones, with dropout and Gumbel noise."""
    found = {}
    for recorded in (False, True):
        config = small_run(
            options,
            model__memory__read="gumbel",
            compute__graph=recorded,
            compute__deterministic=True,
        )
        segmenter = new_segmenter(config.model, dropout=True)
        start = {k: v.clone() for k, v in segmenter.state_dict().items()}
        step = TrainStep(config, segmenter, options.device)
        losses = {}
        for number in range(8):
            result = step.step(number, new_batch(config, number).to(options.device))
            losses |= {f"{p}{number}": of.total for p, of in result.losses.items()}
        step.check()
        state = step.segmenter.state_dict()
        change = torch.cat([(state[k].cpu() - v).flatten() for k, v in start.items()])
        found[recorded] = {**losses, "change of the weights": change}
    names = [n for n in found[False] if n != "change of the weights"]
    of_losses = worst({n: found[True][n] for n in names}, {n: found[False][n] for n in names})
    ours, theirs = (found[recorded]["change of the weights"] for recorded in (True, False))
    inner = [f"inner{number}" for number in range(8)]
    row.values["error by iteration"] = " ".join(
        f"{relative_error(found[True][n], found[False][n]):.0e}" for n in inner
    )
    row.values["change of the weights, relative"] = float((ours - theirs).norm() / theirs.norm())
    judge(row, *of_losses, GRAPH_BOUND)


def predictions(row: Row, options: Namespace) -> None:
    """Masks of the starter model by both devices; ties of classes may differ."""
    scenes = [draw_scene("cityday", number).image for number in range(1 if options.tiny else 3)]
    if options.tiny:
        scenes = [scene[::4, ::4].copy() for scene in scenes]
    segmenter = load("starter", device="cpu").segmenter
    protocol = PROTOCOLS["fast"]
    scores = {
        device.type: [
            Predictor(segmenter, device=str(device), protocol=protocol).scores(s).float().cpu()
            for s in scenes
        ]
        for device in (options.device, CPU)
    }
    differ, lead = 0, 0.0
    for ours, theirs in zip(scores[options.device.type], scores["cpu"], strict=True):
        at = ours.argmax(0) != theirs.argmax(0)
        differ += int(at.sum())
        best = theirs[:, at].topk(2, dim=0).values
        lead = max(lead, float((best[0] - best[1]).max() / theirs.abs().max()) if at.any() else 0.0)
    row.values |= {"pixels": sum(s.shape[0] * s.shape[1] for s in scenes), "differ": differ}
    row.values["largest lead where they differ"] = lead
    assert lead <= TIE, f"a class led by {lead:.1e}"


def two_processes(row: Row, options: Namespace) -> None:
    """Own synchronised batch norm, and the memory's sums, by two processes on one device."""
    folder = options.scratch / "two"
    folder.mkdir()
    multiprocessing.spawn(_half, (str(options.device), str(folder)), nprocs=2)
    torch.manual_seed(0)
    values = torch.randn(4, 8, 16, 16, dtype=torch.float64, requires_grad=True)
    norm = nn.BatchNorm2d(8).double()
    expected = norm(values)
    expected.square().mean().backward()
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    output = torch.cat([part["output"] for part in found])
    gradient = torch.cat([part["gradient"] for part in found]) / 2
    errors = {
        "output": relative_error(output, expected),
        "gradient": relative_error(gradient, values.grad),
        "running variance": relative_error(found[0]["variance"], norm.running_var),
        "sum": relative_error(found[1]["sum"], values.sum(dim=0)),
    }
    name = max(errors, key=errors.__getitem__)
    judge(row, name, errors[name], FLOAT64_BOUND)


def _half(rank: int, device: str, folder: str) -> None:
    """Normalise half of the images; gloo, as NCCL refuses two processes on one GPU."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    values = torch.randn(4, 8, 16, 16, dtype=torch.float64)
    part = values[2 * rank : 2 * rank + 2].to(device).requires_grad_()
    norm = PortableSyncBatchNorm(8).double().to(device)
    output = norm(part)
    output.square().mean().backward()
    total = all_reduce_sum(part.detach().sum(dim=0))
    content = {"output": output, "gradient": part.grad, "variance": norm.running_var, "sum": total}
    torch.save({k: v.detach().cpu() for k, v in content.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def resume_deterministic(row: Row, options: Namespace) -> None:
    """A run that SIGTERM stops and `--resume` ends equals an uninterrupted one to the last bit."""
    whole, parts = _interrupted(row, options, "deterministic", deterministic=True)
    differ = [name for name in whole if not torch.equal(whole[name], parts[name])]
    row.values["tensors that differ"] = len(differ)
    assert not differ, f"{len(differ)} of {len(whole)} tensors differ, e.g. {differ[0]}"


def resume_default(row: Row, options: Namespace) -> None:
    """Without deterministic algorithms the two differ by rounding alone."""
    whole, parts = _interrupted(row, options, "default", deterministic=False)
    ours, theirs = (
        torch.cat([v.double().flatten() for k, v in state.items() if "running" not in k])
        for state in (parts, whole)
    )
    difference = float((ours - theirs).norm() / theirs.norm())
    row.values |= {"relative difference of the weights": difference, "bound": RESUME_BOUND}
    assert difference <= RESUME_BOUND, f"the weights differ by {difference:.1e}"


def _interrupted(
    row: Row, options: Namespace, name: str, *, deterministic: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a run that went through, and of one that was stopped and resumed."""
    environment = {**os.environ, "PINMEM_HOME": str(options.scratch / "home")}
    pinmem = [sys.executable, "-m", "pinmem_cli"]
    if not (options.scratch / "home").exists():
        drives = {"0006R0": 5, "0016E5": 5, "0001TP": 5}
        source = camvid_folder(options.scratch / "camvid", drives, (160, 120))
        prepare = [*pinmem, "data", "prepare", "camvid", "--from", str(source), "--json"]
        subprocess.run(prepare, env=environment, check=True, capture_output=True)
    settings = {
        "batch": 2,
        "iterations": 40 if options.tiny else 60,
        "optim.lr": 0.001,
        "log_every": 4,
        "model.backbone": "resnet10",
        "augmentation.crop": 64,
        "evaluation.max_images": 2,
        "checkpoint.every": 10_000,
        "compute.deterministic": str(deterministic).lower(),
        "compute.precision": "float32" if options.tiny else "bf16",
        "compute.channels_last": "true",
    }
    train = [*pinmem, "train", "--recipe", "demo", "--sources", "camvid:0006R0,camvid:0016E5"]
    train += ["--device", options.device.type]
    for key, value in settings.items():
        train += ["--set", f"{key}={value}"]
    runs = {kind: options.scratch / f"{name}-{kind}" for kind in ("whole", "parts")}
    processes = {
        kind: subprocess.Popen(
            [*train, "--output", str(run)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for kind, run in runs.items()
    }
    metrics = runs["parts"] / "metrics.jsonl"
    give_up = time.monotonic() + 120
    while processes["parts"].poll() is None and time.monotonic() < give_up:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.02)
    processes["parts"].send_signal(signal.SIGTERM)
    outputs = {kind: process.communicate()[0] for kind, process in processes.items()}
    assert processes["whole"].returncode == 0, outputs["whole"][-600:]
    row.values["exit code after SIGTERM"] = processes["parts"].returncode
    assert processes["parts"].returncode == 143, outputs["parts"][-600:]
    stopped = re.search(r"(\d+) of \d+|(\d+)/\d+", outputs["parts"])
    row.values["stopped after"] = stopped[0] if stopped else "unknown"
    resumed = subprocess.run(
        [*pinmem, "train", "--resume", str(runs["parts"])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr[-600:]
    files = [run / "checkpoint" / "model.safetensors" for run in runs.values()]
    whole, parts = (safetensors.torch.load_file(file) for file in files)
    return whole, parts


CHECKS = {
    "memory, float64": (memory, 10),
    "network, float64": (network, 15),
    "iterations, float64": (iterations, 30),
    "step without host synchronisation": (no_synchronisation, 15),
    "non-finite loss": (non_finite, 10),
    "graph against plain": (graph, 15),
    "predictions against CPU": (predictions, 20),
    "two processes on one device": (two_processes, 20),
    "reference figures, float64": (reference, 60),
    "SIGTERM and resume, deterministic": (resume_deterministic, 60),
    "SIGTERM and resume, default": (resume_default, 60),
}
"""Functions that fill a row, and the seconds that each may take."""
