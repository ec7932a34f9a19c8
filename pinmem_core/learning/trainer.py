"""A whole run: from a configuration to a checkpoint and its scores."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pinmem_core.config import TrainConfig
from pinmem_core.devices import pick_device
from pinmem_core.errors import ConfigError, PinMemError
from pinmem_core.evaluation import Scores, Target, evaluate, load_target, load_validation
from pinmem_core.events import Listener, Metrics, Notice, Progress, ignore
from pinmem_core.files import write_whole
from pinmem_core.home import register_run
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.inference.predictor import CHECKPOINT
from pinmem_core.learning.initialization import initial_segmenter, initialize_memory
from pinmem_core.learning.method import StepResult
from pinmem_core.learning.methods import methods
from pinmem_core.learning.resolve import resolve
from pinmem_core.learning.schedule import inner_learning_rate, learning_rate
from pinmem_core.loading import Batch, DomainLoader, load_domains
from pinmem_core.loading.domains import step_seed
from pinmem_core.model import save_checkpoint
from pinmem_core.preparation import draw_missing

PROTOCOL = "paper-train"
"""The protocol by which a run scores itself."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        run: Its folder.
        checkpoint: The last checkpoint, inside it.
        iterations: That were trained.
        scores: By phase ("source", "target") and name of the domain.
    """

    run: Path
    checkpoint: Path
    iterations: int
    scores: dict[str, dict[str, Scores]]


def train(config: TrainConfig, run: Path, *, on_event: Listener = ignore) -> RunResult:
    """Train a segmenter, and score it on its sources' validation splits and on the targets.

    The run folder gets `config.json`, `samples.json` (which samples were used), `metrics.jsonl`
    (a line a logged iteration), `checkpoint/` and `scores.json`. On the CPU all of these are
    functions of the configuration and the data. When training fails before its first checkpoint,
    nothing is left behind.

    Args:
        config: What to do.
        run: The folder to make.
        on_event: Hears of the progress and of the metrics.

    Raises:
        ConfigError: The configuration contradicts itself, or the run folder is not empty.
        DataError: A source or target is missing, empty or damaged.
        MachineError: This machine lacks the device.
    """
    if run.exists() and not (run.is_dir() and not any(run.iterdir())):
        raise ConfigError(f"{run} exists already.", "Choose another '--output'.")
    config = resolve(config)
    draw_missing([*config.sources, *config.targets], on_event)
    trainer = _Trainer(config, run, on_event)
    try:
        scores = trainer.run()
    except BaseException:
        if (run / CHECKPOINT).exists():
            on_event(Notice(f"the last checkpoint is kept in {run}", warning=True))
        else:
            shutil.rmtree(run, ignore_errors=True)
        raise
    try:
        register_run(run)
    except OSError as error:
        on_event(Notice(f"the run cannot be noted as the newest: {error}", warning=True))
    return RunResult(run, run / CHECKPOINT, config.iterations, scores)


class _Trainer:
    """The collaborators of one run, and the loop that joins them."""

    def __init__(self, config: TrainConfig, folder: Path, on_event: Listener) -> None:
        self.config = config
        self.folder = folder
        self.on_event = on_event
        self.device = pick_device(config.device)
        self.domains = load_domains(
            config.sources, pseudo_domains=config.pseudo_domains, seed=config.seed
        )
        limit = config.evaluation.max_images
        self.validation = load_validation(config.sources, limit, on_event)
        self.targets = [load_target(text, config.sources, limit) for text in config.targets]
        self.segmenter = initial_segmenter(config).to(self.device)
        self.method = methods.get(config.method)(config.loss)
        self.optimizer = torch.optim.SGD(
            self.segmenter.parameters(),
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )

    def run(self) -> dict[str, dict[str, Scores]]:
        """Train to the end and return the scores of the last checkpoint."""
        config = self.config
        self._write_plan()
        initialize_memory(self.segmenter, self.domains, config, self.device, self.on_event)
        loader = DomainLoader.of(self.domains, config, range(config.iterations))
        began = time.perf_counter()
        for iteration, batch in enumerate(loader):
            result = self._step(iteration, batch.to(self.device))
            self._report(iteration, batch, result)
        seconds = time.perf_counter() - began
        images = config.iterations * config.batch * len(self.domains)
        self.on_event(
            Notice(f"trained {config.iterations} iterations, {images / seconds:.1f} images/s")
        )
        scores = {"source": self._scores(self.validation), "target": self._scores(self.targets)}
        text = {phase: {n: asdict(s) for n, s in by.items()} for phase, by in scores.items()}
        self._write_json("scores.json", {"protocol": PROTOCOL, **text})
        return scores

    def _step(self, iteration: int, batch: Batch) -> StepResult:
        """Take one step of the method and of the optimizer."""
        config = self.config
        torch.manual_seed(step_seed(config.seed, iteration))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, iteration, config.iterations)
        self.optimizer.zero_grad()
        result = self.method.step(
            self.segmenter, batch, inner_learning_rate(config.optim, iteration, config.iterations)
        )
        for phase, losses in result.losses.items():
            if not losses.total.isfinite():
                bad = [name for name, term in losses.terms.items() if not term.isfinite()]
                raise PinMemError(
                    f"the loss is not finite in iteration {iteration + 1} ({phase}: "
                    f"{', '.join(bad) or 'total'}); the optimizer has not stepped.",
                    "Lower the learning rate ('--set optim.lr=...'), or look at the data.",
                )
        self.optimizer.step()
        self.method.refresh(self.segmenter, batch)
        return result

    def _report(self, iteration: int, batch: Batch, result: StepResult) -> None:
        """Log, validate and save where this iteration is due to."""
        config, done = self.config, iteration + 1
        last = done == config.iterations
        self.on_event(Progress("training", done, config.iterations))
        if done % config.log_every == 0 or last:
            lr = learning_rate(config.optim, iteration, config.iterations)
            self._log(done, {"lr": lr, "redrawn": batch.redrawn, **_terms(result)})
        if config.evaluation.every and done % config.evaluation.every == 0 and not last:
            scores = self._scores(self.validation)
            self._log(done, {f"val/{name}": score.miou for name, score in scores.items()})
        if done % config.checkpoint_every == 0 or last:
            about = {"training": config.model_dump(mode="json"), "iteration": done}
            save_checkpoint(self.segmenter, self.folder / CHECKPOINT, about)

    def _scores(self, targets: list[Target]) -> dict[str, Scores]:
        predictor = Predictor(self.segmenter, device=str(self.device), protocol=PROTOCOLS[PROTOCOL])
        return {
            target.name: evaluate(
                predictor, target.samples, on_event=self.on_event, task=f"scoring {target.name}"
            )
            for target in targets
        }

    def _write_plan(self) -> None:
        """Write down what is going to be trained, and on exactly which samples."""
        self._write_json("config.json", self.config.model_dump(mode="json"))
        pools = {domain.name: [s.id for s in domain.samples] for domain in self.domains}
        scored = {t.name: [s.id for s in t.samples] for t in [*self.validation, *self.targets]}
        self._write_json("samples.json", {"train": pools, "scored": scored})

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.folder / name, (json.dumps(content, indent=2) + "\n").encode())

    def _log(self, iteration: int, values: dict[str, float]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self.on_event(Metrics(iteration, values))


def _terms(result: StepResult) -> dict[str, float]:
    """Return every loss term of every phase as a number."""
    return {
        f"{phase}/{name}": float(term.detach())
        for phase, losses in result.losses.items()
        for name, term in {**losses.terms, "total": losses.total}.items()
    }
