"""Video files in and out, a frame at a time; importing this needs PyAV."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.files import whole_file

_QUALITY = {"crf": "18", "preset": "veryfast"}
"""Of written videos: hardly to be told from the frames that went in."""


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        pixels: (H, W, 3) RGB, upright.
        time: When it is shown, in units of the video's `time_base`.
    """

    pixels: NDArray[np.uint8]
    time: int


@dataclass(frozen=True)
class Video:
    """A video that is open for reading.

    Attributes:
        rate: Frames a second, on average.
        time_base: Seconds a unit of a frame's time.
        length: Number of frames as the file says, or 0.
        frames: Yields them once, decoding as it goes.
    """

    rate: Fraction
    time_base: Fraction
    length: int
    frames: Generator[Frame, None, None]


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Yield the video at `path`, which closes with the block.

    Raises:
        DataError: The file is missing or no video; or, while frames are drawn, it is torn.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise _unreadable(path, error.strerror) from error
    with container:
        if not container.streams.video:
            raise _unreadable(path, "it holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        time_base = stream.time_base or 1 / rate
        step = max(1, round(1 / (rate * time_base)))
        yield Video(rate, time_base, stream.frames, _frames(path, container, step))


def _frames(path: Path, container: InputContainer, step: int) -> Generator[Frame, None, None]:
    """Yield the frames; one without a time, or not after the last, is shown after `step`."""
    time, done = -step, 0
    try:
        for frame in container.decode(video=0):
            later = frame.pts is not None and (frame.pts > time or not done)
            time = frame.pts if later and frame.pts is not None else time + step
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield Frame(np.ascontiguousarray(upright, np.uint8), time)
            done += 1
    except av.FFmpegError as error:
        raise _unreadable(path, error.strerror, f" beyond frame {done}") from error
    if not done:
        raise _unreadable(path, "it holds no frames")


def _unreadable(path: Path, reason: str | None, where: str = "") -> DataError:
    return DataError(
        f"{path} cannot be read{where}: {reason or 'FFmpeg does not say why'}.",
        "Replace the file by an intact copy, or leave it out.",
    )


@contextmanager
def write_video(path: Path, like: Video) -> Iterator[Callable[[Frame], None]]:
    """Yield what adds a frame to an MP4 video, which is at `path` when the block has succeeded.

    All frames are of one size; with an odd side, colours are stored at full resolution.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    with whole_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=like.rate, options=_QUALITY)
        stream.codec_context.time_base = like.time_base

        def add(frame: Frame) -> None:
            height, width = frame.pixels.shape[:2]
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
                stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
            shown = av.VideoFrame.from_ndarray(frame.pixels, format="rgb24")
            shown.pts, shown.time_base = frame.time, like.time_base
            container.mux(stream.encode(shown))

        yield add
        container.mux(stream.encode())
