"""Draw scenes of all synthetic domains into a folder: the unlabelled images of `wildnet`.

python docs/study/methods/wild.py wild
"""

import sys
from pathlib import Path

from pinmem_core.images import write_png
from pinmem_core.synthetic import DOMAINS, draw_scene

SCENES = 12


def main(folder: str) -> None:
    """Draw `SCENES` scenes of each domain."""
    Path(folder).mkdir(parents=True)
    for domain in DOMAINS:
        for number in range(SCENES):
            write_png(Path(folder) / f"{domain}-{number}.png", draw_scene(domain, number).image)


if __name__ == "__main__":
    main(*sys.argv[1:])
