"""Predict images and videos and write the results to files."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import atomic_file
from pinmem_core.images import DecodedImage, decode_image
from pinmem_core.inference.outputs import Job, Output, Predicted
from pinmem_core.inference.sources import Source
from pinmem_core.inference.video import predict_video, require_pyav
from pinmem_core.inference.writers import (
    analyze_options,
    class_counts,
    class_shares,
    require_ids,
    write_prediction,
)
from pinmem_core.parallel import parallel_map, prefetch

if TYPE_CHECKING:
    from pinmem_core.inference.predictor import Prediction, TiledPredictor

_WRITERS = 2
"""Number of threads that render and compress outputs."""
_WAITING = 4
"""Number of images that may wait for them, with their predictions."""


@dataclass(frozen=True)
class Failed:
    """An image or video that could not be predicted, with the reason."""

    input: Path | str
    reason: str


@dataclass(frozen=True)
class PredictionSummary:
    """Summary of a prediction run.

    Attributes:
        outputs: Written outputs, in the order of the inputs.
        failed: Failed inputs, in the order of the inputs.
        images: Number of predicted images and video frames.
        seconds: Wall-clock time from the first read to the last write, in seconds.
    """

    outputs: tuple[Predicted, ...]
    failed: tuple[Failed, ...]
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput in images per second."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


Results = Generator[tuple[Predicted, ...] | Failed, None, None]
"""Outputs or failure of each input."""


class _Read(NamedTuple):
    job: Job
    picture: DecodedImage


class _Analyzed(NamedTuple):
    job: Job
    pixels: NDArray[np.uint8]
    prediction: "Prediction"


def predict_files(
    predictor: "TiledPredictor", jobs: Sequence[Job], *, on_event: Listener = ignore
) -> PredictionSummary:
    """Predict every image and video and write its outputs.

    An unreadable input does not stop the others. Reading, prediction and writing overlap; results
    keep the order of `jobs`. Files are written atomically, so an interruption leaves no partial
    file.

    Args:
        predictor: The model and its protocol.
        jobs: Sources and their outputs, as returned by `plan`.
        on_event: Callback for progress events and for notices about images with several frames.

    Raises:
        ConfigError: A format does not suit the classes of the model.
        MachineError: An output cannot be written, or a job is a video and PyAV is missing.
    """
    began = perf_counter()
    outputs: list[Predicted] = []
    failed: list[Failed] = []
    images = 0
    with closing(predict_each(predictor, jobs, on_event=on_event)) as results:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Failed):
                failed.append(result)
            else:
                outputs += result
                images += result[0].frames
            on_event(Progress("predicting", done, len(jobs)))
    return PredictionSummary(tuple(outputs), tuple(failed), images, perf_counter() - began)


def predict_bytes(
    predictor: "TiledPredictor", source: Source, output: Output, *, on_event: Listener = ignore
) -> bytes:
    """Return the prediction for one image as the bytes of a PNG or NPZ file.

    Raises:
        ConfigError: The format does not suit the classes of the model.
        DataError: The image cannot be read.
    """
    require_ids([output.format], predictor.label_space)
    picture = decode_image(source.path, source.content)
    prediction = _analyze(predictor, source, picture, [output.format], on_event)
    file = BytesIO()
    write_prediction(output.format, picture.pixels, prediction, file, legend=output.legend)
    return file.getvalue()


def _analyze(
    predictor: "TiledPredictor",
    source: Source,
    picture: DecodedImage,
    formats: Iterable[str],
    on_event: Listener,
) -> "Prediction":
    if (count := picture.frames) > 1:
        on_event(Notice(f"{source.label} has {count} frames or pages; only the first is predicted"))
    return predictor.analyze(picture.pixels, **analyze_options(formats))


def predict_each(
    predictor: "TiledPredictor", jobs: Sequence[Job], *, on_event: Listener = ignore
) -> Results:
    """Yield the outputs or the failure of each input, in order, as `predict_files` makes them.

    Raises:
        ConfigError: A format does not suit the classes of the model.
        MachineError: An output cannot be written, or a job is a video and PyAV is missing.
    """
    formats = {output.format for job in jobs for output in job.outputs}
    require_ids(formats, predictor.label_space)
    if any(job.source.is_video for job in jobs):
        require_pyav()
    for are_videos, group in groupby(jobs, key=lambda job: job.source.is_video):
        predict = _videos if are_videos else _images
        yield from predict(predictor, group, on_event)


def _videos(predictor: "TiledPredictor", jobs: Iterable[Job], on_event: Listener) -> Results:
    for job in jobs:
        try:
            yield predict_video(predictor, job, on_event)
        except DataError as error:
            yield Failed(job.source.label, error.message)


def _images(predictor: "TiledPredictor", jobs: Iterable[Job], on_event: Listener) -> Results:
    def predict(item: _Read | Failed) -> _Analyzed | Failed:
        if isinstance(item, Failed):
            return item
        job, picture = item
        formats = [output.format for output in job.outputs]
        try:
            prediction = _analyze(predictor, job.source, picture, formats, on_event)
        except DataError as error:
            return Failed(job.source.label, error.message)
        return _Analyzed(job, picture.pixels, prediction)

    with closing(prefetch(map(_read, jobs))) as read:
        analyzed = map(predict, read)
        with closing(parallel_map(_write, analyzed, _WRITERS, waiting=_WAITING)) as results:
            yield from results


def _read(job: Job) -> _Read | Failed:
    try:
        return _Read(job, decode_image(job.source.path, job.source.content))
    except DataError as error:
        return Failed(job.source.label, error.message)


def _write(item: _Analyzed | Failed) -> tuple[Predicted, ...] | Failed:
    if isinstance(item, Failed):
        return item
    job, pixels, prediction = item
    for output in job.outputs:
        with atomic_file(output.path) as partial, partial.open("wb") as file:
            write_prediction(output.format, pixels, prediction, file, legend=output.legend)
    height, width = pixels.shape[:2]
    shares = class_shares(class_counts(prediction.train_ids), prediction.space)
    return job.predicted(width, height, shares)
