"""Checks of datasets, runs, locks and environment variables."""

import os
import re
from difflib import get_close_matches
from typing import Any

from pinmem_core.doctor.findings import Finding, Section
from pinmem_core.errors import PinMemError

_CHECKED = 1000
"""Samples of each dataset whose files are looked for."""
_SHOWN_SETTINGS = {
    *("PINMEM_HOME", "PINMEM_BASE", "PINMEM_REFERENCE", "HF_HOME", "HF_HUB_CACHE"),
    *("HF_HUB_OFFLINE", "TORCH_HOME", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF"),
    *("PYTORCH_ENABLE_MPS_FALLBACK", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS"),
    *("OMP_WAIT_POLICY", "MKL_NUM_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "TMPDIR"),
    *("XDG_DATA_HOME", "LD_PRELOAD", "NO_COLOR"),
}
"""Environment variables whose values hold no secrets; of others, only the names are reported."""
_SETTINGS = re.compile(
    "(pinmem|hf|cityscapes|wandb|mlflow|nccl)_.*|.*_proxy|.*_ca_bundle", re.IGNORECASE
)


def check_datasets() -> Section:
    """Check that prepared datasets can be read, and that their files exist."""
    from pinmem_core.data.catalog import damaged_cards, get_card
    from pinmem_core.data.prepared import PreparedDataset
    from pinmem_core.data.samples import evenly_spaced
    from pinmem_core.data.state import is_complete
    from pinmem_core.paths import home

    damaged = damaged_cards()
    values: dict[str, Any] = {}
    findings = []
    for folder in sorted(home().glob("datasets/[!.]*/")):
        name = folder.name
        values[name] = {"state": "damaged"}
        try:
            if name in damaged:
                raise damaged[name]
            dataset = PreparedDataset.open(name)
            whole = is_complete(dataset.counts, dataset.summary, get_card(name))
        except PinMemError as error:
            findings.append(Finding(error.message, error.hint or f"Remove {folder}."))
            continue
        chosen = evenly_spaced(dataset.samples, _CHECKED)
        lost = [path for s in chosen for path in (s.image, s.label) if not path.exists()]
        state = "files missing" if lost else "ready" if whole else "partial"
        values[name] = {"state": state, "samples": len(dataset.samples), "counts": dataset.counts}
        if lost:
            text = f"the dataset '{name}' lacks {len(lost)} files of {len(chosen)} samples"
            fix = f"Restore them; 'pinmem data verify {name}' lists all."
            findings.append(Finding(f"{text}, e.g. {lost[0]}.", fix))
    return Section(values, findings)


def check_runs() -> Section:
    """Check that the runs can be read."""
    from pinmem_core.checkpoints.runs import list_runs

    runs = list_runs()
    states = [run.state for run in runs]
    findings = [
        Finding(f"the run {run.folder} is damaged.", "Restore its config.json, or remove the run.")
        for run in runs
        if run.state == "damaged"
    ]
    return Section({state: states.count(state) for state in sorted(set(states))}, findings)


def check_locks() -> Section:
    """List the lock files: "held" by a process, or "stale" after one was killed.

    A stale lock is no problem: the next command takes it, and removes it at its end.
    """
    from pinmem_core.locks import is_locked
    from pinmem_core.paths import home

    depths = ("*/*.lock", "*/*/*.lock", "*/*/*/*.lock")
    locks = sorted(path for depth in depths for path in home().glob(depth))
    return Section({str(path): "held" if is_locked(path) else "stale" for path in locks})


def check_settings() -> Section:
    """List the environment variables that change what pinmem does, without secret values."""
    from huggingface_hub import get_token

    from pinmem_core.checkpoints.base_weights import VARIABLE

    names = [n for n in sorted(os.environ) if n in _SHOWN_SETTINGS or _SETTINGS.fullmatch(n)]
    values = {n: os.environ[n] if n in _SHOWN_SETTINGS else "(set)" for n in names}
    findings = [
        Finding(f"pinmem does not know the variable {name}.", f"Did you mean {close[0]}?")
        for name in names
        if name.startswith("PINMEM_") and name not in _SHOWN_SETTINGS
        if (close := get_close_matches(name, ["PINMEM_HOME", VARIABLE], cutoff=0.8))
    ]
    values["login to the Hub"] = "yes" if get_token() else "no"
    return Section(values, findings)
