"""Predict videos frame by frame, with constant memory; read and write video files by PyAV."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, Notice, Progress
from pinmem_core.files import atomic_file, staged_folder
from pinmem_core.inference.outputs import Job, Output, Predicted
from pinmem_core.inference.writers import (
    FORMATS,
    analyze_options,
    class_counts,
    class_shares,
    render,
    with_legend,
    write_prediction,
)
from pinmem_core.parallel import parallel_map, prefetch

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

    from pinmem_core.inference.predictor import Prediction, TiledPredictor

_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the alpha channel of WebM videos; FFmpeg's native decoders ignore it."""
_QUALITY = {"crf": "18", "preset": "veryfast"}
"""Encoder settings of written videos, visually close to lossless."""
_CAMERAS = {"linux": ("video4linux2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""FFmpeg's input device for cameras, and the name of camera N, by operating system."""


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        pixels: RGB image, (H, W, 3), oriented by the display matrix and composed on black.
        time: Presentation time, in units of the video's `time_base`.
        aspect: Pixel aspect ratio, width divided by height.
    """

    pixels: NDArray[np.uint8]
    time: int
    aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class Video:
    """A video opened for reading.

    Attributes:
        rate: Average frame rate in frames per second.
        time_base: Unit of frame times in seconds.
        length: Number of frames according to the file, or 0 if unknown.
        frames: Generator that decodes the frames lazily, once.
    """

    rate: Fraction
    time_base: Fraction
    length: int
    frames: Generator[Frame, None, None]


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open the video at `path`; leaving the block closes it.

    Raises:
        DataError: The file is missing or no video, or decoding a frame fails.
    """
    import av

    with ExitStack() as stack:
        try:
            # Pass an open file, because FFmpeg reads names such as '12:30:05.mp4' as URLs. The
            # empty protocol list keeps playlists from opening other files or URLs.
            file = stack.enter_context(path.open("rb"))
            options = {"protocol_whitelist": "none"}
            container = stack.enter_context(av.open(file, "r", options=options))
        except FileNotFoundError:
            raise DataError(f"{path} does not exist.") from None
        except (av.FFmpegError, OSError) as error:
            raise _unreadable(path, error.strerror) from error
        if not container.streams.video:
            raise _unreadable(path, "it holds no video")
        yield _video(path, container)


@contextmanager
def open_camera(index: int) -> Iterator[Video]:
    """Open a camera of this machine; its video has no end.

    Raises:
        MachineError: There is no such camera, or PyAV or the system cannot read cameras.
    """
    import av

    name = f"camera:{index}"
    form, device = _CAMERAS.get(sys.platform, ("", ""))
    if not form:
        raise MachineError(f"{name} cannot be opened: this system has no numbered cameras.")
    with ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(device.format(index), "r", format=form))
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MachineError(
                f"{name} cannot be opened: {reason}.", "Is it connected, and may you use it?"
            ) from error
        yield _video(Path(name), container)


def _video(path: Path, container: "InputContainer") -> Video:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    time_base = stream.time_base or 1 / rate
    step = max(1, round(1 / (rate * time_base)))
    return Video(rate, time_base, stream.frames, _frames(path, container, step))


def _frames(path: Path, container: "InputContainer", step: int) -> Generator[Frame, None, None]:
    """Yield the frames; a missing or non-increasing time becomes the last time plus `step`."""
    import av

    time, done = -step, 0
    try:
        for frame in _decoded(container):
            later = frame.pts is not None and (frame.pts > time or not done)
            time = frame.pts if later and frame.pts is not None else time + step
            aspect = container.streams.video[0].sample_aspect_ratio or Fraction(1)
            yield _upright(frame, _rgb(frame), time, aspect)
            done += 1
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error.strerror, f" beyond frame {done}") from error
    if not done:
        raise _unreadable(path, "it holds no frames")


def _decoded(container: "InputContainer") -> Iterator["av.VideoFrame"]:
    """Yield the frames of the first video stream, with their alpha channel."""
    import av

    stream = container.streams.video[0]
    decoder = _WITH_ALPHA.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        yield from container.decode(stream)
        return
    context = av.CodecContext.create(decoder, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from context.decode(packet)


def _rgb(frame: "av.VideoFrame") -> NDArray[np.uint8]:
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)


def _upright(
    frame: "av.VideoFrame", pixels: NDArray[np.uint8], time: int, aspect: Fraction
) -> Frame:
    """Return the frame rotated and mirrored by its display matrix.

    The matrix maps a pixel (x, y) to (a·x + c·y, b·x + d·y). Angles are rounded to quarter turns.
    """
    from av.sidedata.sidedata import SideData

    matrix = frame.side_data.get("DISPLAYMATRIX")
    if isinstance(matrix, SideData):
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            pixels, aspect = pixels.swapaxes(0, 1), 1 / aspect
            a, d = c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return Frame(np.ascontiguousarray(pixels), time, aspect)


