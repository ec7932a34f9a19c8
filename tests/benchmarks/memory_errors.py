"""Does the memory know where the network errs? How well two confidences tell right from wrong.

Run `python tests/benchmarks/memory_errors.py RUN TARGET` for the AUROC of the largest softmax
probability, and of the largest cosine of a feature with any slot.
"""

import sys

import torch

from pinmem_core import load
from pinmem_core.data.transforms import normalize
from pinmem_core.evaluation import load_target
from pinmem_core.evaluation.metrics import Calibration
from pinmem_core.models.decoders.base import resize


@torch.inference_mode()
def main(run: str, target: str) -> None:
    """Print both AUROCs over all labelled pixels of a target."""
    segmenter = load(run).segmenter
    by_softmax, by_memory = Calibration(), Calibration()
    for sample in load_target(target).samples:
        pixels, truth = sample.read()
        seen = segmenter.run(normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]))
        assert seen.scores is not None, "the network has no memory"
        probabilities = resize(seen.logits, truth.shape).softmax(dim=1)[0]
        cosines = resize(seen.scores, truth.shape)[0].amax(dim=0)
        predicted = probabilities.argmax(dim=0).byte().numpy()
        by_softmax += Calibration.of(probabilities.amax(dim=0).numpy(), truth, predicted)
        by_memory += Calibration.of((cosines.numpy() + 1) / 2, truth, predicted)
    print(f"{run} on {target}: AUROC of the largest softmax probability {by_softmax.auroc:.3f},")
    print(f"of the largest cosine with a slot {by_memory.auroc:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
