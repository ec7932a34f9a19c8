"""Join the JSON files of `run.py` into the results that docs/study.md shows, next to this script.

    python docs/study/backbones/join.py FOLDER...

FOLDER is one or more folders of runs. The arms of images of full size go to `larger`, the longer
ones and that of smaller patches to `longer`, each left-out drive to `drives`, the rest to
`results.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pinmem_core.documents import read_toml

HERE = Path(__file__).parent
COMPARED, SEEDS = ("mobilenet", "lora-linear"), 3
"""Arms and seeds with every drive left out."""


def main(*folders: str) -> None:
    """Join the results of some folders."""
    study = read_toml(HERE / "arms.toml")
    arms, folds = [*study["arms"]], [*study["folds"]]
    paths = [path for folder in folders for path in Path(folder).glob("*/*.json")]
    records = [json.loads(path.read_text()) for path in paths]
    parts: dict[str, list[dict[str, Any]]] = {"": [], "longer": [], "larger": [], "drives": []}
    for record in records:
        arm = record["arm"]
        longer = arm.endswith(("-long", "-p8"))
        part = "larger" if arm.endswith("-480") else "longer" if longer else ""
        if record["fold"] == "dusk":
            parts[part].append(record)
        if arm in COMPARED and record["seed"] < SEEDS:
            parts["drives"].append(record)
    for part, of in parts.items():
        of.sort(key=lambda r: (arms.index(r["arm"]), folds.index(r["fold"]), r["seed"]))
        (HERE / part / "results.json").write_text(json.dumps(of, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
