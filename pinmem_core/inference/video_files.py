"""Video files in and out, a frame at a time; importing this needs PyAV."""

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
"""Decoders that read the transparency of a WebM video, which FFmpeg's own leave out."""
_QUALITY = {"crf": "18", "preset": "veryfast"}
"""Of written videos: hardly to be told from the frames that went in."""


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        pixels: (H, W, 3) RGB, as the display matrix turns or mirrors it; transparent parts lie on
            black.
        time: When it is shown, in units of the video's `time_base`.
        aspect: Width of a pixel divided by its height.
    """

    pixels: NDArray[np.uint8]
    time: int
    aspect: Fraction = Fraction(1)


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
    with ExitStack() as stack:
        try:
            # FFmpeg would take names such as '12:30:05.mp4' for addresses. A video that refers to
            # other files or addresses, as playlists do, gets none of them.
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
    """Yield the frames; one without a time, or not after the last, is shown after `step`."""
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
    """Yield the frames of the first video stream, with their transparency."""
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
    """Return the frame as its display matrix shows it: turned, mirrored, or both.

    The matrix maps a pixel (x, y) to (a·x + c·y, b·x + d·y); other angles than those of whole
    quarter turns are rounded to these.
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
