"""How fast images are evaluated and predicted at 2048x1024."""

import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rows import Row

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import IMAGENET
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.inference.protocols import Protocol, get_protocol
from pinmem_core.inference.sliding_window import windows
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter

K = len(CITYSCAPES)
SPEED_GOAL = 8.0
PUBLISHED = {"with memory": 11.64, "without memory": 7.82}
"""Milliseconds of one image, as the paper gives them (its device is another)."""


def network(options: Namespace, *, memory: bool = True) -> Segmenter:
    """Return the paper's network with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet10" if options.tiny else "resnet50")
    if not memory:
        config = config.model_copy(update={"memory": None})
    return Segmenter(config).to(options.device).eval()


def image_of(width: int, height: int, number: int = 0) -> NDArray[np.uint8]:
    """Return a smooth random image with noise."""
    dice = np.random.default_rng(number)
    coarse = torch.from_numpy(dice.uniform(0, 255, (1, 3, 8, 16)).astype(np.float32))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    noisy = smooth + dice.normal(0, 6, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def obvious(
    segmenter: Segmenter, device: torch.device, protocol: Protocol
) -> Callable[..., object]:
    """Return the loop that one first writes: a window and a view at a time, summed by NumPy."""

    @torch.no_grad()
    def predict(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        pixels = (image / np.float32(255) - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
        whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        total = np.zeros((K, height, width), np.float32)
        times = np.zeros((height, width), np.float32)
        crop = protocol.crop if isinstance(protocol.crop, int) else max(height, width)
        for place in windows(height, width, crop, protocol.overlap):
            window = whole[(..., *place)].to(device)
            for flipped in (False, True)[: 1 + protocol.flip]:
                logits = segmenter(window.flip(-1) if flipped else window)
                scores = (logits.flip(-1) if flipped else logits)[0].cpu().numpy()
                total[(slice(None), *place)] += scores
                times[place] += 1
        return (total / times).argmax(axis=0).astype(np.uint8)

    return predict


def rate(predict: Callable[..., object], images: list[NDArray[np.uint8]]) -> float:
    """Return images a second, after one that warms up."""
    predict(images[0])
    began = time.perf_counter()
    for image in images:
        predict(image)
    return len(images) / (time.perf_counter() - began)


def evaluation(row: Row, options: Namespace, protocol: Protocol) -> None:
    """Compare Predictor, in float32 and bf16, with the obvious loop."""
    width, height = (256, 128) if options.tiny else (2048, 1024)
    images = [image_of(width, height, number) for number in range(2 if options.tiny else 8)]
    segmenter = network(options)
    cuda = options.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    loop = obvious(segmenter, options.device, protocol)
    row.values["loop, images/s"] = slow = rate(loop, images[:3])
    for precision in ("float32",) if options.tiny else ("float32", "bf16"):
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        predictor = Predictor(
            segmenter, device=str(options.device), protocol=protocol, precision=precision
        )
        row.values[f"{precision}, images/s"] = fast = rate(predictor.predict, images)
        row.values[f"{precision}, x loop"] = fast / slow
        differ = (predictor.predict(images[0]) != loop(images[0])).mean()
        row.values[f"{precision}, share of pixels that differ"] = float(differ)
        if cuda:
            row.values[f"{precision}, peak MB"] = torch.cuda.max_memory_allocated() / 2**20
    best = max(value for label, value in row.values.items() if label.endswith("x loop"))
    row.goal, row.met = f">= {SPEED_GOAL:g} x the loop", best >= SPEED_GOAL


def whole(row: Row, options: Namespace) -> None:
    """Each image seen whole."""
    evaluation(row, options, PROTOCOLS["paper-train"])


def sliding(row: Row, options: Namespace) -> None:
    """Windows of 768 that overlap by two thirds, each also mirrored."""
    protocol = get_protocol("paper-eval+count=windows")
    if options.tiny:
        protocol = Protocol(crop=96, flip=True)
    evaluation(row, options, protocol)


def latency(row: Row, options: Namespace, size: tuple[int, int], *, compile: bool) -> None:
    """Time single images, from pixels on the host to a mask on the host, and the network alone."""
    width, height = (size[0] // 8, size[1] // 8) if options.tiny else size
    image = image_of(width, height)
    precisions = ("float32",) if options.tiny else ("bf16",) if compile else ("float32", "bf16")
    for label, with_memory in (("with memory", True), ("without memory", False)):
        segmenter = network(options, memory=with_memory)
        for precision in precisions:
            predictor = Predictor(
                segmenter,
                device=str(options.device),
                protocol=PROTOCOLS["paper-train"],
                precision=precision,
                compile=compile,
            )
            times = []
            for _ in range(4 if options.tiny else 23):
                began = time.perf_counter()
                predictor.predict(image)
                times.append(time.perf_counter() - began)
            row.values[f"ms {precision}, {label}"] = 1e3 * median(times[3:])
        if compile:
            break
        row.values[f"ms of the network alone, float32, {label}"] = forward_time(
            segmenter, options, (height, width)
        )
    row.note = f"published, another GPU: {PUBLISHED}"


def forward_time(segmenter: Segmenter, options: Namespace, size: tuple[int, int]) -> float:
    """Return the milliseconds of a forward pass, without copies."""
    images = torch.randn(1, 3, *size, device=options.device)
    times = []
    with torch.inference_mode():
        for _ in range(4 if options.tiny else 23):
            began = time.perf_counter()
            segmenter(images).flatten()[0].item()
            times.append(time.perf_counter() - began)
    return 1e3 * median(times[3:])


CHECKS = {
    "whole": (whole, 20),
    "sliding 768 with flip": (sliding, 30),
    "latency 1024x512": (lambda r, o: latency(r, o, (1024, 512), compile=False), 10),
    "latency 2048x1024": (lambda r, o: latency(r, o, (2048, 1024), compile=False), 10),
    "latency 1024x512, compiled": (lambda r, o: latency(r, o, (1024, 512), compile=True), 60),
}
"""Functions that fill a row, and the seconds that each may take."""
