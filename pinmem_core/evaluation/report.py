"""Scoring a checkpoint on targets, with all that a reader must know beside the figures."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pinmem_core.errors import ConfigError
from pinmem_core.evaluation.evaluate import Target, load_target
from pinmem_core.evaluation.examples import find_examples
from pinmem_core.evaluation.intervals import bootstrap_interval
from pinmem_core.evaluation.memory_views import pictures as memory_pictures
from pinmem_core.evaluation.origin import Origin
from pinmem_core.evaluation.report_data import LEVEL, DomainReport, Report
from pinmem_core.evaluation.report_html import Pictures, as_html
from pinmem_core.evaluation.results import evaluate_domain
from pinmem_core.events import Listener, ignore
from pinmem_core.files import staged_folder, write_whole
from pinmem_core.inference import Predictor, get_protocol
from pinmem_core.inference.predictor import Precision
from pinmem_core.model import load_checkpoint
from pinmem_core.model.found import checkpoint_of, run_folder
from pinmem_core.preparation import PreparedDataset, Selection, draw_missing

__all__ = ["DATA", "PAGE", "Report", "evaluate_run", "report_folder"]

DATA = "report.json"
PAGE = "report.html"
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
        protocol: str,
        precision: Precision,
        compile: bool,
        device: str,
        on_event: Listener,
    ) -> "_Subject":
        shown = get_protocol(protocol)
        checkpoint = checkpoint_of(run, on_event=on_event)
        segmenter, config = load_checkpoint(checkpoint)
        training = config.get("training", {})
        wanted = tuple(dict.fromkeys(targets or training.get("targets", ())))
        if not wanted:
            raise ConfigError(
                "no target is named, and the run has none.", "Name some with --targets."
            )
        draw_missing(wanted, on_event)
        chosen = [load_target(text, trained_on=training.get("sources", ())) for text in wanted]
        predictor = Predictor(
            segmenter,
            device=device,
            protocol=shown,
            precision=precision,
            compile=compile,
            on_event=on_event,
        )
        return cls(predictor, chosen, Origin.of(checkpoint, protocol, predictor, precision))

    def score(self, on_event: Listener) -> Report:
        domains = {}
        for target in self.targets:
            task = f"scoring {target.name}"
            result = evaluate_domain(self.predictor, target, on_event=on_event, task=task)
            digest = PreparedDataset.open(Selection.parse(target.name).dataset).summary["digest"]
            interval = bootstrap_interval(result.images, level=LEVEL)
            domains[target.name] = DomainReport(result, digest, interval)
        return Report(self.origin, domains)

    def pictures(self, report: Report, on_event: Listener) -> Pictures:
        count = max(1, min(_EXAMPLES, _ROOM // len(self.targets)))
        examples = {}
        for target in self.targets:
            result = report.domains[target.name].result
            examples[target.name] = find_examples(
                self.predictor, target, result, count, on_event=on_event
            )
        memory = memory_pictures(self.predictor, self.targets, on_event=on_event)
        return Pictures(examples, memory)


def evaluate_run(
    run: str,
    targets: Sequence[str] = (),
    *,
    protocol: str = "paper-train",
    precision: Precision = "float32",
    compile: bool = False,
    device: str = "auto",
    output: Path | None = None,
    on_event: Listener = ignore,
) -> Report:
    """Score a run's last checkpoint.

    Args:
        run: A run's folder or name, a checkpoint folder, or `user/name[@revision]` on the Hub.
        targets: `dataset[:domain][@split]`; none for the targets that the run was given.
        protocol: What `get_protocol` takes.
        precision: Of the network's convolutions.
        compile: Have torch compile the network.
        device: Where to compute.
        output: New folder for `report.json` and `report.html`; None writes nothing.
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
        report = subject.score(on_event)
        if folder:
            page = as_html(report, subject.pictures(report, on_event))
            write_whole(folder / DATA, report.as_text().encode())
            write_whole(folder / PAGE, page.encode())
    return report


def report_folder(run: str, protocol: str, *, on_event: Listener = ignore) -> Path:
    """Return the folder that a report made now is kept in where the user names none.

    Raises:
        DataError: There is no such run or model.
        MachineError: The Hub is asked, and cannot be reached.
    """
    name = f"{protocol}-{datetime.now():%Y%m%d-%H%M%S}"
    return run_folder(checkpoint_of(run, on_event=on_event)) / "eval" / name
