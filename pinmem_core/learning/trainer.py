"""A whole run: from a configuration to a checkpoint and its scores."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pinmem_core.config import TrainConfig
from pinmem_core.devices import pick_device
from pinmem_core.errors import DataError, StoppedRunError, quoted
from pinmem_core.evaluation import (
    Scores,
    Target,
    TrainedOn,
    evaluate,
    load_target,
    load_validation,
)
from pinmem_core.evaluation.pictures import comparison_sheet
from pinmem_core.events import Event, Listener, Metrics, Notice, Progress, ignore
from pinmem_core.home import register_run
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.learning.initialization import initial_segmenter, initialize_memory
from pinmem_core.learning.iteration import Iteration
from pinmem_core.learning.method import StepResult
from pinmem_core.learning.pace import Pace
from pinmem_core.learning.resolve import resolve
from pinmem_core.learning.run_folder import DIGESTS, RunFolder
from pinmem_core.learning.schedule import learning_rate
from pinmem_core.learning.snapshots import Snapshot
from pinmem_core.learning.tensorboard import TensorBoard
from pinmem_core.loading import Batch, Domain, DomainLoader, load_domains
from pinmem_core.locks import locked
from pinmem_core.model import Segmenter
from pinmem_core.model.compiling import compiling_explained
from pinmem_core.preparation import PreparedDataset, Selection, draw_missing, ids_of
from pinmem_core.ranks import (
    any_rank,
    average_over_ranks,
    from_all,
    joined,
    local_rank,
    on_first_rank,
    rank,
    world_size,
)

PROTOCOL = "paper-train"
"""The protocol by which a run scores itself."""
_SHOWN = 4
"""Predictions of each domain that TensorBoard shows."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        run: Its folder.
        checkpoint: The last checkpoint, inside it.
        iterations: That were trained.
        scores: By phase ("source", "target") and name of the domain.
        seen: By name of the domain, whether it was trained on.
    """

    run: Path
    checkpoint: Path
    iterations: int
    scores: dict[str, dict[str, Scores]]
    seen: dict[str, bool | None]


def train(
    config: TrainConfig,
    run: Path,
    *,
    on_event: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train a segmenter, and score it on its sources' validation splits and on the targets.

    The run folder gets `config.json`, `samples.json` (which samples were used), `metrics.jsonl`
    (a line a logged iteration), `snapshots/` (from which `resume` goes on), `checkpoint/`,
    `scores.json` and pictures of the losses and the memory. On the CPU all of these are functions
    of the configuration and the data. When training fails before its first snapshot, nothing is
    left behind. Processes that `torchrun` started train one network together.

    Args:
        config: What to do.
        run: The folder to make; of several processes, the first decides.
        on_event: Hears of the progress and of the metrics, in the first process alone.
        stop: Asked after each iteration; the run saves its state and ends when it returns True.

    Raises:
        ConfigError: The configuration contradicts itself, or the run folder is not empty.
        DataError: A source or target is missing, empty or damaged.
        MachineError: This machine lacks the device, or torch cannot compile the network.
        StoppedRunError: `stop` said so.
    """
    config = resolve(config)
    with joined():
        on_event = on_event if rank() == 0 else ignore
        folder = RunFolder(on_first_rank(lambda: run))
        on_first_rank(folder.require_unused)
        on_first_rank(lambda: draw_missing([*config.sources, *config.targets], on_event))
        with _alone_in(folder, on_event):
            on_first_rank(folder.require_unused)  # another process may have been faster
            try:
                return _complete(_Trainer(config, folder, on_event, stop))
            except BaseException:
                folder.remove_unless_saved()
                raise


def resume(
    run: Path, *, on_event: Listener = ignore, stop: Callable[[], bool] = lambda: False
) -> RunResult:
    """Go on with a run that was stopped or killed, and end as if it had never been.

    Args:
        run: Its folder.
        on_event: As `train` has it.
        stop: As `train` has it.

    Raises:
        ConfigError: The run has ended.
        DataError: The folder holds no run, or the samples are not those that it began with.
        MachineError: This machine lacks the device, or another process is training the run.
        StoppedRunError: `stop` said so.
    """
    with joined():
        on_event = on_event if rank() == 0 else ignore
        folder = RunFolder(on_first_rank(lambda: run))
        config = folder.read_config()
        with _alone_in(folder, on_event):
            snapshot = folder.newest_snapshot(on_event)
            done = snapshot.facts.iteration if snapshot else 0
            on_event(Notice(f"going on after iteration {done} of {config.iterations}"))
            return _complete(_Trainer(config, folder, on_event, stop, snapshot))


