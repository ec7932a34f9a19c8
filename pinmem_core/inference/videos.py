"""Predict videos frame by frame, with constant memory."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from pinmem_core.errors import MachineError
from pinmem_core.events import Listener, Notice, Progress
from pinmem_core.files import staged_folder
from pinmem_core.inference.formats import needs, painted, write_format
from pinmem_core.inference.outputs import Job, Output
from pinmem_core.inference.overlap import ahead, behind
from pinmem_core.inference.prediction import Prediction
from pinmem_core.inference.predictor import Predictor
from pinmem_core.inference.summary import Predicted

if TYPE_CHECKING:
    from pinmem_core.inference.video_files import Frame, Video


class _Seen(NamedTuple):
    number: int
    frame: "Frame"
    prediction: Prediction


_Sink = Callable[[_Seen], None]


def require_pyav() -> None:
    """Raise MachineError if PyAV is missing.

    Raises:
        MachineError: PyAV is not installed.
    """
    if find_spec("av") is None:
        raise MachineError("videos need PyAV, which is missing.", "pip install 'pinmem[video]'")


def predict_video(predictor: Predictor, job: Job, on_event: Listener) -> tuple[Predicted, ...]:
    """Predict every frame of a video and write the outputs, without sound.

    Raises:
        DataError: The video cannot be read to its end; then no output is written.
        MachineError: An output cannot be written.
    """
    from pinmem_core.inference.video_files import open_video

    source = job.source.path
    height = width = done = 0
    with (
        open_video(source) as video,
        closing(_written(predictor, job, video, on_event)) as sizes,
    ):
        for done, size in enumerate(sizes, start=1):
            height, width = size
            on_event(Progress(f"predicting {source.name}", done, video.length))
    return tuple(
        Predicted(source, output.path, output.format, width, height, done) for output in job.outputs
    )


def _written(
    predictor: Predictor, job: Job, video: "Video", on_event: Listener
) -> Generator[tuple[int, int], None, None]:
    """Yield (height, width) of each frame after its outputs are written."""
    wanted = needs(output.form for output in job.outputs)
    with ExitStack() as stack:
        frames = stack.enter_context(closing(ahead(video.frames)))
        sinks = [stack.enter_context(_sink(output, video)) for output in job.outputs]
        seen = (
            _Seen(number, frame, predictor.analyze(frame.pixels, **wanted))
            for number, frame in enumerate(_of_one_size(frames, job.source.path, on_event))
        )

        def write(item: _Seen) -> tuple[int, int]:
            for sink in sinks:
                sink(item)
            return item.prediction.train_ids.shape

        yield from stack.enter_context(closing(behind(write, seen)))


def _of_one_size(frames: Iterable["Frame"], source: Path, on_event: Listener) -> Iterator["Frame"]:
    """Yield the frames, resized to the size of the first frame where they differ."""
    first, announced = None, False
    for number, frame in enumerate(frames):
        height, width = frame.pixels.shape[:2]
        first = first or (width, height)
        if (width, height) == first:
            yield frame
            continue
        if not announced:
            announced = True
            change = f"from {first[0]}x{first[1]} to {width}x{height} at frame {number}"
            text = f"{source}: the frames change size, {change}; all are scaled to the first size"
            on_event(Notice(text, warning=True))
        scaled = Image.fromarray(frame.pixels).resize(first, Image.Resampling.BILINEAR)
        yield frame._replace(pixels=np.asarray(scaled))


def _sink(output: Output, video: "Video") -> AbstractContextManager[_Sink]:
    return _folder_sink(output) if output.is_folder else _video_sink(output, video)


@contextmanager
def _folder_sink(output: Output) -> Iterator[_Sink]:
    """Yield a function that writes frames to a folder; it appears when the block succeeds."""
    with staged_folder(output.path) as folder:

        def write(item: _Seen) -> None:
            path = folder / f"{item.number:06}{output.form.suffix}"
            with path.open("wb") as file:
                write_format(output.form, item.frame.pixels, item.prediction, file)

        yield write


@contextmanager
def _video_sink(output: Output, video: "Video") -> Iterator[_Sink]:
    from pinmem_core.inference.video_files import write_video

    with write_video(output.path, video) as add:

        def write(item: _Seen) -> None:
            pixels = painted(output.form, item.frame.pixels, item.prediction)
            if pixels.ndim == 2:
                pixels = np.repeat(pixels[..., None], 3, axis=2)
            add(item.frame._replace(pixels=pixels))

        yield write
