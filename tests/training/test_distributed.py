"""Several processes compute what one computes with all their images."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from benchmarks.collectives import Collectives
from conftest import PLUGINS, small_config

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.distributed import (
    all_gather,
    any_rank,
    averaged_gradients,
    on_first_rank,
)
from pinmem_core.errors import DataError, PinMemError, StoppedRunError
from pinmem_core.events import Metrics
from pinmem_core.methods import methods
from pinmem_core.methods.dsu import uncertainty
from pinmem_core.models import Segmenter
from pinmem_core.models.backbones import backbones
from pinmem_core.models.norm import PortableSyncBatchNorm
from pinmem_core.training import train, trainer
from pinmem_core.training.linear_probe import fit_new_rows
from pinmem_core.training.setup import initial_segmenter, resolve
from pinmem_core.training.step import TrainStep

WORLD = 2
ITERATIONS = 3
ONLY_ON_THE_SECOND_RANK = 7
WITH_MEMORY = ("pinmem", "aggregate")


def in_ranks(work, *arguments, folder: Path) -> list:
    """Return what `work(rank, *arguments)` returned in each of the forked ranks."""
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=_rank, args=(work, arguments, number, folder))
        for number in range(WORLD)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{n}.pt", weights_only=False) for n in range(WORLD)]


def _rank(work, arguments, number: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=number, world_size=WORLD)
    torch.save(work(number, *arguments), folder / f"{number}.pt")
    dist.destroy_process_group()


def batches() -> list[Batch]:
    """Three batches of 2 domains and 4 images; one class is in the second half of them alone."""
    dice = torch.Generator().manual_seed(0)
    result = []
    for number in range(ITERATIONS):
        images = torch.randn(2, 4, 3, 64, 64, generator=dice, dtype=torch.float64)
        labels = torch.randint(0, ONLY_ON_THE_SECOND_RANK, (2, 4, 8, 8), generator=dice)
        labels = labels.repeat_interleave(8, 2).repeat_interleave(8, 3)
        labels[:, 2:, 16:48, 16:48] = ONLY_ON_THE_SECOND_RANK
        labels[0, 0, :40] = 255  # ranks differ in how many pixels are labelled
        result.append(Batch(images, labels, (number % 2,), (1 - number % 2,)))
    return result


def learn(method: str, part: slice = slice(None), accumulate: int = 1) -> list[dict]:
    """Take three iterations on a part of each batch; return what came of each."""
    torch.manual_seed(0)
    config = small_config(
        method=method,
        compute__accumulate=accumulate,
        use_memory=True if method in WITH_MEMORY else None,
        model__memory={"read": "softmax"} if method in WITH_MEMORY else None,
    )
    adapters = methods.get(method).adapters(methods.get(method).read_settings(config))
    segmenter = Segmenter(config.model.model_copy(update={"adapters": adapters})).double()
    segmenter.auxiliary[3].p = 0.0  # its random numbers are those of a rank
    iteration = TrainStep(config, segmenter, torch.device("cpu"))
    return [_outcome(iteration, number, batch, part) for number, batch in enumerate(batches())]


def _outcome(iteration: TrainStep, number: int, batch: Batch, part: slice) -> dict:
    images, labels = batch.images[:, part], batch.labels[:, part]
    result = iteration.step(number, Batch(images, labels, batch.meta_train, batch.meta_test))
    segmenter = iteration.segmenter
    memory = {} if segmenter.memory is None else {"memory": segmenter.memory.slots.clone()}
    for phase, losses in result.losses.items():
        if losses.written is not None:
            memory[f"{phase}/written"] = losses.written.detach()
    if result.rewritten is not None:
        memory["rewritten"] = result.rewritten.detach()
    return {
        "losses": {
            f"{phase}/{name}": term.detach()
            for phase, losses in result.losses.items()
            for name, term in {**losses.terms, "total": losses.total}.items()
        },
        "gradients": {n: p.grad.clone() for n, p in segmenter.named_parameters()},
        "state": {n: t.clone() for n, t in segmenter.state_dict().items()},
        "memory": memory,
    }


def _half(rank: int, method: str) -> list[dict]:
    return learn(method, slice(2 * rank, 2 * rank + 2))


@pytest.mark.parametrize(
    "method",
    [
        "pinmem",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("mldg", "aggregate", "spc", "prototypes")
        ),
    ],
)
def test_two_ranks_compute_what_one_does_with_the_doubled_batch(tmp_path, method):
    alone = learn(method)
    first, second = in_ranks(_half, method, folder=tmp_path)
    for one, a, b in zip(alone, first, second, strict=True):
        for kind in ("gradients", "state", "memory"):
            for name, expected in one[kind].items():
                assert torch.equal(a[kind][name], b[kind][name]), f"the ranks differ in {name}"
                torch.testing.assert_close(a[kind][name], expected, rtol=1e-6, atol=1e-9)
        for name, expected in one["losses"].items():
            mean = (a["losses"][name] + b["losses"][name]) / 2
            torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    if method in WITH_MEMORY:
        before, after = alone[0]["memory"]["memory"], alone[-1]["memory"]["memory"]
        assert not torch.equal(before[ONLY_ON_THE_SECOND_RANK], after[ONLY_ON_THE_SECOND_RANK])


def _bank(rank: int, whole: bool) -> torch.Tensor:
    torch.manual_seed(0)
    config = small_config(method="shade", method_config__styles=4)
    step = TrainStep(config, Segmenter(config.model).double(), torch.device("cpu"))
    batch, half = batches()[0], slice(2 * rank, 2 * rank + 2)
    if not whole:
        batch = Batch(batch.images[:, half], batch.labels[:, half], (0,), (1,))
    step.step(0, batch)
    return step.method.state_dict()["bank"]


@pytest.mark.slow
def test_all_ranks_hold_the_bank_of_the_images_of_all(tmp_path):
    first, second = in_ranks(_bank, False, folder=tmp_path)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, _bank(0, True))


def _part_of_each_half(rank: int, method: str) -> list[dict]:
    """Learn from images 0 and 2 in one process, and from 1 and 3 in the other, in two parts."""
    return learn(method, slice(rank, None, 2), accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["aggregate", "pinmem"])
def test_accumulated_parts_are_averaged_over_the_ranks(tmp_path, method):
    alone = learn(method, accumulate=2)
    first, second = in_ranks(_part_of_each_half, method, folder=tmp_path)
    for one, a, b in zip(alone, first, second, strict=True):
        for kind in ("gradients", "state"):
            for name, expected in one[kind].items():
                assert torch.equal(a[kind][name], b[kind][name]), f"the ranks differ in {name}"
                torch.testing.assert_close(a[kind][name], expected, rtol=1e-6, atol=1e-9)


def _traffic(rank: int, method: str, accumulate: int) -> tuple[int, int]:
    """Return the bytes that an iteration reduces, and those of all gradients."""
    config = resolve(small_config(method=method, batch=4, compute__accumulate=accumulate))
    iteration = TrainStep(config, Segmenter(config.model).double(), torch.device("cpu"))
    with Collectives() as counted:
        iteration.step(0, batches()[0])
    gradients = [p.grad.nbytes for p in iteration.segmenter.parameters() if p.grad is not None]
    return counted.bytes, sum(gradients)


@pytest.mark.parametrize(("method", "reductions"), [("aggregate", 1), ("mldg", 3), ("pinmem", 3)])
def test_accumulated_parts_are_reduced_no_more_than_their_mathematics_needs(
    tmp_path, method, reductions
):
    """Once for all parts; the gradient of an inner step also once for each of the two parts."""
    for moved, gradients in in_ranks(_traffic, method, 2, folder=tmp_path):
        assert reductions * gradients <= moved < (reductions + 0.5) * gradients


def _norm(rank: int, values: torch.Tensor) -> dict:
    norm = PortableSyncBatchNorm(3).double()
    mine = values[2 * rank : 2 * rank + 2].clone().requires_grad_()
    with Collectives() as forward:
        loss = (norm(mine) * torch.arange(3.0)[:, None, None] ** 2).sin().sum()
    with Collectives() as backward:
        loss.backward()
    calls = forward.calls.total(), backward.calls.total()
    state = norm.state_dict()
    return {"gradient": mine.grad, "state": state, "weight": norm.weight.grad, "calls": calls}


def test_batch_norm_is_synchronised_on_a_cpu_as_torch_would(tmp_path):
    values = torch.randn(
        4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    norm = torch.nn.BatchNorm2d(3).double()
    whole = values.clone().requires_grad_()
    (norm(whole) * torch.arange(3.0)[:, None, None] ** 2).sin().sum().backward()
    first, second = in_ranks(_norm, values, folder=tmp_path)
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]), whole.grad)
    torch.testing.assert_close(first["weight"] + second["weight"], norm.weight.grad)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(first["state"][name], value)
    assert first["calls"] == (1, 1)  # mean and variance together


def _far_norm(rank: int, values: torch.Tensor, memory_format: torch.memory_format) -> dict:
    norm = PortableSyncBatchNorm(3)
    mine = values[2 * rank : 2 * rank + 2].to(memory_format=memory_format).requires_grad_()
    output = norm(mine)
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return {"output": output.detach(), "gradient": mine.grad, "variance": norm.running_var}


@pytest.mark.parametrize(
    ("dtype", "memory_format", "bound"),
    [
        (torch.float32, torch.contiguous_format, 1e-4),
        (torch.float32, torch.channels_last, 1e-4),
        (torch.bfloat16, torch.channels_last, 2e-2),
    ],
)
def test_synchronised_moments_do_not_cancel_far_from_zero(tmp_path, dtype, memory_format, bound):
    dice = torch.Generator().manual_seed(2)
    far = 1000.0 if dtype == torch.float32 else 1.0
    values = (torch.randn(4, 3, 16, 16, generator=dice) + far).to(dtype)
    values[2:] += 1  # the ranks' means differ
    whole = values.double().requires_grad_()
    norm = torch.nn.BatchNorm2d(3).double()
    output = norm(whole)
    slopes = torch.linspace(-1, 1, output.numel() // 2).view(2, 3, 16, 16).double()
    (output * torch.cat([slopes, slopes])).sum().backward()
    parts = in_ranks(_far_norm, values, memory_format, folder=tmp_path)
    near = {"rtol": bound, "atol": bound, "check_dtype": False}
    torch.testing.assert_close(torch.cat([p["output"] for p in parts]), output.detach(), **near)
    torch.testing.assert_close(torch.cat([p["gradient"] for p in parts]), whole.grad, **near)
    torch.testing.assert_close(parts[0]["variance"], norm.running_var, **near)
    assert parts[0]["output"].dtype == parts[0]["gradient"].dtype == dtype


class _Sizes(Collectives):
    """Notes the sizes of the tensors that are reduced, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = self.bytes
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.bytes > before:
            self.sizes.append(self.bytes - before)
        return result


