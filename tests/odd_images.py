"""Odd image files, each with the RGB that it shows or the reason why it must be refused."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

HEIGHT, WIDTH = 31, 45
"""Of all pictures, unless their orientation swaps the sides; odd, and not alike."""
_LOSSY = 12
"""The most by which a value may differ after a good lossy compression of a smooth picture."""


class Odd(NamedTuple):
    """A file and what it shows.

    Attributes:
        content: Its bytes.
        pixels: (H, W, 3) RGB; None where it must be refused.
        tolerance: The most by which a value may differ.
        reason: What the refusal says.
        frames: Frames or pages.
    """

    content: bytes
    pixels: NDArray[np.uint8] | None
    tolerance: int = 0
    reason: str = ""
    frames: int = 1


_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def odd_images() -> dict[str, Odd]:
    """Return all by name, with their suffix; some names have spaces or foreign letters."""
    return dict((*_pngs(), *_jpegs(), *_turned(), *_others(), *_refused()))


def picture() -> NDArray[np.uint8]:
    """Return (HEIGHT, WIDTH, 3) smooth RGB without any symmetry."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    rgb = np.stack([x, y, (1 - x) * (0.3 + 0.7 * y)], axis=-1)
    return (rgb * 230 + 10).astype(np.uint8)


def _grey() -> NDArray[np.uint8]:
    return picture()[..., 0]


def _rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _on_black(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (rgb.astype(float) * alpha[..., None] / 255).round().astype(np.uint8)


def _alpha() -> NDArray[np.uint8]:
    """Return (HEIGHT, WIDTH) opacities, none of them and all of them among others."""
    return np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, 1))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
