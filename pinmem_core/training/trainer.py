"""The parts of a training run, and its loop."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pinmem_core.checkpoints.model_card import parameters_in_words
from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch, Domain
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.prepared import PreparedDataset, Selection
from pinmem_core.data.samples import ids_of
from pinmem_core.devices import pick_device
from pinmem_core.distributed import (
    all_gather,
    all_reduce_mean,
    any_rank,
    local_rank,
    on_first_rank,
    world_size,
)
from pinmem_core.errors import DataError, StoppedRunError, shell_join
from pinmem_core.evaluation import ConfusionMatrix, Scores, Target, confusion_matrix
from pinmem_core.evaluation.evaluate import comparison_sheet
from pinmem_core.events import (
    Event,
    Images,
    Listener,
    Metrics,
    Notice,
    Progress,
    RunStarted,
)
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.methods.base import Sources, StepResult
from pinmem_core.models import Segmenter
from pinmem_core.training.feature_cache import CachedCrops, cache_line, cached_crops
from pinmem_core.training.fine_tuning import InitialModel
from pinmem_core.training.linear_probe import fit_new_rows
from pinmem_core.training.optim import learning_rate
from pinmem_core.training.run_folder import CLASSES, DIGESTS, RunFolder, shareable
from pinmem_core.training.run_loggers import RunLoggers
from pinmem_core.training.setup import (
    base_of,
    initial_segmenter,
    initialize_memory,
    load_data,
)
from pinmem_core.training.snapshots import Snapshot
from pinmem_core.training.step import TrainStep
from pinmem_core.training.throughput import Throughput
from pinmem_core.training.time_limit import FINISHING, within_time
from pinmem_core.training.timing import PROTOCOL, is_long, measure, plan_lines

_SHOWN = 4
"""Predictions per domain for the loggers."""


class Trainer(ExitStack):
    """The components of one run, and the training loop."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        on_event: Listener,
        stop: Callable[[], bool],
        snapshot: Snapshot | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.on_event = on_event
        self.stop = stop
        self.snapshot = snapshot
        self.device = pick_device(config.device, local_rank())
        self.began = time.monotonic()
        folder.start = on_first_rank(self._initial_model)
        self.domains, self.validation, self.targets = on_first_rank(self._load_data)
        self.digests = on_first_rank(self._digests)
        self.seen = {target.name: target.seen for target in (*self.validation, *self.targets)}
        for target in self.targets:
            if warning := target.warning():
                on_event(Notice(warning, warning=True))
        # Comes after the data, so that no weights are downloaded if data is missing.
        segmenter = (
            Segmenter(config.model) if snapshot else initial_segmenter(config, on_event=on_event)
        )
        folder.base = on_first_rank(lambda: base_of(config, resumed=snapshot is not None))
        self.measured, self.scoring_seconds = False, 0.0
        if snapshot is None:
            self._plan(segmenter)
        self.last = self.config.iterations
        self.step = TrainStep(self.config, segmenter, self.device)
        folder.parameters = segmenter.count_parameters()
        line = f"network: {parameters_in_words(folder.parameters)}"
        if weights := config.init_weights:
            folder.weights_licence = segmenter.backbone.licence_of(weights)
            licence = folder.weights_licence or "unknown"
            line += f"; weights {Path(weights).name}, licence {licence}"
        if snapshot is None:
            on_event(Notice(line))
        self.cached: CachedCrops | None = None
        images = sum(len(domain.samples) for domain in self.domains)
        epoch = -(-images // (self.config.batch * len(self.domains)))
        self.step.sources = Sources(self._loader, epoch)
        for line in self.step.method.notices():
            on_event(Notice(line))
        self._scored: tuple[int, Segmenter] | None = None
        self.trained = False
        self.saved = time.monotonic()

    def _initial_model(self) -> InitialModel | None:
        """Return the record of the model that the run starts from, as it was at the start."""
        name = self.config.init_from
        if name is None:
            return None
        recorded = self.folder.read_start()
        if self.snapshot:
            return recorded
        start = InitialModel.read(name)
        if recorded not in (None, start):
            raise DataError(
                f"the model {start.model} has changed since the run {self.folder.path} began.",
                "Start a new run.",
            )
        return start

    def _plan(self, segmenter: Segmenter) -> None:
        """Announce the run; measure a long one, and fit it into its time."""
        config, timing = self.config, None
        caches = config.compute.cache_features is not None
        if config.minutes or (is_long(config, len(self.domains)) and not caches):
            self.on_event(Notice("measuring the speed ..."))
            scored = [*self.validation, *self.targets]
            timing = measure(config, segmenter, self.domains, scored, self.device)
        if timing and config.minutes:
            spent = on_first_rank(lambda: time.monotonic() - self.began)
            self.config = within_time(config, timing, spent)
            self.scoring_seconds = timing.scores(self.config.evaluation.max_images)
            if self.config.evaluation != config.evaluation:
                self.domains, self.validation, self.targets = on_first_rank(self._load_data)
        self.measured = timing is not None
        lines = plan_lines(self.config, self.domains, self.device, timing)
        if caches:
            lines.append(cache_line(segmenter, self.domains, config))
        for line in lines:
            self.on_event(Notice(line))

    def _time_is_over(self) -> bool:
        """Return whether only the time for scoring is left; a resumed run has no limit."""
        minutes = self.config.minutes
        if minutes is None or self.snapshot:
            return False
        end = 60 * minutes - self.scoring_seconds - FINISHING
        return any_rank(time.monotonic() - self.began > end)

    def _load_data(self) -> tuple[list[Domain], list[Target], list[Target]]:
        """Return training domains, validation targets and test targets."""
        resumed = self.folder.has_begun()
        data = load_data(self.config, self.on_event, self.folder.start, resumed=resumed)
        self.folder.trained_on = data.trained_on.as_json()  # only the first process has it
        return data.domains, data.validation, data.targets

    def run(self) -> dict[str, dict[str, Scores]]:
        """Train to the end and return the scores of the last checkpoint."""
        done = self._begin()
        names = self.config.logger if self.folder.writes else ()
        self.loggers = self.enter_context(RunLoggers(names, self.folder.path, done, self.on_event))
        self._emit(RunStarted(self.folder.path.name, shareable(self.config)))
        self._train(range(done, self.last))
        self.trained, last = True, self.last
        network = self._network(last)
        self._save_checkpoint(last, network)
        on_event = self._forward_unless_stopped
        validated = self._matrices(last, self.validation, on_event)
        tested = self._matrices(last, self.targets, on_event)
        scores = {
            "source": _scores(self.validation, validated),
            "target": _scores(self.targets, tested),
        }
        self._draw(last, validated)
        self.folder.finish(scores, PROTOCOL, self.seen)
        self.folder.remove_cache()
        return scores

    def _begin(self) -> int:
        """Set all up as it is before the first iteration, or after those of the snapshot."""
        if self.snapshot is None:
            on_first_rank(lambda: self.folder.begin(self.config, self._samples()))
            self._cache_features()
            for initialize in (initialize_memory, fit_new_rows):
                initialize(
                    self.step.segmenter, self._loader, self.config, self._forward_unless_stopped
                )
            self.step.begin()
            return 0
        on_first_rank(lambda: self.folder.require_same(self._samples(), self.on_event))
        self.step.restore(self.snapshot)
        self._cache_features()
        self.folder.go_back_to(self.snapshot)
        before, now = self.snapshot.meta.processes, world_size()
        if before != now:
            message = f"{now} instead of {before} processes: the same images and means, but other "
            self.on_event(Notice(f"{message}random numbers in dropout and in the memory's read"))
        return self.snapshot.meta.iteration

    def _cache_features(self) -> None:
        """Compute or open the features that the run trains from, if it caches any."""
        if self.config.compute.cache_features:
            self.cached = cached_crops(
                self.folder.path,
                self.domains,
                self.config,
                self.step.segmenter,
                self._forward_unless_stopped,
            )

    def _samples(self) -> dict[str, dict[str, Any]]:
        """Return the ids of all samples, of which there may be millions, and what they hold."""
        firsts = [domain.samples[0] for domain in self.domains]
        return {
            "train": {d.name: ids_of(d.samples) for d in self.domains},
            "scored": {t.name: ids_of(t.samples) for t in (*self.validation, *self.targets)},
            DIGESTS: self.digests,
            CLASSES: {sample.dataset: sample.reading.classes for sample in firsts},
        }

    def _digests(self) -> dict[str, str | None]:
        """Return a digest of the labels of each dataset."""
        names = {
            Selection.parse(text).dataset for text in (*self.config.sources, *self.config.targets)
        }
        return {name: PreparedDataset.open(name).summary.get("digest") for name in sorted(names)}

    def _require_same_labels(self) -> None:
        """Raise DataError where a dataset was replaced by another one since the run began."""
        now = self._digests()
        for name, digest in self.digests.items():
            if now[name] != digest:
                raise DataError(
                    f"the dataset {name} was prepared with other labels while the run trained.",
                    "Prepare it as it was, and resume the run.",
                )

    def _train(self, iterations: range) -> None:
        images = self.config.batch * len(self.domains)
        throughput = Throughput(images, self.device, announced=self.measured)
        loader = self._loader(iterations)
        for iteration, batch in zip(iterations, loader, strict=True):
            result = self.step.step(iteration, batch)
            throughput.count()
            if estimate := throughput.remaining(self.last - iteration - 1):
                self.on_event(Notice(estimate))
            self._report(iteration, batch, result, throughput)
            if self.last == iteration + 1:
                break
        self.on_event(Notice(throughput.summary()))

    def _loader(self, iterations: range) -> DomainLoader:
        if self.cached:
            workers = self.config.workers
            return DomainLoader(self.cached, iterations, workers=workers, device=self.device)
        return self.step.loader(self.domains, iterations)

    def _report(
        self, iteration: int, batch: Batch, result: StepResult, throughput: "Throughput"
    ) -> None:
        """Log, validate and save if they are due in this iteration."""
        config, done = self.config, iteration + 1
        if done < self.last and self._time_is_over():
            self.last = done
            message = f"the time is over at iteration {done}/{config.iterations}; scoring"
            self.on_event(Notice(message, warning=True))
        last = done == self.last
        self.on_event(Progress("training", done, config.iterations))
        if last or done % config.log_every == 0:
            self.step.check()
            self.on_event(throughput.speed())
            lr = learning_rate(config.optim, iteration, config.iterations)
            self._log(done, {"lr": lr, **_step_metrics(batch, result)})
        if config.evaluation.every and done % config.evaluation.every == 0 and not last:
            self.step.check()
            self._validate(done)
        stopped = any_rank(self.stop())
        if last or stopped or done % config.checkpoint.every == 0 or self._is_overdue():
            self.step.check()
            on_first_rank(self._require_same_labels)
            self.folder.save(done, self.step)
            self._save_checkpoint(done, self._network(done))
            self._draw(done)
            self.saved = time.monotonic()
        if stopped and not last:
            raise self._stopped(done)

    def _save_checkpoint(self, done: int, network: Segmenter) -> None:
        over = done == self.last < self.config.iterations
        self.folder.save_checkpoint(done, self.config, network, time_is_over=over)

    def _is_overdue(self) -> bool:
        """Return whether the time since the last save exceeds the limit on any process."""
        minutes = self.config.checkpoint.minutes
        return minutes is not None and any_rank(time.monotonic() - self.saved > 60 * minutes)

    def _emit(self, event: Event) -> None:
        self.on_event(event)
        self.loggers(event)

    def _log(self, done: int, values: dict[str, float]) -> None:
        self.folder.log(done, values)
        self._emit(Metrics(done, values))

    def _validate(self, done: int) -> None:
        """Score the sources' validation images during training."""
        matrices = self._matrices(done, self.validation, self.on_event)
        scores = _scores(self.validation, matrices)
        values = {f"val/{name}": score.miou for name, score in scores.items()}
        for name, score in scores.items():
            known = {k: iou for k, iou in score.iou.items() if iou is not None}
            values |= {f"iou/{name}/{k}": iou for k, iou in known.items()}
        self._log(done, values)
        self._draw(done, matrices)
        if self.folder.writes:
            shown = {"prediction": self._predictor(done)}
            sheets = {
                t.name: comparison_sheet(shown, t.samples[:_SHOWN], classes=t.classes)
                for t in self.validation
            }
            self.folder.write_predictions(sheets)
            self._emit(Images(done, sheets))

    def _draw(self, done: int, validated: Mapping[str, ConfusionMatrix] | None = None) -> None:
        """Write the table and the plots of the run so far, with a validation's if there is one."""
        self.folder.write_results()
        self.folder.draw(self._network(done))
        for target in self.validation:
            if validated and target.name in validated:
                matrix, space = validated[target.name], target.classes.space
                self.folder.draw_confusion(target.name, done, matrix, space)

    def _matrices(
        self, done: int, targets: Sequence[Target], on_event: Listener
    ) -> dict[str, ConfusionMatrix]:
        """Return the confusion matrix of each target that has labelled pixels."""
        predictor = self._predictor(done)
        matrices = {
            target.name: confusion_matrix(
                predictor,
                target.samples,
                classes=target.classes,
                on_event=on_event,
                task=f"scoring {target.name}",
            )
            for target in targets
        }
        for name in (name for name, matrix in matrices.items() if not matrix.pixels):
            message = f"no pixel of {name} is labelled (test sets have no labels); it is not scored"
            on_event(Notice(message, warning=True))
        return {name: matrix for name, matrix in matrices.items() if matrix.pixels}

    def _network(self, done: int) -> Segmenter:
        """Return the network after `done` iterations, as it is scored and saved."""
        if self._scored is None or self._scored[0] != done:
            last = self.config.iterations
            batches = self._loader(range(last, last + self.config.optim.ema_batches))
            self._scored = done, self.step.network(batches)
        return self._scored[1]

    def _predictor(self, done: int) -> Predictor:
        """Return a predictor with the network as in its checkpoint, in full precision."""
        return Predictor(self._network(done), device=str(self.device), protocol=PROTOCOLS[PROTOCOL])

    def _stopped(self, done: int) -> StoppedRunError:
        return StoppedRunError(
            f"stopped at iteration {done}/{self.config.iterations}; the checkpoint is saved.",
            f"Resume with: pinmem train --resume {shell_join(self.folder.path)}",
        )

    def _forward_unless_stopped(self, event: Event) -> None:
        """Forward an event, and stop if asked; used outside of the iterations."""
        self.on_event(event)
        if not self.stop():
            return
        if self.trained:
            raise self._stopped(self.last)
        if self.snapshot:
            raise self._stopped(self.snapshot.meta.iteration)
        raise StoppedRunError("stopped before the first iteration; nothing is saved.")


def _scores(
    targets: Sequence[Target], matrices: Mapping[str, ConfusionMatrix]
) -> dict[str, Scores]:
    return {
        target.name: Scores.of(matrices[target.name], len(target.samples), target.classes.space)
        for target in targets
        if target.name in matrices
    }


def _step_metrics(batch: Batch, result: StepResult) -> dict[str, float]:
    """Return the number of redrawn crops, and all loss terms of all phases, over all processes."""
    terms = {
        f"{phase}/{name}": term.detach()
        for phase, losses in result.losses.items()
        for name, term in {**losses.terms, "total": losses.total}.items()
    }
    means = torch.stack([*terms.values()])
    all_reduce_mean([means])
    redrawn = sum(all_gather(batch.redrawn))
    return {"redrawn": redrawn, **dict(zip(terms, means.tolist(), strict=True))}