def _alone_in(folder: RunFolder, on_event: Listener) -> AbstractContextManager[None]:
    """Keep other runs out of a folder; the first of several processes holds the lock for all."""
    if not folder.writes:
        return nullcontext()
    return locked(folder.lock, f"the run {folder.path}", on_event)


def _complete(trainer: "_Trainer") -> RunResult:
    """Run to the end; where that fails, say how to go on from what is saved."""
    folder, on_event = trainer.folder, trainer.on_event
    try:
        with trainer, compiling_explained():
            scores = trainer.run()
    except BaseException as error:
        if folder.is_saved() and not isinstance(error, StoppedRunError):
            hint = f"'pinmem train --resume {quoted(folder.path)}' goes on from the last snapshot"
            on_event(Notice(hint, warning=True))
        raise
    if folder.writes:
        try:
            register_run(folder.path)
        except OSError as error:
            on_event(Notice(f"the run cannot be noted as the newest: {error}", warning=True))
    return RunResult(
        folder.path, folder.checkpoint, trainer.config.iterations, scores, trainer.seen
    )


class _Trainer(ExitStack):
    """The collaborators of one run, and the loop that joins them."""

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
        self.domains, self.validation, self.targets = on_first_rank(self._list)
        self.digests = on_first_rank(self._digests)
        self.seen = {target.name: target.seen for target in (*self.validation, *self.targets)}
        for target in self.targets:
            if warning := target.warning():
                on_event(Notice(warning, warning=True))
        # Only now: weights are not downloaded for data that is not there.
        segmenter = Segmenter(config.model) if snapshot else initial_segmenter(config)
        self.step = Iteration(config, segmenter, self.device)
        self.tensorboard: TensorBoard | None = None
        self.trained = False
        self.saved = time.monotonic()

    def _list(self) -> tuple[list[Domain], list[Target], list[Target]]:
        """Return what is trained on, what validates it, and the targets, from all manifests."""
        config, limit = self.config, self.config.evaluation.max_images
        domains = load_domains(
            config.sources, pseudo_domains=config.pseudo_domains, seed=config.seed
        )
        validation = load_validation(config.sources, limit, self.on_event)
        ids = (ids_of(domain.samples) for domain in domains)
        trained_on = TrainedOn.of_samples(config.sources, ids)
        self.folder.trained_on = trained_on.as_json()  # of use to the process that writes
        return domains, validation, [load_target(t, trained_on, limit) for t in config.targets]

    def run(self) -> dict[str, dict[str, Scores]]:
        """Train to the end and return the scores of the last checkpoint."""
        done = self._begin()
        if self.config.tensorboard and self.folder.writes:
            board = TensorBoard(self.folder.path / "tensorboard", after=done)
            self.tensorboard = self.enter_context(board)
        self._train(range(done, self.config.iterations))
        self.trained = True
        self.folder.save_checkpoint(self.config.iterations, self.step)
        scores = {
            "source": self._scores(self.validation, self._tell_unless_stopped),
            "target": self._scores(self.targets, self._tell_unless_stopped),
        }
        self.folder.draw(self.step.segmenter)
        self.folder.finish(scores, PROTOCOL, self.seen)
        return scores

    def _begin(self) -> int:
        """Set all up as it is before the first iteration, or after those of the snapshot."""
        if self.snapshot is None:
            on_first_rank(lambda: self.folder.begin(self.config, self._samples()))
            initialize_memory(
                self.step.segmenter,
                self.domains,
                self.config,
                self.device,
                self._tell_unless_stopped,
            )
            return 0
        on_first_rank(lambda: self.folder.require_same(self._samples(), self.on_event))
        self.step.restore(self.snapshot)
        self.folder.go_back_to(self.snapshot)
        before, now = self.snapshot.facts.processes, world_size()
        if before != now:
            told = f"{now} in place of {before} processes: the same images and means, but other "
            self.on_event(Notice(f"{told}random numbers in dropout and the reading"))
        return self.snapshot.facts.iteration

    def _samples(self) -> dict[str, dict[str, Any]]:
        """Return the ids of all samples, of which there may be millions, and their digests."""
        return {
            "train": {d.name: ids_of(d.samples) for d in self.domains},
            "scored": {t.name: ids_of(t.samples) for t in (*self.validation, *self.targets)},
            DIGESTS: self.digests,
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
        pace = Pace(self.config.batch * len(self.domains), self.device)
        loader = DomainLoader.of(
            self.domains,
            self.config,
            iterations,
            device=self.device,
            shard=(rank(), world_size()),
        )
        for iteration, batch in zip(iterations, loader, strict=True):
            result = self.step.step(iteration, batch)
            pace.count()
            self._report(iteration, batch, result, pace)
        self.on_event(Notice(pace.summary()))

    def _report(self, iteration: int, batch: Batch, result: StepResult, pace: Pace) -> None:
        """Log, validate and save where this iteration is due to."""
        config, done = self.config, iteration + 1
        last = done == config.iterations
        self.on_event(Progress("training", done, config.iterations))
        if last or done % config.log_every == 0:
            self.step.check()
            self.on_event(pace.tell())
            lr = learning_rate(config.optim, iteration, config.iterations)
            self._log(done, {"lr": lr, **_figures(batch, result)})
        if config.evaluation.every and done % config.evaluation.every == 0 and not last:
            self.step.check()
            self._validate(done)
        stopped = any_rank(self.stop())
        if last or stopped or done % config.checkpoint.every == 0 or self._is_overdue():
            self.step.check()
            on_first_rank(self._require_same_labels)
            self.folder.save(done, self.step)
            self.saved = time.monotonic()
        if stopped and not last:
            raise self._stopped(done)

    def _is_overdue(self) -> bool:
        """Return whether the last save was too long ago, by the clock of any process."""
        minutes = self.config.checkpoint.minutes
        return minutes is not None and any_rank(time.monotonic() - self.saved > 60 * minutes)

    def _log(self, done: int, values: dict[str, float]) -> None:
        self.folder.log(done, values)
        event = Metrics(done, values)
        self.on_event(event)
        if self.tensorboard:
            self.tensorboard(event)

    def _validate(self, done: int) -> None:
        """Look at the sources' validation images in mid-run."""
        scores = self._scores(self.validation, self.on_event)
        values = {f"val/{name}": score.miou for name, score in scores.items()}
        for name, score in scores.items():
            known = {k: iou for k, iou in score.iou.items() if iou is not None}
            values |= {f"iou/{name}/{k}": iou for k, iou in known.items()}
        self._log(done, values)
        if self.tensorboard:
            predictor = self._predictor()
            self.tensorboard.pictures(
                done,
                {
                    target.name: comparison_sheet(
                        {"prediction": predictor}, target.samples[:_SHOWN]
                    )
                    for target in self.validation
                },
            )

    def _scores(self, targets: list[Target], on_event: Listener) -> dict[str, Scores]:
        predictor = self._predictor()
        scores = {
            target.name: evaluate(
                predictor, target.samples, on_event=on_event, task=f"scoring {target.name}"
            )
            for target in targets
        }
        for name in (name for name, of_target in scores.items() if not of_target.pixels):
            told = f"no pixel of {name} is labelled (test sets keep labels back); it is not scored"
            on_event(Notice(told, warning=True))
        return {name: of_target for name, of_target in scores.items() if of_target.pixels}

    def _predictor(self) -> Predictor:
        """Return a predictor with the network as others will load it, in full precision."""
        plain = Segmenter(self.config.model)
        plain.load_state_dict(self.step.segmenter.state_dict())
        return Predictor(plain, device=str(self.device), protocol=PROTOCOLS[PROTOCOL])

    def _stopped(self, done: int) -> StoppedRunError:
        return StoppedRunError(
            f"stopped after iteration {done} of {self.config.iterations}; all is saved.",
            f"'pinmem train --resume {quoted(self.folder.path)}' goes on.",
        )

    def _tell_unless_stopped(self, event: Event) -> None:
        """Pass an event on where nothing is lost by stopping: outside the iterations."""
        self.on_event(event)
        if not self.stop():
            return
        if self.trained:
            raise self._stopped(self.config.iterations)
        raise StoppedRunError("stopped before the first iteration; nothing is kept.")


def _figures(batch: Batch, result: StepResult) -> dict[str, float]:
    """Return the crops drawn again, and every loss term of every phase over all ranks."""
    terms = {
        f"{phase}/{name}": term.detach()
        for phase, losses in result.losses.items()
        for name, term in {**losses.terms, "total": losses.total}.items()
    }
    means = torch.stack([*terms.values()])
    average_over_ranks([means])
    redrawn = sum(from_all(batch.redrawn))
    return {"redrawn": redrawn, **dict(zip(terms, means.tolist(), strict=True))}
