"""Camera model: from light on the lens to compressed 8-bit pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pinmem_core.synthetic.projection import Floats
from pinmem_core.synthetic.styles import Lens

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def expose(image: Floats, lens: Lens, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Convert light (3, H, W), nominally in [0, 1], to an 8-bit image (H, W, 3)."""
    scale = image.shape[1] / 128
    if lens.bloom:
        glare = np.maximum(image - 0.75, 0)
        haze = blur(blur(glare[:, ::2, ::2], 2 * scale), 2 * scale).repeat(2, 1).repeat(2, 2)
        image = image + np.float32(4 * lens.bloom) * haze[:, : image.shape[1], : image.shape[2]]
    if lens.blur:
        image = blur(image, lens.blur * rng.uniform(0.6, 1.3) * scale)
    image = image * np.float32(rng.uniform(*lens.exposure))
    image = image * np.array(lens.balance, dtype=np.float32)[:, None, None]
    if lens.vignette:
        image = image * _vignette(image.shape[1:], lens.vignette)
    image = _tone(image, lens)
    if lens.noise:
        image = _sensor_noise(image, lens.noise * rng.uniform(0.6, 1.4), rng)
    if lens.jpeg:
        image = compress(image, lens.jpeg * rng.uniform(0.5, 1.5))
    stored = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(stored, 0, -1))


def blur(image: Floats, radius: float) -> Floats:
    """Blur with a separable soft box of the given radius in pixels."""
    if radius <= 0:
        return image
    whole = int(radius)
    weights = [1.0] * (2 * whole + 1)
    if radius > whole:
        weights = [radius - whole, *weights, radius - whole]
    reach, total = len(weights) // 2, sum(weights)
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = np.pad(image, pad, mode="edge")
        size = image.shape[axis]
        image = np.zeros_like(image)
        for i, weight in enumerate(weights):
            part = padded[:, i : i + size] if axis == 1 else padded[..., i : i + size]
            image += np.float32(weight / total) * part
    return image


def compress(image: Floats, step: float) -> Floats:
    """Quantise 8 x 8 cosine coefficients of luma, and of chroma at half the resolution.

    Args:
        image: (3, H, W) RGB.
        step: Quantisation step of the lowest frequency, in units of the full range.
    """
    _, height, width = image.shape
    pad = (0, 0), (0, -height % 16), (0, -width % 16)
    image = np.pad(image, pad, mode="edge")
    luma = _luma(image)
    chroma = image[::2] - luma  # red and blue
    h, w = luma.shape
    half = chroma.reshape(2, h // 2, 2, w // 2, 2).mean((2, 4))
    luma = _quantise(luma, step)
    half = np.stack([_quantise(plane, 2 * step) for plane in half])
    red, blue = half.repeat(2, 1).repeat(2, 2) + luma
    green = (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return np.stack([red, green, blue])[:, :height, :width]


def _quantise(plane: Floats, step: float) -> Floats:
    dct, weights = _dct()
    h, w = plane.shape
    blocks = plane.reshape(h // 8, 8, w // 8, 8).swapaxes(1, 2)
    steps = weights * np.float32(step)
    coarse = np.rint((dct @ blocks @ dct.T) / steps) * steps
    return np.asarray((dct.T @ coarse @ dct).swapaxes(1, 2).reshape(h, w))


@cache
def _dct() -> tuple[Floats, Floats]:
    """Orthonormal 8-point cosine transform, and steps that grow with frequency."""
    k, n = np.mgrid[:8, :8]
    basis = np.cos(np.pi * (n + 0.5) * k / 8) / 2
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32), (1 + 0.6 * (k + n)).astype(np.float32)


def _luma(image: Floats) -> Floats:
    return np.asarray(np.tensordot(_LUMA, image, axes=1))


def _vignette(shape: tuple[int, ...], strength: float) -> Floats:
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    fall = 1 - strength * ((x**2 + 0.6 * y**2) / 1.6) ** 1.5
    return np.asarray(fall, dtype=np.float32)


def _tone(image: Floats, lens: Lens) -> Floats:
    """Adjust saturation, and contrast around mid-grey."""
    if lens.saturation != 1:
        grey = _luma(image)
        image = grey + np.float32(lens.saturation) * (image - grey)
    image = np.float32(0.5) + np.float32(lens.contrast) * (image - np.float32(0.5))
    return np.clip(image, 0, 1)


def _sensor_noise(image: Floats, sigma: float, rng: np.random.Generator) -> Floats:
    """Add noise to each colour, stronger in bright areas."""
    deviation = np.float32(sigma) * np.sqrt(np.float32(0.3) + image)
    return np.asarray(image + deviation * rng.standard_normal(image.shape, dtype=np.float32))
