"""Evaluate a checkpoint on targets and write its report."""

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
from pinmem_core.models import load_checkpoint
from pinmem_core.models.found import checkpoint_of, run_folder
from pinmem_core.preparation import PreparedDataset, Selection, draw_missing
from pinmem_core.preparation.spread import spread

__all__ = ["DATA", "PAGE", "Report", "evaluate_run", "report_folder"]

DATA = "report.json"
PAGE = "report.html"
PROTOCOL = "paper-train"
"""Default protocol of a checkpoint that names none."""
_EXAMPLES = 3
"""Maximum number of worst examples, and of best examples, per target."""
_ROOM = 10
"""Maximum number of worst, and of best, examples of all targets; it keeps a page below 5 MB."""


@dataclass(frozen=True)
class _Subject:
    """A predictor with its targets and origin."""

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
            get_protocol(protocol)  # fail before loading anything
        checkpoint = checkpoint_of(run, on_event=on_event)
        segmenter, config = load_checkpoint(checkpoint)
        protocol = protocol or protocol_of(config, PROTOCOL)
        training = config.get("training", {})
        wanted = tuple(dict.fromkeys(targets or training.get("targets", ())))
        if not wanted:
            raise ConfigError(
                "no target is given, and the run has none.", "Name targets with --targets."
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
    """Evaluate the last checkpoint of a run.

    Args:
        run: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        targets: Targets as `dataset[:domain][@split]`; empty for the targets of the run.
        protocol: Protocol as for `get_protocol`; None for the checkpoint's own, or else
            "paper-train".
        precision: Floating-point type of the network's convolutions.
        compile: Whether torch compiles the network.
        device: Device name, as for `Predictor`.
        output: New folder for `report.json` and `report.html`; None to write no report.
        pictures: Whether `report.html` shows the worst and best images and the memory.
        on_event: Callback for progress events and warnings.

    Raises:
        ConfigError: A target or the protocol does not exist, there are no targets, or `output`
            exists and is not empty.
        DataError: The run or the data of a target are missing or damaged.
        MachineError: The device is missing, `output` is not writable, or compilation fails.
    """
    if output and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists already.", "Choose another '--output'.")
    subject = _Subject.load(run, targets, protocol, precision, compile, device, on_event)
    # Create the folder first, so that an unwritable folder fails before the evaluation.
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
    """Return the `samples.json` of a checkpoint's run, or None if it is missing or damaged."""
    try:
        return read_json_object(run_folder(checkpoint) / "samples.json", 16 * LARGEST)
    except DataError:
        return None


def report_folder(checkpoint: Path, protocol: str) -> Path:
    """Return the default folder of a report created now."""
    name = f"{protocol}-{datetime.now():%Y%m%d-%H%M%S}"
    return run_folder(checkpoint) / "eval" / name