def _overlapped(rank: int) -> tuple[list[int], list[torch.Tensor]]:
    torch.manual_seed(0)
    wide = torch.nn.Linear(1500, 1500)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), PortableSyncBatchNorm(4), torch.nn.AdaptiveAvgPool2d(1)
    )
    both = torch.nn.ModuleList([network, wide])
    hidden = network(torch.randn(2, 3, 4, 4) + rank).square().sum() * torch.ones(1500)
    loss = (rank + 1) * wide(hidden).sum()
    with _Sizes() as reduced, averaged_gradients(both):
        loss.backward()
    return reduced.sizes, [p.grad for p in both.parameters()]


def test_gradients_are_reduced_while_the_backward_pass_goes_on(tmp_path):
    (sizes, gradients), (_, others) = in_ranks(_overlapped, folder=tmp_path)
    wide, of_norm = 4 * 1500 * 1500, 4 * 2 * 4
    assert sizes[0] >= wide  # the last layer's, before the pass reaches the batch norm
    assert sizes[1] == of_norm and len(sizes) == 3
    for mine, other in zip(gradients, others, strict=True):
        assert torch.equal(mine, other) and mine.abs().sum() > 0


def _agreements(rank: int) -> tuple:
    def fail() -> None:
        raise DataError("nothing there.", "Put something there.")

    try:
        on_first_rank(fail)
    except PinMemError as error:
        told = (type(error).__name__, error.message, error.hint)
    return (
        any_rank(rank == 1),
        any_rank(False),
        all_gather(rank),
        on_first_rank(lambda: rank),
        told,
    )