_ADAM7 += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(
    samples: NDArray[np.unsignedinteger],
    depth: int = 8,
    *chunks: tuple[bytes, bytes],
    kind: int | None = None,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of (H, W) or (H, W, C) samples, which Pillow writes in few varieties."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [samples]
    data = b"".join(_rows(part, depth) for part in passes if part.size)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def huge_png(side: int) -> bytes:
    """Return a square PNG of one bit a pixel: columns, 8 white ones after 8 black ones."""
    data = (b"\0" + b"\0\xff" * (side // 16)) * side
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def _rows(samples: NDArray[np.unsignedinteger], depth: int) -> bytes:
    """Return unfiltered scanlines, each beginning with its filter, 0."""
    rows = samples.astype(">u2" if depth == 16 else np.uint8).reshape(len(samples), -1)
    if depth < 8:
        bits = np.unpackbits(rows[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(len(samples), -1), axis=1)
    return np.pad(rows.view(np.uint8), ((0, 0), (1, 0))).tobytes()


def _saved(image: Image.Image | NDArray[np.uint8], form: str, **options: object) -> bytes:
    file = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, form, **options
    )
    return file.getvalue()


def _pngs() -> Iterator[tuple[str, Odd]]:
    rgb, grey, alpha = picture(), _grey(), _alpha()
    yield "rgb.png", Odd(png(rgb), rgb)
    yield "rgb interlaced.png", Odd(png(rgb, interlaced=True), rgb)
    yield "filtered.PNG", Odd(_saved(rgb, "PNG", optimize=True), rgb)
    yield "grey.png", Odd(png(grey), _rgb(grey))
    for depth in (1, 2, 4):
        coarse = grey >> (8 - depth)
        shown = (coarse.astype(int) * 255 // (2**depth - 1)).astype(np.uint8)
        yield f"grey {depth} bits.png", Odd(png(coarse, depth), _rgb(shown))
        colors = np.random.default_rng(depth).integers(0, 256, (2**depth, 3), dtype=np.uint8)
        palette = (b"PLTE", colors.tobytes())
        content = png(coarse, depth, palette, kind=3, interlaced=depth == 4)
        yield f"palette {depth} bits.png", Odd(content, colors[coarse])
    colors = np.random.default_rng(8).integers(0, 256, (256, 3), dtype=np.uint8)
    palette, opacity = (b"PLTE", colors.tobytes()), np.arange(256, dtype=np.uint8)[::-1]
    yield "palette.png", Odd(png(grey, 8, palette, kind=3), colors[grey])
    content = png(grey, 8, palette, (b"tRNS", opacity.tobytes()), kind=3)
    yield "palette with alpha.png", Odd(content, _on_black(colors[grey], opacity[grey]), 1)
    yield "rgb alpha.png", Odd(png(np.dstack([rgb, alpha])), _on_black(rgb, alpha), 1)
    yield "grey alpha.png", Odd(png(np.dstack([grey, alpha])), _on_black(_rgb(grey), alpha), 1)
    yield from _keyed_pngs(rgb, grey)
    yield from _deep_pngs()
    yield from _tagged_pngs(rgb)


def _keyed_pngs(rgb: NDArray[np.uint8], grey: NDArray[np.uint8]) -> Iterator[tuple[str, Odd]]:
    """One colour of them is transparent."""
    key = rgb[3, 4]
    hole = (rgb != key).any(axis=2)
    chunk = (b"tRNS", key.astype(">u2").tobytes())
    yield "rgb with a clear colour.png", Odd(png(rgb, 8, chunk), rgb * hole[..., None])
    hole = grey != grey[3, 4]
    chunk = (b"tRNS", struct.pack(">H", grey[3, 4]))
    yield "grey with a clear colour.png", Odd(png(grey, 8, chunk), _rgb(grey * hole))


def _deep_pngs() -> Iterator[tuple[str, Odd]]:
    """Of 16 bits, the upper half shows."""
    deep = np.random.default_rng(16).integers(0, 2**16, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    high = (deep >> 8).astype(np.uint8)
    over = _on_black(high[..., :3], high[..., 3])
    yield "rgb 16 bits.png", Odd(png(deep[..., :3], 16), high[..., :3])
    yield "rgb alpha 16 bits.png", Odd(png(deep, 16), over, 1)
    yield "grey 16 bits.png", Odd(png(deep[..., 0], 16), _rgb(high[..., 0]))
    yield (
        "grey 16 bits interlaced.png",
        Odd(png(deep[..., 0], 16, interlaced=True), _rgb(high[..., 0])),
    )
    grey_over = _on_black(_rgb(high[..., 0]), high[..., 3])
    yield "grey alpha 16 bits.png", Odd(png(deep[..., ::3], 16), grey_over, 1)


def _tagged_pngs(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, Odd]]:
    """What they carry beside the pixels changes none."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "profile.png", Odd(_saved(rgb, "PNG", icc_profile=profile), rgb)
    yield "gamma.png", Odd(png(rgb, 8, (b"gAMA", struct.pack(">I", 100_000))), rgb)
    yield "one pixel.png", Odd(png(rgb[:1, :1]), rgb[:1, :1])
    others = [Image.fromarray(255 - rgb), Image.fromarray(rgb[::-1])]
    animated = _saved(rgb, "PNG", save_all=True, append_images=others)
    yield "animated.png", Odd(animated, rgb, frames=3)


def _jpegs() -> Iterator[tuple[str, Odd]]:
    rgb = picture()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    varieties: dict[str, dict[str, object]] = {
        "baseline.jpg": {},
        "progressive.jpg": {"progressive": True},
        "4-4-4.jpeg": {"subsampling": 0},
        "4-2-0.jpg": {"subsampling": 2},
        "restarts.jpg": {"restart_marker_blocks": 1},
        "profile.jpg": {"icc_profile": profile},
        "torn exif.jpg": {"exif": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"},
        "Straße 日本 ñ.jpg": {},
    }
    for name, options in varieties.items():
        yield name, Odd(_saved(rgb, "JPEG", quality=95, **options), rgb, _LOSSY)
    yield "grey.jpg", Odd(_saved(_grey(), "JPEG", quality=95), _rgb(_grey()), _LOSSY)
    cmyk = np.dstack([rgb, 255 - _alpha()])
    shown = ((255.0 - rgb) * (255 - cmyk[..., 3:]) / 255).round().astype(np.uint8)
    ink = Image.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes())
    yield "cmyk.jpg", Odd(_saved(ink, "JPEG", quality=95), shown, _LOSSY)
    second = Image.fromarray(255 - rgb)
    stereo = _saved(rgb, "MPO", quality=95, save_all=True, append_images=[second])
    yield "two views.jpg", Odd(stereo, rgb, _LOSSY)
    yield "png in truth.jpg", Odd(png(rgb), rgb)


def _turned() -> Iterator[tuple[str, Odd]]:
    """Pictures that their EXIF orientation turns; how, is told here without Pillow."""
    rgb = picture()
    upright = {
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb),
    }
    for orientation, shown in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = _saved(rgb, "JPEG", quality=95, exif=exif)
        yield f"turned {orientation}.jpg", Odd(content, shown, _LOSSY)
        if orientation in (5, 6):
            yield f"turned {orientation}.png", Odd(_saved(rgb, "PNG", exif=exif), shown)
            yield f"turned {orientation}.tif", Odd(_saved(rgb, "TIFF", exif=exif), shown)
            content = _saved(rgb, "WEBP", lossless=True, exif=exif)
            yield f"turned {orientation}.webp", Odd(content, shown)
    clear = np.dstack([rgb, _alpha()])
    content = _saved(clear, "PNG", exif=exif)
    yield "turned alpha.png", Odd(content, np.rot90(_on_black(rgb, _alpha())), 1)


def _others() -> Iterator[tuple[str, Odd]]:
    rgb, grey, alpha = picture(), _grey(), _alpha()
    frames = [Image.fromarray(255 - grey), Image.fromarray(grey[::-1])]
    animated = {"save_all": True, "append_images": frames}
    yield "still.gif", Odd(_saved(grey, "GIF"), _rgb(grey))
    yield "animated.gif", Odd(_saved(grey, "GIF", **animated), _rgb(grey), frames=3)
    hole = _rgb(grey * (grey != grey[3, 4]))
    yield "clear.gif", Odd(_saved(grey, "GIF", transparency=int(grey[3, 4])), hole)
    yield "still.webp", Odd(_saved(rgb, "WEBP", lossless=True), rgb)
    content = _saved(rgb, "WEBP", lossless=True, save_all=True, append_images=frames)
    yield "animated.webp", Odd(content, rgb, frames=3)
    content = _saved(np.dstack([rgb, alpha]), "WEBP", lossless=True, exact=True)
    yield "alpha.webp", Odd(content, _on_black(rgb, alpha), 1)
    yield "still.bmp", Odd(_saved(rgb, "BMP"), rgb)
    black = grey > 128
    yield "1 bit.bmp", Odd(_saved(Image.fromarray(black), "BMP"), _rgb(np.uint8(255) * black))
    yield "still.ppm", Odd(_saved(rgb, "PPM"), rgb)
    deep = np.random.default_rng(1).integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)
    high = _rgb((deep >> 8).astype(np.uint8))
    content = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes()
    yield "16 bits.pgm", Odd(content, high)
    yield "lzw.tif", Odd(_saved(rgb, "TIFF", compression="tiff_lzw"), rgb)
    pages = {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]}
    yield "two pages.tiff", Odd(_saved(rgb, "TIFF", **pages), rgb, frames=2)
    yield "16 bits.tif", Odd(_saved(Image.fromarray(deep), "TIFF"), high)
    swapped = Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes())
    yield "16 bits big-endian.tif", Odd(_saved(swapped, "TIFF"), high)
    yield "wavelets.jp2", Odd(_saved(rgb, "JPEG2000"), rgb)
    yield "still.avif", Odd(_saved(rgb, "AVIF", quality=95), rgb, _LOSSY)


def _refused() -> Iterator[tuple[str, Odd]]:
    rgb = picture()
    jpeg, whole = _saved(rgb, "JPEG", progressive=True), png(rgb)
    yield "empty.jpg", Odd(b"", None, reason="it is empty")
    yield "text.jpg", Odd(b"This is no picture.\n" * 20, None, reason="a supported image")
    yield (
        "page.png",
        Odd(b"<!DOCTYPE html><title>404</title>", None, reason="a supported image"),
    )
    yield "torn.jpg", Odd(jpeg[: len(jpeg) // 2], None, reason="truncated")
    yield "only a head.jpg", Odd(jpeg[:100], None, reason="cannot be read")
    yield "torn.png", Odd(whole[: len(whole) // 2], None, reason="truncated")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    yield "a flipped bit.png", Odd(bytes(flipped), None, reason="cannot be read")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = whole[:8] + _chunk(b"IHDR", header) + whole[33:]
    yield "bomb.png", Odd(bomb, None, reason="more than 178 megapixels")
    floats = Image.fromarray(_grey() / np.float32(255))
    yield "floats.tif", Odd(_saved(floats, "TIFF"), None, reason="32-bit values")
    faint = np.random.default_rng(2).integers(0, 2**12, (HEIGHT, WIDTH), dtype=np.uint16)
    yield "12 of 16 bits.png", Odd(png(faint, 16), None, reason="nearly black")
    content = png(np.dstack([faint] * 3), 16)
    yield "12 of 16 bits in colour.png", Odd(content, None, reason="nearly black")
    content = _saved(Image.fromarray(faint >> 4), "TIFF")
    yield "8 of 16 bits.tif", Odd(content, None, reason="nearly black")
    content = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + faint.astype(">u2").tobytes()
    yield "12 of 16 bits.pgm", Odd(content, None, reason="nearly black")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    yield "script.jpg", Odd(script, None, reason="a supported image")
