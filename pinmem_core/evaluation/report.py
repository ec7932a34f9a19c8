"""Evaluate a checkpoint on targets and write its report."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.checkpoints.hub import checkpoint_of, run_folder
from pinmem_core.checkpoints.model_card import seen_in_words
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import PreparedDataset, Selection
from pinmem_core.data.samples import evenly_spaced
from pinmem_core.distributed import world_size
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation.bootstrap import bootstrap_interval
from pinmem_core.evaluation.evaluate import Examples, Gallery, evaluate_domain
from pinmem_core.evaluation.memory_analysis import (
    SAMPLES_PER_DOMAIN,
    Draw,
    Picture,
    memory_pictures,
)
from pinmem_core.evaluation.memory_use import memory_of, memory_use
from pinmem_core.evaluation.metrics import OCCURRING, Calibration, ConfusionMatrix
from pinmem_core.evaluation.plots import plot_reliability
from pinmem_core.evaluation.results import LEVEL, DomainResult, Origin, Report
from pinmem_core.evaluation.targets import Target, load_target, shared_images
from pinmem_core.evaluation.trained_on import TrainedOn
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import staged_folder, write_atomic
from pinmem_core.inference import Predictor, get_protocol, protocol_of
from pinmem_core.inference.predictor import Precision
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import load_checkpoint
from pinmem_core.plots import DARK, LIGHT, plot_bytes
from pinmem_core.templates import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = "report.json"
PAGE = "report.html"
PROTOCOL = "paper-train"
"""Default protocol of a checkpoint that names none."""
_TEMPLATE = Path(__file__).parent / "templates" / PAGE
_EXAMPLES = 3
"""Maximum number of worst examples, and of best examples, per target."""
_ALL_EXAMPLES = 10
"""Maximum number of worst, and of best, examples of all targets; it keeps a page below 5 MB."""
_JPEG_QUALITY = 82
_NAMED = 5
"""Maximum number of classes that a warning names."""


def evaluate_run(
    run: str,
    targets: Sequence[str] = (),
    *,
    protocol: str | None = None,
    classes: str | None = None,
    precision: Precision = "float32",
    compile: bool = False,
    device: str = "auto",
    output: Path | None = None,
    pictures: bool = True,
    memory: bool = False,
    on_event: Listener = ignore,
) -> Report:
    """Evaluate the last checkpoint of a run.

    Args:
        run: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        targets: Targets as `dataset[:domain][@split]`, or a text with commas; empty for the run's.
        protocol: Protocol as for `get_protocol`; None for the checkpoint's own, or else
            "paper-train".
        classes: Name of the label space of the scores, as for `ScoredClasses.of`.
        precision: Floating-point type of the network's convolutions.
        compile: Whether torch compiles the network.
        device: Device name, as for `Predictor`.
        output: New folder for `report.json` and `report.html`; None to write no report.
        pictures: Whether `report.html` shows the worst and best images and the memory.
        memory: Whether to measure how much the network uses its memory, which doubles the time.
        on_event: Callback for progress events and warnings.

    Raises:
        ConfigError: A name does not exist, there are no targets, a target cannot be scored in these
            classes, `memory` is set for a network without one, or `output` is not empty.
        DataError: Data of the run or of a target are missing or damaged; `output` has the others.
        KeyboardInterrupt: Ctrl-C was pressed; `output` has the finished targets, if there are any.
        MachineError: The device is missing, `output` is not writable, or compilation fails.
    """
    if output and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists already.", "Choose another '--output'.")
    if protocol:
        get_protocol(protocol)  # fail before loading anything
    checkpoint = checkpoint_of(run, on_event=on_event)
    segmenter, config = load_checkpoint(checkpoint)
    protocol = protocol or protocol_of(config, PROTOCOL)
    named = targets or config.get("training", {}).get("targets", ())
    trained_on = TrainedOn.of_folder(checkpoint, config)
    chosen = _targets(named, segmenter.label_space, classes, trained_on, on_event)
    predictor = Predictor(
        segmenter,
        device=device,
        protocol=get_protocol(protocol),
        precision=precision,
        compile=compile,
        on_event=on_event,
    )
    if memory:
        memory_of(predictor)  # fail before the evaluation
    origin = Origin.of(checkpoint, protocol, predictor, precision)
    # Create the folder first, so that an unwritable folder fails before the evaluation.
    with staged_folder(output) if output else nullcontext() as folder:
        galleries = _galleries(predictor, chosen) if folder and pictures else {}
        domains, failed = _score(predictor, chosen, galleries, on_event, memory=memory)
        if failed and not (folder and domains):
            raise _failure(failed)
        report = Report(origin, domains)
        if folder:
            _write(report, folder, predictor, chosen, galleries, on_event)
    if failed:
        raise _failure(failed, output)
    return report


def _write(
    report: Report,
    folder: Path,
    predictor: Predictor,
    targets: Sequence[Target],
    galleries: Mapping[str, Gallery],
    on_event: Listener,
) -> None:
    """Write the files of a report; they show pictures if there are galleries."""
    scored = [target for target in targets if target.name in report.domains]
    shown = _pictures(predictor, scored, galleries, on_event) if galleries else None
    page = as_html(report, shown)
    write_atomic(folder / DATA, report.as_text().encode())
    write_atomic(folder / PAGE, page.encode())


def _failure(
    failed: Mapping[str, DataError | KeyboardInterrupt], output: Path | None = None
) -> DataError | KeyboardInterrupt:
    """Return the error for targets without scores; the others are in `output`."""
    kept = [f"The scores of the other targets are in {output / PAGE}."] if output else []
    errors = [error for error in failed.values() if isinstance(error, DataError)]
    if len(errors) < len(failed):
        return KeyboardInterrupt(" ".join(["interrupted.", *kept]))
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    message = " ".join(dict.fromkeys(error.message for error in errors))
    return DataError(message, "\n".join([*hints, *kept]) or None)


def _targets(
    targets: Sequence[str],
    network: LabelSpace,
    classes: str | None,
    trained_on: TrainedOn,
    on_event: Listener,
) -> list[Target]:
    texts = targets.split(",") if isinstance(targets, str) else targets
    names = tuple(dict.fromkeys(text.strip() for text in texts))
    if not names:
        raise ConfigError(
            "no target is given, and the run has none.", "Name targets with --targets."
        )
    prepare_synthetic(names, on_event)
    chosen = [load_target(name, trained_on, network=network, classes=classes) for name in names]
    for warning in (*(target.warning() for target in chosen), *shared_images(chosen)):
        if warning:
            on_event(Notice(warning, warning=True))
    return chosen


def _galleries(predictor: Predictor, targets: Sequence[Target]) -> dict[str, Gallery]:
    """Return an empty gallery for each target."""
    count = max(1, min(_EXAMPLES, _ALL_EXAMPLES // len(targets)))
    analyzed = SAMPLES_PER_DOMAIN if predictor.segmenter.memory is not None else 0
    return {
        target.name: Gallery(
            count,
            [sample.id for sample in evenly_spaced(target.samples, analyzed)],
            target.classes.space,
        )
        for target in targets
    }


def _score(
    predictor: Predictor,
    targets: Sequence[Target],
    galleries: Mapping[str, Gallery],
    on_event: Listener,
    *,
    memory: bool,
) -> tuple[dict[str, DomainResult], dict[str, DataError | KeyboardInterrupt]]:
    """Return the result of each target, and the errors of those that cannot be scored.

    Ctrl-C ends the scoring. Processes that share the work stop at the first error, which the others
    may not have.
    """
    domains: dict[str, DomainResult] = {}
    failed: dict[str, DataError | KeyboardInterrupt] = {}
    for target in targets:
        try:
            result = evaluate_domain(
                predictor,
                target,
                gallery=galleries.get(target.name),
                on_event=on_event,
                task=f"scoring {target.name}",
            )
            use = memory_use(predictor, target, result, on_event=on_event) if memory else None
        except (DataError, KeyboardInterrupt) as error:
            if world_size() > 1:
                raise
            failed[target.name] = error
            if isinstance(error, DataError):
                continue
            break
        if missing := [n for n in target.classes.missing if result.scores.iou[n] is not None]:
            on_event(Notice(_lacks(target, missing), warning=True))
        digest = PreparedDataset.open(Selection.parse(target.name).dataset).summary["digest"]
        domains[target.name] = replace(
            result,
            interval=bootstrap_interval(result.images, level=LEVEL),
            dataset_digest=digest,
            memory=use.as_json() if use else None,
        )
    return domains, failed


def _lacks(target: Target, classes: Sequence[str]) -> str:
    """Return a warning that a network does not have some classes of a target."""
    others = f" and {len(classes) - _NAMED} others" * (len(classes) > _NAMED)
    return (
        f"the network has no class for {', '.join(classes[:_NAMED])}{others} of {target.name}, so "
        "that their IoU is 0 in its mIoU"
    )


def _pictures(
    predictor: Predictor,
    targets: Sequence[Target],
    galleries: Mapping[str, Gallery],
    on_event: Listener,
) -> "Pictures":
    predictions = {name: gallery.predictions for name, gallery in galleries.items()}
    memory = memory_pictures(predictor, targets, predictions=predictions, on_event=on_event)
    return Pictures({name: gallery.examples() for name, gallery in galleries.items()}, memory)


def new_report_folder(checkpoint: Path, protocol: str) -> Path:
    """Create and return an empty folder for a report, which no other evaluation has.

    Raises:
        OSError: The folder of the run is not writable.
    """
    name = f"{protocol}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = run_folder(checkpoint) / "eval" / name
    for number in count(2):
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = folder.with_name(f"{name}-{number}")
    return folder


@dataclass(frozen=True)
class Pictures:
    """Pictures of a report.

    Attributes:
        examples: Example images by target.
        memory: Pictures of the memory by caption.
    """

    examples: Mapping[str, Examples] = field(default_factory=dict)
    memory: Mapping[str, Picture] = field(default_factory=dict)


class EmbeddedImage(NamedTuple):
    """An image for an `img` element.

    Attributes:
        uri: Content as a data URI.
        width: Width in pixels.
        height: Height in pixels.
    """

    uri: str
    width: int
    height: int


def as_html(report: Report, pictures: Pictures | None = None) -> str:
    """Return a self-contained HTML page of a report, with pictures if given."""
    return render(
        _TEMPLATE,
        report=report,
        pictures=pictures or Pictures(),
        no_examples=Examples(),
        level=LEVEL,
        cityscapes=CITYSCAPES,
        occurring=OCCURRING,
        means=_means,
        confusion=_confusion,
        reliability=_reliability,
        embedded=embedded,
        themed=themed,
    )


def _means(part: Report) -> list[tuple[str, int, Mapping[str, float | None]]]:
    """Return the group, the number and the mean mIoU of the targets of a report in one space."""
    words = [seen_in_words(seen) for seen in part.seen.values()]
    counts = {group: words.count(group) for group in part.averages}
    return [(g, counts[g], mean) for g, mean in part.averages.items() if counts[g] > 1]


def embedded(image: "NDArray[np.uint8] | Figure") -> EmbeddedImage:
    """Return an RGB image (H, W, 3) as PNG or JPEG, whichever is smaller, or a plot as SVG."""
    if not isinstance(image, np.ndarray):
        width, height = image.get_size_inches() * image.get_dpi()
        uri = _data_uri("svg+xml", plot_bytes(image, "svg"))
        return EmbeddedImage(uri, round(width), round(height))
    picture, png, jpeg = Image.fromarray(image), BytesIO(), BytesIO()
    picture.save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    form, data = min(("png", png), ("jpeg", jpeg), key=lambda f: len(f[1].getvalue()))
    return EmbeddedImage(_data_uri(form, data.getvalue()), *picture.size)


def themed(draw: Draw) -> dict[str, EmbeddedImage]:
    """Return a plot in the colours of "light" and of "dark" pages."""
    return {"light": embedded(draw(theme=LIGHT)), "dark": embedded(draw(theme=DARK))}


def _data_uri(form: str, data: bytes) -> str:
    return f"data:image/{form};base64,{b64encode(data).decode()}"


def _reliability(calibration: Calibration) -> dict[str, EmbeddedImage]:
    confidence, accuracy = calibration.mean_confidence, calibration.accuracy
    return themed(partial(plot_reliability, confidence, accuracy, calibration.counts))


def _confusion(matrix: ConfusionMatrix, space: LabelSpace) -> dict[str, Any]:
    """Return the names of the columns; and pixels and shares of each true class that occurs."""
    names, counts, shares = space.names, matrix.counts.tolist(), matrix.shares.tolist()
    occurring, columns = matrix.classes
    rows = {
        names[row]: {
            names[column]: (counts[row][column], shares[row][column]) for column in columns
        }
        for row in occurring
    }
    return {"columns": [names[column] for column in columns], "rows": rows}