def test_ranks_agree(tmp_path):
    told = ("DataError", "nothing there.", "Put something there.")
    assert in_ranks(_agreements, folder=tmp_path) == [(True, False, [0, 1], 0, told)] * 2


def _begun(rank: int, first: str, others: str) -> dict | str:
    weights = others if rank else first
    config = small_config(model__backbone="resnet18", init_weights=weights)
    try:
        return initial_segmenter(config).backbone.state_dict()
    except PinMemError as error:
        return f"{type(error).__name__}: {error.message}"


def test_the_first_rank_alone_reads_the_weights(tmp_path):
    path = tmp_path / "weights.pth"
    state = backbones.get("resnet18")(32).state_dict()
    torch.save(state, path)
    for begun in in_ranks(_begun, str(path), "absent.pth", folder=tmp_path):
        assert all(torch.equal(tensor, state[name]) for name, tensor in begun.items())


def test_all_ranks_hear_of_weights_that_do_not_exist(tmp_path):
    first, second = in_ranks(_begun, "absent.pth", "absent.pth", folder=tmp_path)
    assert first == second == "ConfigError: the weights file 'absent.pth' does not exist."


def _rows(rank: int, halves: bool) -> torch.Tensor:
    torch.manual_seed(0)
    config = small_config()
    segmenter = Segmenter(config.model).double()
    segmenter.new_rows = {"decoder.classifier.weight": [5, ONLY_ON_THE_SECOND_RANK]}
    half = slice(2 * rank, 2 * rank + 2) if halves else slice(None)
    parts = [Batch(b.images[:, half], b.labels[:, half], (0,), (1,)) for b in batches()]
    fit_new_rows(segmenter, lambda iterations: parts, config, lambda event: None)
    return segmenter.decoder.classifier.weight.detach()


