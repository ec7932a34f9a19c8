"""Scoring a checkpoint on targets, with all that a reader must know beside the figures."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pinmem_core.documents import LARGEST, read_json_object
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation.evaluate import Target, load_target
from pinmem_core.evaluation.examples import Gallery
from pinmem_core.evaluation.intervals import bootstrap_interval
from pinmem_core.evaluation.memory_views import SAMPLES_PER_DOMAIN
from pinmem_core.evaluation.memory_views import pictures as memory_pictures
from pinmem_core.evaluation.origin import Origin
from pinmem_core.evaluation.report_data import LEVEL, DomainReport, Report
from pinmem_core.evaluation.report_html import Pictures, as_html
from pinmem_core.evaluation.results import evaluate_domain
from pinmem_core.evaluation.trained_on import TrainedOn
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import staged_folder, write_whole
from pinmem_core.inference import Predictor, get_protocol, protocol_of
from pinmem_core.inference.predictor import Precision
from pinmem_core.model import load_checkpoint
from pinmem_core.model.found import checkpoint_of, run_folder
from pinmem_core.preparation import PreparedDataset, Selection, draw_missing
from pinmem_core.preparation.spread import spread

__all__ = ["DATA", "PAGE", "Report", "evaluate_run", "report_folder"]

DATA = "report.json"
PAGE = "report.html"
PROTOCOL = "paper-train"
"""The protocol of a checkpoint that names none."""
_EXAMPLES = 3
"""The most images of a target that a page shows as its worst, and as its best."""
_ROOM = 10
"""The most of either of all targets together, so that a page stays under 5 MB."""


@dataclass(frozen=True)
class _Subject:
    """What is scored, and on what."""

    predictor: Predictor
    targets: list[Target]
    origin: Origin

    @classmethod
    def load(
        cls,
        run: str,
        targets: Sequence[str],
        protocol: str | None,
        precision: Precision,
        compile: bool,
        device: str,
        on_event: Listener,
    ) -> "_Subject":
        if protocol:
            get_protocol(protocol)  # a wrong name is said before anything is loaded
        checkpoint = checkpoint_of(run, on_event=on_event)
        segmenter, config = load_checkpoint(checkpoint)
        protocol = protocol or protocol_of(config, PROTOCOL)
        training = config.get("training", {})
        wanted = tuple(dict.fromkeys(targets or training.get("targets", ())))
        if not wanted:
            raise ConfigError(
                "no target is named, and the run has none.", "Name some with --targets."
            )
        draw_missing(wanted, on_event)
        trained_on = TrainedOn.of_checkpoint(config, _samples(checkpoint))
        chosen = [load_target(text, trained_on) for text in wanted]
        for target in chosen:
            if warning := target.warning():
                on_event(Notice(warning, warning=True))
        predictor = Predictor(
            segmenter,
            device=device,
            protocol=get_protocol(protocol),
            precision=precision,
            compile=compile,
            on_event=on_event,
        )
        return cls(predictor, chosen, Origin.of(checkpoint, protocol, predictor, precision))

    def galleries(self) -> dict[str, Gallery]:
        """Return an empty gallery for each target."""
        count = max(1, min(_EXAMPLES, _ROOM // len(self.targets)))
        has_memory = self.predictor.segmenter.memory is not None
        return {
            target.name: Gallery(
                count,
                [s.id for s in spread(target.samples, SAMPLES_PER_DOMAIN)] if has_memory else [],
            )
            for target in self.targets
        }

    def score(self, galleries: Mapping[str, Gallery], on_event: Listener) -> Report:
        domains = {}
        for target in self.targets:
            result = evaluate_domain(
                self.predictor,
                target,
                gallery=galleries.get(target.name),
                on_event=on_event,
                task=f"scoring {target.name}",
            )
            digest = PreparedDataset.open(Selection.parse(target.name).dataset).summary["digest"]
            interval = bootstrap_interval(result.images, level=LEVEL)
            domains[target.name] = DomainReport(result, digest, interval)
        return Report(self.origin, domains)

    def pictures(self, galleries: Mapping[str, Gallery], on_event: Listener) -> Pictures:
        predictions = {name: gallery.predictions for name, gallery in galleries.items()}
        memory = memory_pictures(
            self.predictor, self.targets, predictions=predictions, on_event=on_event
        )
        return Pictures({name: of.examples() for name, of in galleries.items()}, memory)


def evaluate_run(
    run: str,
    targets: Sequence[str] = (),
    *,
    protocol: str | None = None,
    precision: Precision = "float32",
    compile: bool = False,
    device: str = "auto",
    output: Path | None = None,
    pictures: bool = True,
    on_event: Listener = ignore,
) -> Report:
    """Score a run's last checkpoint.

    Args:
        run: A name that `checkpoint_of` takes.
        targets: `dataset[:domain][@split]`; none for the targets that the run was given.
        protocol: What `get_protocol` takes; None for the checkpoint's own, or else "paper-train".
        precision: Of the network's convolutions.
        compile: Have torch compile the network.
        device: Where to compute.
        output: New folder for `report.json` and `report.html`; None writes nothing.
        pictures: Show in `report.html` the worst and best images, and the memory.
        on_event: Hears of the progress.

    Raises:
        ConfigError: A target or the protocol does not exist, there are no targets, or `output` is
            in use.
        DataError: The run, or a target's data, is missing or damaged.
        MachineError: The device is missing, `output` cannot be written, or compiling fails.
    """
    if output and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists already.", "Choose another '--output'.")
    subject = _Subject.load(run, targets, protocol, precision, compile, device, on_event)
    # Made before the work, so that a folder that cannot be written to costs none.
    with staged_folder(output) if output else nullcontext() as folder:
        galleries = subject.galleries() if folder and pictures else {}
        report = subject.score(galleries, on_event)
        if folder:
            shown = subject.pictures(galleries, on_event) if galleries else None
            page = as_html(report, shown)
            write_whole(folder / DATA, report.as_text().encode())
            write_whole(folder / PAGE, page.encode())
    return report


def _samples(checkpoint: Path) -> dict[str, Any] | None:
    """Return the `samples.json` of the run that a checkpoint lies in; None where there is none."""
    try:
        return read_json_object(run_folder(checkpoint) / "samples.json", 16 * LARGEST)
    except DataError:
        return None


def report_folder(checkpoint: Path, protocol: str) -> Path:
    """Return the folder that a report made now is kept in where the user names none."""
    name = f"{protocol}-{datetime.now():%Y%m%d-%H%M%S}"
    return run_folder(checkpoint) / "eval" / name
