"""A whole run: from a configuration to a checkpoint and its scores."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pinmem_core.config import TrainConfig
from pinmem_core.devices import pick_device
from pinmem_core.errors import ConfigError, DataError, PinMemError, StoppedRunError
from pinmem_core.evaluation import Scores, Target, evaluate, load_target, load_validation
from pinmem_core.events import Event, Listener, Metrics, Notice, Progress, ignore
from pinmem_core.files import write_whole
from pinmem_core.home import locked, register_run
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.inference.predictor import CHECKPOINT
from pinmem_core.learning import snapshots
from pinmem_core.learning.initialization import initial_segmenter, initialize_memory
from pinmem_core.learning.method import StepResult
from pinmem_core.learning.methods import methods
from pinmem_core.learning.resolve import resolve
from pinmem_core.learning.schedule import inner_learning_rate, learning_rate
from pinmem_core.loading import Batch, DomainLoader, load_domains
from pinmem_core.loading.domains import step_seed
from pinmem_core.model import Segmenter, save_checkpoint
from pinmem_core.preparation import draw_missing

PROTOCOL = "paper-train"
"""The protocol by which a run scores itself."""

_CONFIG, _SAMPLES, _METRICS, _SCORES = "config.json", "samples.json", "metrics.jsonl", "scores.json"


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


def train(
    config: TrainConfig,
    run: Path,
    *,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train a segmenter, and score it on its sources' validation splits and on the targets.

    The run folder gets `config.json`, `samples.json` (which samples were used), `metrics.jsonl`
    (a line a logged iteration), `snapshots/` (from which `resume` goes on), `checkpoint/` and
    `scores.json`. On the CPU all of these are functions of the configuration and the data. When
    training fails before its first checkpoint, nothing is left behind.

    Args:
        config: What to do.
        run: The folder to make.
        on_event: Hears of the progress and of the metrics.
        stop: Asked after each iteration; the run saves its state and ends when it returns True.

    Raises:
        ConfigError: The configuration contradicts itself, or the run folder is not empty.
        DataError: A source or target is missing, empty or damaged.
        MachineError: This machine lacks the device.
        StoppedRunError: `stop` said so.
    """
    if run.exists() and not (run.is_dir() and not any(run.iterdir())):
        raise ConfigError(f"{run} exists already.", "Choose another '--output'.")
    config = resolve(config)
    draw_missing([*config.sources, *config.targets], on_event)
    with locked(_name(run)):
        return _complete(_Trainer(config, run, on_event, stop))


