"""What may go wrong on this machine, for `pinmem doctor` and for bug reports.

A broken library must not stop the checks that do not need it. Each check therefore imports what it
needs when it runs, and a check that fails is a finding.
"""

import getpass
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pinmem_core.addresses import redact_values
from pinmem_core.errors import PinMemError, shell_join
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.version import __version__

if TYPE_CHECKING:
    from pinmem_core.data.samples import Sample

LIBRARIES = (
    *("torch", "torchvision", "numpy", "pillow", "safetensors", "huggingface-hub", "pydantic"),
    *("requests", "urllib3", "typer", "rich", "matplotlib", "jinja2", "pyyaml", "platformdirs"),
    *("regex", "isal", "packaging", "rarfile", "libarchive-c"),
)
"""Distributions that pinmem needs."""
EXTRAS: Mapping[str, tuple[str, Sequence[str]]] = {
    "backbones": ("backbones of timm", ("timm", "scipy")),
    "export": ("ONNX files", ("onnx", "onnxruntime", "onnxscript")),
    "mlflow": ("logs for MLflow", ("mlflow-skinny",)),
    "parquet": ("datasets in parquet files", ("pyarrow",)),
    "serve": ("a page to try models on", ("fastapi", "uvicorn")),
    "tensorboard": ("logs for TensorBoard", ("tensorboard",)),
    "video": ("prediction of videos", ("av",)),
    "wandb": ("logs for W&B", ("wandb",)),
}
"""What each extra adds, and its distributions."""
_MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "libarchive-c": "libarchive",
    "mlflow-skinny": "mlflow",
}
"""Modules whose name differs from that of their distribution."""
_TORCH = "https://pytorch.org/get-started/locally shows the command that installs it."
_REPAIRS = {
    "torch": f"Install torch again: {_TORCH}",
    "torchvision": f"Install torch and torchvision together: {_TORCH}",
    "libarchive-c": "Install libarchive ('apt install libarchive13' or 'brew install libarchive'); "
    "RAR archives need it.",
}
_LITTLE = 1_000_000_000
"""Bytes of memory or disk space below which little works."""
_LITTLE_SHARED = 256_000_000
"""Bytes of shared memory that processes for loading images need at least; docker gives 64 MB."""
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
_SECONDS = 10
"""Seconds to wait for a site."""


@dataclass(frozen=True)
class Finding:
    """A problem: one sentence, and how to fix it."""

    message: str
    fix: str


