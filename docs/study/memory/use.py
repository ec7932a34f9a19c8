"""Measure in each run of studies whether the network uses its memory, as `pinmem eval --memory`.

python docs/study/memory/use.py STUDY ... > docs/study/memory/results.json
"""

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from pinmem_core.evaluation import evaluate_run
from pinmem_core.models import load_checkpoint


def measured(study: Path, run: Path) -> list[dict]:
    """Return what the instrument says of a run, on each unseen target; nothing without a memory."""
    scored = json.loads((run / "study" / "report.json").read_text())["targets"]
    targets = [name for name, of in scored.items() if not of["seen"]]
    network, _ = load_checkpoint(run / "checkpoint")
    if network.memory is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        report = evaluate_run(str(run), targets, memory=True, pictures=False, output=Path(folder))
    variant, _, seed = run.name.rpartition("-")
    return [
        {
            "study": study.name,
            "fold": str(run.parent.parent.relative_to(study)),
            "variant": variant,
            "seed": int(seed),
            "target": name,
            "images": len(domain.images),
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            **domain.memory,
        }
        for name, domain in report.domains.items()
        if domain.memory and domain.memory["r2"] is not None  # a placebo reads a single value
    ]


if __name__ == "__main__":
    found = [
        record
        for study in map(Path, sys.argv[1:])
        for path in sorted(study.glob("**/runs/*/study/report.json"))
        for record in measured(study, path.parents[1])
    ]
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