def test_all_ranks_fit_the_same_new_rows(tmp_path):
    first, second = in_ranks(_rows, True, folder=tmp_path)
    assert torch.equal(first, second)
    alone = _rows(0, False)
    for row in (5, ONLY_ON_THE_SECOND_RANK):
        assert torch.cosine_similarity(first[row], alone[row], dim=0) > 0.8
        assert first[row].any()


def _opened(rank: int, run: Path) -> list[str]:
    opened, open_set, list_ids = [], PreparedDataset.open, trainer.ids_of
    PreparedDataset.open = lambda name: opened.append(name) or open_set(name)  # in this process
    trainer.ids_of = lambda samples: opened.append("ids") or list_ids(samples)
    train(small_config(iterations=1, targets=["toy:red"]), run)
    return opened


def test_the_first_rank_alone_reads_the_manifests(tmp_path):
    prepare_synthetic(["toy"])
    first, second = in_ranks(_opened, tmp_path / "run", folder=tmp_path)
    assert {"toy", "ids"} == set(first) and not second
    assert (tmp_path / "run" / "scores.json").exists()


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    code = (
        "import pinmem_core.data.cards as d, pinmem_core.models.backbones as t, sys;"
        f"d.__path__.append({str(PLUGINS / 'cards')!r});"
        f"t.__path__.append({str(PLUGINS / 'backbones')!r});"
        "from pinmem_cli.app import main; main()"
    )
    program = Path(os.environ["PINMEM_HOME"]) / "program.py"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(code)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    return subprocess.run(
        [sys.executable, *command, str(program), "train", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


SETTINGS = """
    --sources toy:red,toy:blue --targets toy:red --allow-seen-targets --device cpu
    --iterations 4 --batch 4 --crop 64
    --set model.backbone=tiny --set model.feature_dim=16 --set model.memory.init_batches=2
    --set model.memory.read=softmax --set loss.auxiliary=0 --set log_every=1
    --set checkpoint.every=2 --set optim.lr=0.001
""".split()  # noqa: SIM905


@pytest.mark.slow
def test_torchrun_trains_one_network(tmp_path):
    """Without the auxiliary loss, whose dropout is random, the losses are those of one process."""
    run = tmp_path / "run"
    done = torchrun(*SETTINGS, "--output", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iterations"] == 4  # one process speaks
    assert "trained 4 iterations" in done.stderr and done.stderr.count("iteration 4 ") == 1
    config = TrainConfig.model_validate_json((run / "config.json").read_bytes())
    alone = train(config, tmp_path / "alone")
    expected = (alone.run / "metrics.jsonl").read_text().splitlines()
    for line, other in zip((run / "metrics.jsonl").read_text().splitlines(), expected, strict=True):
        figures, others = json.loads(line), json.loads(other)
        for name in ("inner/total", "outer/total", "inner/div", "outer/read"):
            assert figures[name] == pytest.approx(others[name], rel=1e-4), (name, line)
    scores = json.loads((run / "scores.json").read_text())["target"]["toy:red"]
    assert scores["pixels"] == alone.scores["target"]["toy:red"].pixels
    assert scores["miou"] == pytest.approx(alone.scores["target"]["toy:red"].miou, abs=0.01)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(tmp_path):
    config = small_config(iterations=4, batch=4, checkpoint__every=2)
    heard = []
    with pytest.raises(StoppedRunError, match="at iteration 2/4"):
        train(
            config,
            tmp_path / "run",
            on_event=heard.append,
            stop=lambda: any(isinstance(e, Metrics) and e.iteration == 2 for e in heard),
        )
    done = torchrun("--resume", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "2 instead of 1 processes: the same images and means" in done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_what_one_process_cannot_read_ends_all(tmp_path):
    prepare_synthetic(["toy"])
    done = torchrun(*SETTINGS, "--set", "batch=3", "--output", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "3 images" in done.stderr or "divide" in done.stderr
    assert not (tmp_path / "run").exists()


def _style_of_half(rank: int, values: torch.Tensor) -> dict:
    mine = values[2 * rank : 2 * rank + 2].clone().requires_grad_()
    scale = uncertainty(mine)
    (scale * torch.arange(3.0)[:, None, None] / WORLD).sum().backward()
    return {"scale": scale.detach(), "gradient": mine.grad}


def test_the_uncertainty_of_styles_is_that_of_the_images_of_all_ranks(tmp_path):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 3, 1, 1, dtype=torch.float64, generator=generator)
    whole = values.clone().requires_grad_()
    scale = uncertainty(whole)
    (scale * torch.arange(3.0)[:, None, None]).sum().backward()
    ranks = in_ranks(_style_of_half, values, folder=tmp_path)
    for one in ranks:
        torch.testing.assert_close(one["scale"], scale.detach())
    torch.testing.assert_close(torch.cat([one["gradient"] for one in ranks]), whole.grad)


def _masks_of_half(rank: int) -> dict:
    own = {"start": 0.7, "trials": 2, "trial_batches": 1}
    config = resolve(small_config(method="isw", method_config=own))
    step = TrainStep(config, initial_segmenter(config), torch.device("cpu"))
    for number, batch in enumerate(batches()):
        images, labels = (
            value[:, 2 * rank : 2 * rank + 2] for value in (batch.images, batch.labels)
        )
        step.step(number, Batch(images.float(), labels, batch.meta_train, batch.meta_test))
    return step.states()["method"] | step.states()["model"]


@pytest.mark.slow
def test_the_masks_of_isw_are_those_of_all_ranks(tmp_path):
    first, second = in_ranks(_masks_of_half, folder=tmp_path)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    sizes = [int(value.sum()) for name, value in first.items() if name.startswith("mask")]
    assert len(sizes) == 3 and all(sizes)