def resume(
    run: Path, *, on_event: Listener = ignore, stop: Callable[[], bool] = lambda: False
) -> RunResult:
    """Go on with a run that was stopped or killed, and end as if it had never been.

    Args:
        run: Its folder.
        on_event: Hears of the progress and of the metrics.
        stop: As `train` has it.

    Raises:
        ConfigError: The run has ended.
        DataError: The folder holds no run, or the samples are not those that it began with.
        MachineError: This machine lacks the device, or another process is training the run.
        StoppedRunError: `stop` said so.
    """
    if (run / _SCORES).exists():
        raise ConfigError(f"{run} has ended already.", f"'pinmem eval {run}' scores it.")
    try:
        config = TrainConfig.model_validate_json((run / _CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        reason = "there is none" if isinstance(error, OSError) else "it is damaged"
        raise DataError(f"{run} is no run: its {_CONFIG} cannot be read ({reason}).") from None
    with locked(_name(run)):
        for leftover in (run / snapshots.FOLDER).glob(".*"):
            shutil.rmtree(leftover)
        snapshot = snapshots.newest_snapshot(run, on_event)
        done = snapshot.iteration if snapshot else 0
        on_event(Notice(f"going on after iteration {done} of {config.iterations}"))
        return _complete(_Trainer(config, run, on_event, stop, snapshot))


def _complete(trainer: "_Trainer") -> RunResult:
    """Run to the end; what fails before the first checkpoint leaves nothing behind."""
    run, on_event = trainer.folder, trainer.on_event
    try:
        scores = trainer.run()
    except BaseException as error:
        if not (run / CHECKPOINT).exists():
            shutil.rmtree(run, ignore_errors=True)
        elif not isinstance(error, StoppedRunError):
            on_event(Notice(f"'pinmem train --resume {run}' goes on from there", warning=True))
        raise
    try:
        register_run(run)
    except OSError as error:
        on_event(Notice(f"the run cannot be noted as the newest: {error}", warning=True))
    return RunResult(run, run / CHECKPOINT, trainer.config.iterations, scores)


def _name(run: Path) -> str:
    """Return the name under which a run is locked."""
    return f"run-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]}"


class _Trainer:
    """The collaborators of one run, and the loop that joins them."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        on_event: Listener,
        stop: Callable[[], bool],
        snapshot: snapshots.Snapshot | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.on_event = on_event
        self.stop = stop
        self.snapshot = snapshot
        self.device = pick_device(config.device)
        self.domains = load_domains(
            config.sources, pseudo_domains=config.pseudo_domains, seed=config.seed
        )
        limit = config.evaluation.max_images
        self.validation = load_validation(config.sources, limit, on_event)
        self.targets = [load_target(text, config.sources, limit) for text in config.targets]
        segmenter = Segmenter(config.model) if snapshot else initial_segmenter(config)
        self.segmenter = segmenter.to(self.device)
        self.method = methods.get(config.method)(config.loss)
        self.optimizer = torch.optim.SGD(
            self.segmenter.parameters(),
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )

    def run(self) -> dict[str, dict[str, Scores]]:
        """Train to the end and return the scores of the last checkpoint."""
        if self.snapshot:
            self._require_same_samples()
            self.snapshot.restore(self.segmenter, self.optimizer)
            os.truncate(self.folder / _METRICS, self.snapshot.logged)
            self._train(range(self.snapshot.iteration, self.config.iterations))
        else:
            self._write_plan()
            initialize_memory(
                self.segmenter, self.domains, self.config, self.device, self._tell_unless_stopped
            )
            self._train(range(self.config.iterations))
        self._save_checkpoint(self.config.iterations)
        scores = {
            "source": self._scores(self.validation, self._tell_unless_stopped),
            "target": self._scores(self.targets, self._tell_unless_stopped),
        }
        text = {phase: {n: asdict(s) for n, s in by.items()} for phase, by in scores.items()}
        self._write_json(_SCORES, {"protocol": PROTOCOL, **text})
        return scores

    def _train(self, iterations: range) -> None:
        began = time.perf_counter()
        loader = DomainLoader.of(self.domains, self.config, iterations)
        for iteration, batch in zip(iterations, loader, strict=True):
            result = self._step(iteration, batch.to(self.device))
            self._report(iteration, batch, result)
        seconds = time.perf_counter() - began
        images = len(iterations) * self.config.batch * len(self.domains)
        done = f"trained {len(iterations)} iterations, {images / seconds:.1f} images/s"
        self.on_event(Notice(done))

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
            scores = self._scores(self.validation, self.on_event)
            self._log(done, {f"val/{name}": score.miou for name, score in scores.items()})
        stopped = self.stop()
        if done % config.checkpoint.every == 0 or last or stopped:
            metrics = self.folder / _METRICS
            logged = metrics.stat().st_size if metrics.exists() else 0
            keep = config.checkpoint.keep
            snapshots.save_snapshot(self.folder, done, logged, self.segmenter, self.optimizer, keep)
            self._save_checkpoint(done)
        if stopped and not last:
            raise self._stopped(done)

    def _save_checkpoint(self, done: int) -> None:
        about = {"training": self.config.model_dump(mode="json"), "iteration": done}
        save_checkpoint(self.segmenter, self.folder / CHECKPOINT, about)

    def _stopped(self, done: int) -> StoppedRunError:
        return StoppedRunError(
            f"stopped after iteration {done} of {self.config.iterations}; all is saved.",
            f"'pinmem train --resume {self.folder}' goes on.",
        )

    def _tell_unless_stopped(self, event: Event) -> None:
        """Pass an event on where nothing is lost by stopping: outside the iterations."""
        self.on_event(event)
        if not self.stop():
            return
        if (self.folder / CHECKPOINT).exists():
            raise self._stopped(self.config.iterations)
        raise StoppedRunError("stopped before the first iteration; nothing is kept.")

    def _scores(self, targets: list[Target], on_event: Listener) -> dict[str, Scores]:
        predictor = Predictor(self.segmenter, device=str(self.device), protocol=PROTOCOLS[PROTOCOL])
        return {
            target.name: evaluate(
                predictor, target.samples, on_event=on_event, task=f"scoring {target.name}"
            )
            for target in targets
        }

    def _write_plan(self) -> None:
        """Write down what is going to be trained, and on exactly which samples."""
        self._write_json(_CONFIG, self.config.model_dump(mode="json"))
        self._write_json(_SAMPLES, self._samples())
        (self.folder / _METRICS).unlink(missing_ok=True)

    def _samples(self) -> dict[str, Any]:
        pools = {domain.name: [s.id for s in domain.samples] for domain in self.domains}
        scored = {t.name: [s.id for s in t.samples] for t in [*self.validation, *self.targets]}
        return {"train": pools, "scored": scored}

    def _require_same_samples(self) -> None:
        began_with = json.loads((self.folder / _SAMPLES).read_text(encoding="utf-8"))
        if began_with != self._samples():
            raise DataError(
                f"the samples are not those that {self.folder} began with ({_SAMPLES}).",
                "Prepare the datasets as they were, or begin a new run.",
            )

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.folder / name, (json.dumps(content, indent=2) + "\n").encode())

    def _log(self, iteration: int, values: dict[str, float]) -> None:
        with (self.folder / _METRICS).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self.on_event(Metrics(iteration, values))


def _terms(result: StepResult) -> dict[str, float]:
    """Return every loss term of every phase as a number."""
    return {
        f"{phase}/{name}": float(term.detach())
        for phase, losses in result.losses.items()
        for name, term in {**losses.terms, "total": losses.total}.items()
    }