def _unreadable(path: Path, reason: str | None, where: str = "") -> DataError:
    return DataError(
        f"{path} cannot be read{where}: {reason or 'FFmpeg gives no reason'}.",
        "Replace the file with an intact copy, or leave it out.",
    )


@contextmanager
def write_video(path: Path, like: Video) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that appends a frame to an MP4 video.

    The video appears at `path` when the block succeeds. All frames must have one size; with an odd
    side, colours are stored at full resolution (yuv444p).

    Raises:
        MachineError: The disk is full, or the folder is not writable.
    """
    import av

    with (
        atomic_file(path) as partial,
        partial.open("wb") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=like.rate, options=_QUALITY)
        stream.codec_context.time_base = like.time_base

        def add(frame: Frame) -> None:
            height, width = frame.pixels.shape[:2]
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
                stream.codec_context.sample_aspect_ratio = frame.aspect
                stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
            shown = av.VideoFrame.from_ndarray(frame.pixels, format="rgb24")
            shown.pts, shown.time_base = frame.time, like.time_base
            container.mux(stream.encode(shown))

        yield add
        container.mux(stream.encode())


class _Analyzed(NamedTuple):
    number: int
    frame: Frame
    prediction: "Prediction"


def require_pyav() -> None:
    """Raise MachineError if PyAV is missing.

    Raises:
        MachineError: PyAV is not installed.
    """
    if find_spec("av") is None:
        raise MachineError(
            "videos and cameras need PyAV, which is missing.", "pip install 'pinmem[video]'"
        )


def predict_video(
    predictor: "TiledPredictor", job: Job, on_event: Listener
) -> tuple[Predicted, ...]:
    """Predict every frame of a video and write the outputs, without sound.

    A camera is predicted until Ctrl-C; then the outputs are finished as those of a whole video.

    Raises:
        DataError: The video cannot be read to its end; then no output is written.
        MachineError: An output cannot be written, or the camera cannot be opened.
    """
    source, camera = job.source.path, job.source.camera
    options = analyze_options(output.format for output in job.outputs)
    counts = np.zeros(256, np.int64)
    height = width = done = 0
    with ExitStack() as stack:
        opened = open_video(source) if camera is None else open_camera(camera)
        video = stack.enter_context(opened)
        frames = stack.enter_context(closing(prefetch(video.frames)))
        sinks = [stack.enter_context(_sink(output, video)) for output in job.outputs]
        analyzed = (
            _Analyzed(number, frame, predictor.analyze(frame.pixels, **options))
            for number, frame in enumerate(_of_one_size(frames, source, on_event))
        )

        def write(item: _Analyzed) -> tuple[int, int]:
            nonlocal counts
            for sink in sinks:
                sink(item)
            counts = counts + class_counts(item.prediction.train_ids)
            return item.prediction.train_ids.shape

        written = stack.enter_context(closing(parallel_map(write, analyzed, 1, waiting=3)))
        try:
            for done, size in enumerate(written, start=1):
                height, width = size
                on_event(Progress(f"predicting {source.name}", done, video.length))
        except KeyboardInterrupt:
            if camera is None or not done:
                raise
    return job.predicted(width, height, class_shares(counts, predictor.label_space), done)


def _of_one_size(frames: Iterable[Frame], source: Path, on_event: Listener) -> Iterator[Frame]:
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


@contextmanager
def _sink(output: Output, video: Video) -> Iterator[Callable[[_Analyzed], None]]:
    """Yield a function that writes a frame; the output appears when the block succeeds."""
    if output.is_folder:
        suffix = FORMATS[output.format].suffix
        with staged_folder(output.path) as folder:

            def save(item: _Analyzed) -> None:
                pixels, prediction = item.frame.pixels, item.prediction
                with (folder / f"{item.number:06}{suffix}").open("wb") as file:
                    write_prediction(output.format, pixels, prediction, file, legend=output.legend)

            yield save
        return
    with write_video(output.path, video) as add:

        def append(item: _Analyzed) -> None:
            pixels = render(output.format, item.frame.pixels, item.prediction)
            if pixels.ndim == 2:
                pixels = np.repeat(pixels[..., None], 3, axis=2)
            if output.legend:  # of all classes, because frames have one size
                space = item.prediction.space
                pixels = with_legend(pixels, range(len(space)), space)
            add(item.frame._replace(pixels=pixels))

        yield append
