"""Read and write video files frame by frame. This module needs PyAV."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.files import whole_file

_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the alpha channel of WebM videos; FFmpeg's native decoders ignore it."""
_QUALITY = {"crf": "18", "preset": "veryfast"}
"""Encoder settings of written videos, visually close to lossless."""


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
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        time_base = stream.time_base or 1 / rate
        step = max(1, round(1 / (rate * time_base)))
        yield Video(rate, time_base, stream.frames, _frames(path, container, step))


def _frames(path: Path, container: InputContainer, step: int) -> Generator[Frame, None, None]:
    """Yield the frames; a missing or non-increasing time becomes the last time plus `step`."""
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


def _decoded(container: InputContainer) -> Iterator[av.VideoFrame]:
    """Yield the frames of the first video stream, with their alpha channel."""
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


def _rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)


def _upright(frame: av.VideoFrame, pixels: NDArray[np.uint8], time: int, aspect: Fraction) -> Frame:
    """Return the frame rotated and mirrored by its display matrix.

    The matrix maps a pixel (x, y) to (a·x + c·y, b·x + d·y). Angles are rounded to quarter turns.
    """
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
    with (
        whole_file(path) as partial,
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
