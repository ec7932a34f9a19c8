"""Checks of memory, GPUs and folders."""

import errno
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from pinmem_core.doctor.findings import LITTLE, TORCH, Finding, Section, first_line
from pinmem_core.version import __version__

_LITTLE_SHARED = 256_000_000
"""Bytes of shared memory that processes for loading images need at least; docker gives 64 MB."""


def check_system() -> Section:
    """Check versions, cores and memory."""
    memory = _memory()
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None
    findings = []
    available = memory.get("MemAvailable")
    if available is not None and available < LITTLE:
        text = f"only {available / 1e6:.0f} MB of memory are available."
        findings.append(Finding(text, "Close other programs, or use a machine with more memory."))
    if shared is not None and shared < _LITTLE_SHARED:
        text = f"there are only {shared / 1e6:.0f} MB of shared memory, which 'workers' need."
        fix = "Give the container more ('docker run --shm-size=8g'), or train with workers=0."
        findings.append(Finding(text, fix))
    affinity = getattr(os, "sched_getaffinity", None)
    values = {
        "pinmem": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": memory.get("MemTotal"),
        "available_bytes": available,
        "shared_memory_bytes": shared,
    }
    return Section(values, findings)


def _memory() -> dict[str, int]:
    """Return "MemTotal" and "MemAvailable" in bytes, where the system states them."""
    memory = {}
    with suppress(AttributeError, ValueError, OSError):
        memory["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory |= {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    with suppress(ValueError, OSError):  # the limit of a container
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        memory["MemTotal"] = min(memory["MemTotal"], limit)
    return memory


def check_devices() -> Section:
    """Check that torch can compute on each GPU."""
    driver = _nvidia_driver()
    try:
        import torch
    except Exception:  # `check_libraries` reports it
        return Section({"nvidia_driver": driver})
    findings: list[Finding] = []
    gpus = [_gpu(index, findings) for index in range(torch.cuda.device_count())]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if driver and not gpus and not hidden:
        if torch.version.cuda is None:
            text = f"this machine has an NVIDIA GPU, but torch {torch.__version__} has no CUDA."
            findings.append(Finding(text, f"Install torch for CUDA: {TORCH}"))
        else:
            text = f"torch for CUDA {torch.version.cuda} cannot use the GPU with driver {driver}."
            fix = f"Install a newer driver, or torch for an older CUDA: {TORCH}"
            findings.append(Finding(text, fix))
    values = {
        "nvidia_driver": driver,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "mps": torch.backends.mps.is_available(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }
    return Section(values, findings)


def _nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver; None if there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip().partition("\n")[0] or None
    return None


def _gpu(index: int, findings: list[Finding]) -> dict[str, Any]:
    """Return what a GPU is, after computing on it."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    free = None
    try:
        image = torch.ones(1, 1, 8, 8, device=f"cuda:{index}")
        torch.nn.functional.conv2d(image, image[..., :3, :3]).sum().item()
        free = torch.cuda.mem_get_info(index)[0]
    except (RuntimeError, AssertionError) as error:
        text = f"torch cannot compute on GPU {index} (compute capability {capability}): "
        built = ", ".join(torch.cuda.get_arch_list()) or "no GPU"
        fix = f"This torch is built for {built}. Use '--device cpu', or another torch: {TORCH}"
        findings.append(Finding(f"{text}{first_line(error)}.", fix))
    if free is not None and free < LITTLE:
        text = f"only {free / 1e6:.0f} MB of the memory of GPU {index} are free."
        findings.append(Finding(text, "'nvidia-smi' shows which processes use it."))
    return {
        "name": properties.name,
        "compute_capability": capability,
        "memory_bytes": properties.total_memory,
        "free_bytes": free,
    }


def check_folders() -> Section:
    """Check that pinmem's folders can be written and have space."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from pinmem_core.paths import home

    folders = {"home": (home(), "PINMEM_HOME")}
    for name in ("archives", "raw", "datasets", "runs"):  # each may be a link to another disk
        if (home() / name).exists():
            folders[name] = (home() / name, "PINMEM_HOME")
    folders["models of the Hub"] = (Path(HF_HUB_CACHE), "HF_HOME")
    folders["temporary files"] = (Path(tempfile.gettempdir()), "TMPDIR")
    values, findings = {}, []
    for name, (path, variable) in folders.items():
        place = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        problem = _write_problem(place)
        free = shutil.disk_usage(place).free if place.exists() else None
        if problem:
            text = (
                f"the folder of {name}, {path}, cannot be written: {problem.strerror or problem}."
            )
            is_full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "Make space" if is_full else "Check who may write there"
            fix = f"{remedy}, or set {variable} to another folder."
            findings.append(Finding(text, fix))
        elif free is not None and free < LITTLE:
            text = f"only {free / 1e6:.0f} MB are free on the disk of {path}."
            fix = f"Make space, or set {variable} to a folder on a larger disk."
            findings.append(Finding(text, fix))
        values[name] = {"path": str(path), "writable": not problem, "free_bytes": free}
    return Section(values, findings)


def _write_problem(folder: Path) -> OSError | None:
    """Return the error of writing a file in a folder; None if one can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error
    return None
