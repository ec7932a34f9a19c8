"""Join the JSON files of `run.py` into the results that docs/study.md shows, next to this script.

    python docs/study/backbones/join.py FOLDER...

FOLDER is one or more folders of runs. The arms of images of full size go to `larger`, the longer
ones and that of smaller patches to `longer`, the tuned ones to `tuned`, those from which their
settings were chosen to `pilot`, the rest to `results.json`. Two arms with each drive left out in
turn go to `drives` and `tuned/drives`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pinmem_core.documents import read_toml

HERE = Path(__file__).parent
DRIVES = {
    "drives": ("mobilenet", "lora-linear"),
    "tuned/drives": ("mobilenet-tuned", "lora-linear-tuned"),
}
"""Arms with every drive left out."""
PILOT_SEED = 100


def part_of(record: dict[str, Any]) -> str:
    """Return the folder of a run on the dusk fold."""
    arm = record["arm"]
    if record["seed"] == PILOT_SEED:
        return "pilot"
    if arm.endswith("-480"):
        return "larger"
    if arm.endswith(("-long", "-p8")):
        return "longer"
    return "tuned" if arm.endswith("-tuned") else ""


def main(*folders: str) -> None:
    """Join the results of some folders."""
    study = read_toml(HERE / "arms.toml")
    arms, folds = [*study["arms"]], [*study["folds"]]
    paths = [path for folder in folders for path in Path(folder).glob("*/*.json")]
    records = [json.loads(path.read_text()) for path in paths]
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["fold"] == "dusk":
            parts.setdefault(part_of(record), []).append(record)
    for part, compared in DRIVES.items():
        of = [r for r in records if r["arm"] in compared and r["seed"] != PILOT_SEED]
        seeds = [{r["seed"] for r in of if r["fold"] == fold} for fold in folds]
        parts[part] = [r for r in of if r["seed"] in set.intersection(*seeds)]
    for part, of in parts.items():
        of.sort(key=lambda r: (arms.index(r["arm"]), folds.index(r["fold"]), r["seed"]))
        (HERE / part).mkdir(parents=True, exist_ok=True)
        (HERE / part / "results.json").write_text(json.dumps(of, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