class Section(NamedTuple):
    """The result of a check: JSON-like values, and the problems."""

    values: Any
    findings: Sequence[Finding] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks, without secrets.

    Attributes:
        sections: JSON-like values by the name of the check; None for a check that failed.
        findings: All problems.
    """

    sections: Mapping[str, Any]
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as a JSON object."""
        return {**self.sections, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(
    checks: Mapping[str, Callable[[], Section]] | None = None, on_event: Listener = ignore
) -> Diagnosis:
    """Run the checks, and remove names and secrets from what they return.

    Args:
        checks: Checks by name; None for `CHECKS`.
        on_event: Callback for progress events.
    """
    checks = checks or CHECKS
    sections = {}
    for done, (name, check) in enumerate(checks.items(), start=1):
        sections[name] = _run(name, check)
        on_event(Progress("checking", done, len(checks)))
    findings = dict.fromkeys(each for section in sections.values() for each in section.findings)
    return Diagnosis(
        anonymous({name: section.values for name, section in sections.items()}),
        tuple(Finding(*anonymous([each.message, each.fix])) for each in findings),
    )


def _run(name: str, check: Callable[[], Section]) -> Section:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except PinMemError as error:
        return Section(None, [Finding(error.message, error.hint or "Check the path.")])
    except Exception as error:
        text = f"the check '{name}' failed: {_first_line(error)}."
        return Section(None, [Finding(text, "Repair the other findings first; else report it.")])


def anonymous(value: Any) -> Any:
    """Return a JSON-like `value` without names and secrets.

    URLs lose their secrets (`redact_url`); the user's home folder becomes `~`, and the names of
    user and machine in paths become `USER` and `HOST`.
    """
    if isinstance(value, Mapping):
        return {anonymous(key): anonymous(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(entry) for entry in value]
    if not isinstance(value, str):
        return value
    text = str(redact_values(value))
    with suppress(RuntimeError):  # a user without a home folder
        for folder in (Path.home(), Path.home().resolve()):
            if folder != Path(folder.anchor):
                text = re.sub(rf"{re.escape(str(folder))}(?![\w.-])", "~", text)
    names = {"HOST": platform.node()}
    with suppress(OSError, KeyError, ImportError):  # a user without a name
        names["USER"] = getpass.getuser()
    for word, name in names.items():
        if name:
            text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?![\w-])", word, text)
    return text


def check_system() -> Section:
    """Check versions, cores and memory."""
    memory = _memory()
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None
    findings = []
    available = memory.get("MemAvailable")
    if available is not None and available < _LITTLE:
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


def check_libraries() -> Section:
    """Check that each library that pinmem needs can be imported and is new enough."""
    states = {name: _library(name) for name in LIBRARIES}
    findings = []
    for name, state in states.items():
        fix = _REPAIRS.get(name, f"pip install --force-reinstall {name}")
        if state.version is None:
            findings.append(Finding(f"{name} is missing.", f"pip install {name}"))
        elif state.problem:
            findings.append(Finding(f"{name} cannot be imported: {state.problem}.", fix))
    versions = {name: state.version for name, state in states.items()}
    return Section(versions, [*findings, *_too_old(versions)])


def check_extras() -> Section:
    """Check which extras are installed, and that those can be imported."""
    values, findings = {}, []
    for extra, (adds, names) in EXTRAS.items():
        states = {name: _library(name) for name in names}
        broken = {name: state.problem for name, state in states.items() if state.problem}
        missing = any(state.version is None for state in states.values())
        for name, problem in broken.items():
            text = f"{name}, of the extra '{extra}', cannot be imported: {problem}."
            findings.append(Finding(text, f"pip install --force-reinstall {name}"))
        versions = {name: state.version for name, state in states.items()}
        findings += _too_old(versions)
        state = "broken" if broken else "missing" if missing else "installed"
        values[extra] = {"adds": adds, "state": state, "packages": versions}
    return Section(values, findings)


class _Library(NamedTuple):
    """The version of a library, None if missing; and why it cannot be imported, None if it can."""

    version: str | None
    problem: str | None = None


def _library(name: str) -> _Library:
    module = _MODULES.get(name, name.replace("-", "_"))
    if find_spec(module) is None:
        return _Library(None)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # e.g. onnxruntime-gpu in place of onnxruntime
        version = "unknown"
    try:
        import_module(module)
    except Exception as error:
        return _Library(version, _first_line(error))
    return _Library(version)


def _too_old(versions: Mapping[str, str | None]) -> list[Finding]:
    """Return a finding for each library whose version pinmem's own metadata does not allow."""
    from packaging.requirements import Requirement

    findings = []
    with suppress(importlib.metadata.PackageNotFoundError):  # run from a folder of the sources
        for text in importlib.metadata.requires("pinmem") or ():
            wanted = Requirement(text)
            version = versions.get(wanted.name)
            if version not in (None, "unknown") and not wanted.specifier.contains(version, True):
                message = f"pinmem needs {wanted.name}{wanted.specifier}, not {version}."
                command = shell_join("pip", "install", f"{wanted.name}{wanted.specifier}")
                findings.append(Finding(message, command))
    return findings


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
            findings.append(Finding(text, f"Install torch for CUDA: {_TORCH}"))
        else:
            text = f"torch for CUDA {torch.version.cuda} cannot use the GPU with driver {driver}."
            fix = f"Install a newer driver, or torch for an older CUDA: {_TORCH}"
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
        fix = f"This torch is built for {built}. Use '--device cpu', or another torch: {_TORCH}"
        findings.append(Finding(f"{text}{_first_line(error)}.", fix))
    if free is not None and free < _LITTLE:
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
            text = f"the folder of {name}, {path}, cannot be written: {problem}."
            fix = f"Check who may write there, or set {variable} to another folder."
            findings.append(Finding(text, fix))
        elif free is not None and free < _LITTLE:
            text = f"only {free / 1e6:.0f} MB are free on the disk of {path}."
            fix = f"Make space, or set {variable} to a folder on a larger disk."
            findings.append(Finding(text, fix))
        values[name] = {"path": str(path), "writable": not problem, "free_bytes": free}
    return Section(values, findings)


def _write_problem(folder: Path) -> str | None:
    """Return why no file can be written in a folder; None if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_datasets() -> Section:
    """Check that prepared datasets can be read, and that their files exist."""
    from pinmem_core.data.catalog import damaged_cards, get_card
    from pinmem_core.data.prepared import PreparedDataset, is_complete
    from pinmem_core.data.samples import evenly_spaced
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
        lost = [path for sample in chosen for path in _lost_files(sample)]
        state = "files missing" if lost else "ready" if whole else "partial"
        values[name] = {"state": state, "samples": len(dataset.samples), "counts": dataset.counts}
        if lost:
            text = f"the dataset '{name}' lacks {len(lost)} files of {len(chosen)} samples"
            fix = f"Restore them; 'pinmem data verify {name}' lists all."
            findings.append(Finding(f"{text}, e.g. {lost[0]}.", fix))
    return Section(values, findings)


def _lost_files(sample: "Sample") -> list[Path]:
    return [path for path in (sample.image, sample.label) if not path.exists()]


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


def network_sites() -> dict[str, str]:
    """Return addresses of files by name: the Hub, torchvision's weights, and each dataset."""
    from huggingface_hub import constants

    from pinmem_core.data.catalog import cards

    sites = {
        "the Hub": constants.ENDPOINT,
        "torchvision's weights": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    }
    for name, card in cards().items():
        address = next((url for archive in card.archives for url in archive.url), None)
        if address:
            sites[name] = address
    return sites


def check_network(sites: Mapping[str, str] | None = None) -> Section:
    """Check that each site answers. The result holds no addresses.

    Args:
        sites: Addresses by name; None for `network_sites()`.
    """
    sites = network_sites() if sites is None else sites
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(sites, pool.map(_answer, sites.values()), strict=True))
    findings = [
        Finding(
            f"{name}: the site cannot be used: {answer}.",
            "Check the network, and HTTPS_PROXY if yours needs a proxy; or try again later.",
        )
        for name, answer in answers.items()
        if not answer.startswith("ok")
    ]
    return Section(answers, findings)


def _answer(address: str) -> str:
    """Return "ok" or why a site does not give the file at an address."""
    import requests

    from pinmem_core.data.http_range import new_session

    try:
        with new_session() as session:
            response = session.get(address, timeout=_SECONDS, stream=True)
            status = response.status_code
    except requests.exceptions.SSLError:
        return "its certificate is not valid"
    except requests.exceptions.ProxyError:
        return "the proxy does not answer"
    except requests.Timeout:
        return f"no answer within {_SECONDS} s"
    except requests.RequestException:
        return "no connection"
    # 401 and 403: the site wants a login first.
    return "ok" if status < 500 and status not in (404, 410) else f"HTTP status {status}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")


CHECKS: Mapping[str, Callable[[], Section]] = {
    "system": check_system,
    "libraries": check_libraries,
    "extras": check_extras,
    "devices": check_devices,
    "folders": check_folders,
    "datasets": check_datasets,
    "runs": check_runs,
    "locks": check_locks,
    "settings": check_settings,
}
"""The checks that need no network."""
