"""What memory predicting a huge photo takes: the most that the whole process held.

Run `python tests/benchmarks/panorama.py`, with `--size 12000x8000` for that size and `--model RUN`
for another model than the starter. All six pictures that need no probabilities are written.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pinmem_core.synthetic import draw_scene

FORMATS = ("color", "trainid", "overlay", "beside", "confidence", "entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="12000x8000", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--protocol", default="fast")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "panorama.jpg"
        scene = np.asarray(draw_scene("cityday", 0).image)
        Image.fromarray(scene).resize((width, height)).save(photo)
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pinmem_cli", "predict", photo, "-o", Path(folder) / "out"]
            + ["--model", options.model, "--protocol", options.protocol]
            + [part for name in FORMATS for part in ("--format", name)],
            check=True,
        )
        seconds = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{width}x{height}, {options.model}, {options.protocol}: {most:.2f} GiB at most,", end=" "
    )
    print(f"{seconds:.0f} s with the start, {', '.join(FORMATS)} written")


if __name__ == "__main__":
    main()
