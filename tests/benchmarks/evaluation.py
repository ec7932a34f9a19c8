"""How many images a second are evaluated, beside the loop that one first writes.

Run `python tests/benchmarks/evaluation.py`, with `--data FOLDER` for real images instead of drawn
ones: `images/*` and, of the same names, `labels/*.png` of trainIds (others than 0..18 are ignored).
Both score the same network on the same files, at two sizes, and take turns. A machine that does
other work at the same time distorts the results.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.config import ModelConfig
from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import IMAGENET
from pinmem_core.evaluation import evaluate
from pinmem_core.images import read_image, write_png
from pinmem_core.inference import PROTOCOLS, Predictor, load
from pinmem_core.label_files import read_label
from pinmem_core.label_space import CITYSCAPES, IGNORE_INDEX
from pinmem_core.models import Segmenter
from pinmem_core.synthetic import draw_scene

SIZES = ((480, 360), (960, 720))
"""Of CamVid's images, and of its originals."""
K = len(CITYSCAPES)


class ObviousLoop:
    """One window at a time, in float32; scores resized class by class and added up by NumPy.

    Args:
        segmenter: In evaluation mode.
        crop: Side of the windows; None for the whole image.
        overlap: Share of a window that its neighbour sees again.
    """

    def __init__(self, segmenter: Segmenter, crop: int | None, overlap: float) -> None:
        self.segmenter = segmenter
        self.crop, self.overlap = crop, overlap

    @torch.no_grad()
    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        crop = self.crop or max(height, width)
        stride = int(np.ceil(crop * (1 - self.overlap)))
        pixels = (image / np.float32(255) - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
        whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        total = np.zeros((K, height, width), np.float32)
        times = np.zeros((height, width), np.float32)
        for top in self._starts(height, crop, stride):
            for left in self._starts(width, crop, stride):
                place = slice(top, top + crop), slice(left, left + crop)
                window = whole[(..., *place)]
                logits = self._logits(window)
                for k in range(K):
                    resized = F.interpolate(
                        logits[:, k : k + 1], window.shape[2:], mode="bilinear", align_corners=True
                    )
                    total[(k, *place)] += resized[0, 0].numpy()
                times[place] += 1
        return (total / times).argmax(axis=0).astype(np.uint8)

    def _logits(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits as the network's head gives them, at a quarter of the size."""
        encoding = self.segmenter.encode(window)
        refined = encoding.feature
        if self.segmenter.memory is not None:
            refined, _ = self.segmenter.memory.read(refined, self.segmenter.memory.slots)
        return self.segmenter.decode(refined, encoding)

    @staticmethod
    def _starts(length: int, crop: int, stride: int) -> list[int]:
        count = int(np.ceil(max(length - crop, 0) / stride)) + 1
        return [max(0, min(i * stride, length - crop)) for i in range(count)]

    def evaluate(self, samples: Sequence[Sample]) -> float:
        """Return the mIoU over the classes that occur."""
        matrix = np.zeros((K, K), np.int64)
        for sample in samples:
            truth = np.asarray(Image.open(sample.label))
            prediction = self.predict(np.asarray(Image.open(sample.image).convert("RGB")))
            known = truth < K
            pairs = K * truth[known].astype(int) + prediction[known]
            matrix += np.bincount(pairs, minlength=K * K).reshape(K, K)
        occurs = matrix.sum(axis=1) > 0
        union = (matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix))[occurs]
        return float((np.diag(matrix)[occurs] / union).mean())


def pairs_of(data: Path | None, count: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return images and labels of a folder, evenly spread, or drawn ones."""
    if data is None:
        scenes = [draw_scene("cityday", number) for number in range(count)]
        return [(scene.image, scene.label) for scene in scenes]
    images = sorted((data / "images").iterdir())
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, count).astype(int)]
    labels = [read_label(data / "labels" / f"{image.stem}.png") for image in chosen]
    known = [np.where(label < K, label, IGNORE_INDEX).astype(np.uint8) for label in labels]
    return list(zip(map(read_image, chosen), known, strict=True))


def at_size(
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    size: tuple[int, int],
    folder: Path,
) -> tuple[Sample, ...]:
    """Write images and labels at a size, and return them."""
    samples = []
    for number, (image, label) in enumerate(pairs):
        paths = folder / f"{size[0]}" / f"{number}.png", folder / f"{size[0]}_labels/{number}.png"
        write_png(paths[0], np.asarray(Image.fromarray(image).resize(size)))
        nearest = Image.Resampling.NEAREST
        write_png(paths[1], np.asarray(Image.fromarray(label).resize(size, nearest)))
        samples.append(Sample(str(number), *paths, "val", "benchmark", *size))
    return tuple(samples)


def least_seconds(ways: Sequence[Callable[[], object]], rounds: int) -> list[tuple[float, float]]:
    """Return the least time and the least processor time of each; they take turns."""
    times: list[list[tuple[float, float]]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, found in zip(ways, times, strict=True):
            began, worked = time.perf_counter(), time.process_time()
            way()
            found.append((time.perf_counter() - began, time.process_time() - worked))
    return [(min(t[0] for t in found), min(t[1] for t in found)) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of images and labels")
    parser.add_argument("--model", help="a run or checkpoint; default: random MobileNetV2")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    segmenter = network(options.model)
    pairs = pairs_of(options.data, options.images)
    print(f"{options.images} images, {torch.get_num_threads()} threads of torch")
    print(f"fast: {PROTOCOLS['fast'].describe()}")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            compare(segmenter, at_size(pairs, size, Path(folder)), options.rounds)


def network(model: str | None) -> Segmenter:
    """Return a run's network, or one of random weights."""
    if model:
        return load(model, device="cpu").segmenter
    torch.manual_seed(0)
    return Segmenter(ModelConfig(backbone="mobilenet_v2", feature_dim=128))


def compare(segmenter: Segmenter, samples: tuple[Sample, ...], rounds: int) -> None:
    """Print how fast the loop and pinmem score samples of one size, and how they differ."""
    predictor = Predictor(segmenter, device="cpu", protocol=PROTOCOLS["fast"])
    compiled = Predictor(segmenter, device="cpu", protocol=PROTOCOLS["fast"], compile=True)
    half = Predictor(segmenter, device="cpu", protocol=PROTOCOLS["fast"], precision="bf16")
    loop = ObviousLoop(predictor.segmenter, None, PROTOCOLS["fast"].overlap)
    print(f"\n{samples[0].width}x{samples[0].height}")
    others = {"float32": predictor, "compiled": compiled, "bf16": half}
    for name, other in others.items():
        leads = np.concatenate([differences(loop, other, s.read()[0]) for s in samples])
        where = f", where the best class leads by {leads.max():.0e} at most" if len(leads) else ""
        print(f"{name}: {len(leads)} of {pixels(samples)} pixels differ from the loop's{where}")
    ways: Mapping[str, Callable[[], object]] = {
        "loop": partial(loop.evaluate, samples),
        **{n: partial(evaluate, other, samples, task="scoring") for n, other in others.items()},
    }
    times = dict(zip(ways, least_seconds(list(ways.values()), rounds), strict=True))
    for name, (wall, work) in times.items():
        quotients = f"{times['loop'][0] / wall:.2f}, {times['loop'][1] / work:.2f}"
        rate, each = len(samples) / wall, work / len(samples)
        print(f"{name:8} {rate:6.2f} images/s, {each:.3f} processor s/image: x {quotients}")


def pixels(samples: Sequence[Sample]) -> int:
    return sum(sample.width * sample.height for sample in samples)


def differences(
    loop: ObviousLoop, predictor: Predictor, image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return, where the predictions differ, the best score's lead, as a share of the largest."""
    scores = predictor.scores(image).numpy()
    differ = loop.predict(image) != scores.argmax(axis=0)
    best = np.sort(scores[:, differ], axis=0)
    return (best[-1] - best[-2]) / np.abs(scores).max()


if __name__ == "__main__":
    main()
