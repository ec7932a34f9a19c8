"""The names of models: folders, runs, and models on the Hugging Face Hub.

`huggingface_hub` manages the cache, the login and the environment variables (`HF_HOME`, `HF_TOKEN`,
`HF_ENDPOINT`, `HF_HUB_OFFLINE`, ...).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from pinmem_core.checkpoints.model_card import (
    CARD,
    ModelMetrics,
    progress_in_words,
    progress_of,
    seen_in_words,
)
from pinmem_core.documents import read_json_object, read_text
from pinmem_core.errors import DataError, MachineError, PinMemError, shell_join
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.paths import expanded, find_run, home, newest_run
from pinmem_core.yaml_text import YamlTextError, load_yaml

FILES = ("model.safetensors", "config.json", "README.md", "report.json")
"""Files of a model that are downloaded."""
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)
_TOKEN = re.compile("[!-~]*")
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[
    0
]  # of httpx or httpx2, depending on huggingface_hub
_CACHED = "Models that were downloaded before are read from the cache."
_LOGIN = "Log in with 'hf auth login', or set HF_TOKEN."


@dataclass(frozen=True)
class HubName:
    """The name of a model on the Hub.

    Attributes:
        repo: Repository, `user/name`.
        revision: Branch, tag or commit; None for the newest commit.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `user/name[@revision]`; return None if `text` is not such a name."""
        match = _NAME.fullmatch(text)
        if match is None or ".." in text:  # the cache keeps a file by the name of the revision
            return None
        try:
            validate_repo_id(match["repo"])
        except HFValidationError:
            return None
        return cls(match["repo"], match["revision"])

    @classmethod
    def of_cached(cls, folder: Path) -> Self | None:
        """Return the name and commit of a folder in the Hub's cache; None for other folders."""
        snapshots, repo = folder.parent, folder.parent.parent.name
        if snapshots.name != "snapshots" or not repo.startswith("models--"):
            return None
        return cls(repo.removeprefix("models--").replace("--", "/"), folder.name[:7])

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def fetch(name: HubName, **options: Any) -> Path:
    """Download a model from the Hub, unless it is in the cache, and return its folder.

    Args:
        name: Name of the model.
        options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of
            `huggingface_hub.snapshot_download`. A revision in the name takes precedence.

    Raises:
        DataError: There is no such model or revision, it is gated, or it is not a model of pinmem.
        MachineError: The Hub cannot be reached, and the model is not in the cache.
    """
    revision = name.revision or options.pop("revision", None)
    named = HubName(name.repo, revision)
    with asking_hub(named, f"fetch {named}, which is not a local folder"):
        folder = Path(
            snapshot_download(
                name.repo, **{**options, "revision": revision, "allow_patterns": [*FILES]}
            )
        )
    if not (folder / "config.json").exists():
        raise DataError(
            f"{named} on the Hub is not a model of pinmem: it has no config.json.",
            "Name a repository that pinmem has sent a model to.",
        )
    return folder


@contextmanager
def asking_hub(name: HubName, aim: str) -> Iterator[None]:
    """Hide progress bars in the block, and convert errors of the Hub to a `PinMemError`.

    Args:
        name: Name of the model.
        aim: Action that the error message names, e.g. "fetch user/name".

    Raises:
        DataError: There is no such model or revision, or it is gated.
        MachineError: The Hub cannot be reached, it refused, or the login is no token.
    """
    if not _TOKEN.fullmatch(get_token() or ""):
        raise MachineError(
            f"cannot {aim}: the token of the login holds a character that no token has.",
            "Copy it again: 'hf auth login', or HF_TOKEN.",
        )
    silent = are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    if not silent:
        disable_progress_bars()
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, _HTTPError) as error:
        raise _user_error(name, aim, error) from None
    finally:
        if not silent:
            enable_progress_bars()


def _user_error(name: HubName, aim: str, error: BaseException) -> PinMemError:
    """Return the error for the user, without the original text, which may contain anything."""
    hub = constants.ENDPOINT
    match error:
        case GatedRepoError():
            return DataError(
                f"the model {name.repo} is gated.",
                f"Ask for access on {hub}/{name.repo}. {_LOGIN}",
            )
        case RepositoryNotFoundError():
            return DataError(
                f"there is neither a folder nor a run nor a model on the Hub called '{name.repo}'.",
                f"If the model is private: {_LOGIN[0].lower()}{_LOGIN[1:]}",
            )
        case RevisionNotFoundError():
            return DataError(
                f"the model {name.repo} has no revision '{name.revision}'.",
                f"{hub}/{name.repo}/tree/main lists its branches and tags.",
            )
        case HfHubHTTPError(response=answer) if answer.status_code in (401, 403):
            return MachineError(
                f"cannot {aim}: the Hub denies access (status {answer.status_code}).",
                f"{_LOGIN} The token needs access to the model.",
            )
        case HfHubHTTPError(response=answer):
            return MachineError(
                f"cannot {aim}: the Hub answers with status {answer.status_code}.",
                "Try again later.",
            )
    if constants.HF_HUB_OFFLINE:
        return MachineError(f"cannot {aim}: HF_HUB_OFFLINE is set.", f"Unset it. {_CACHED}")
    return MachineError(
        f"cannot {aim}: the Hub ({hub}) cannot be reached.",
        f"Check the network connection. {_CACHED}",
    )


CHECKPOINT = "checkpoint"
"""Name of the checkpoint folder inside a run."""
STARTER = "starter"
"""Name of the model that ships with pinmem."""
STARTER_FOLDER = Path(__file__).parents[1] / "starter"
LAST = "last"
"""Name of the newest finished run, except runs of the demo and of sweeps."""


def checkpoint_of(name: str, *, on_event: Listener = ignore, **options: Any) -> Path:
    """Return the checkpoint folder of a model.

    Args:
        name: Folder or name of a run, folder of a checkpoint, "starter" for the model that ships
            with pinmem, "last" for the newest finished run, or `user/name[@revision]` on the Hub.
            A local folder or run takes precedence over the Hub.
        on_event: Callback for notices: which run "last" is, and that the Hub is asked.
        options: Options of `fetch` for the Hub.

    Raises:
        DataError: No folder, run or model has this name.
        MachineError: The Hub cannot be reached and the model is not in its cache; or the user has
            no home folder.
    """
    if expanded(name).is_file():
        raise DataError(f"{name} is a file, not the folder of a model.", _hint_for_file(name))
    try:
        folder = find_run(name)
    except (DataError, MachineError):
        if name == STARTER:
            return STARTER_FOLDER
        if name == LAST:
            run = newest_run()
            on_event(Notice(f"{LAST}: {run}, the newest run"))
            return checkpoint_of(str(run))
        on_hub = HubName.parse(name)
        if on_hub is None or is_local_path(name):
            raise
        on_event(Notice(f"{name} is not a local folder; asking the Hub"))
        return fetch(on_hub, **options)
    inside = folder / CHECKPOINT
    return inside if inside.is_dir() else folder


def model_name(checkpoint: Path) -> str:
    """Return the name of a model without local folders: "starter", a run, or `user/name@commit`."""
    if checkpoint == STARTER_FOLDER:
        return STARTER
    return str(HubName.of_cached(checkpoint) or run_folder(checkpoint.absolute()).name)


def lasting_name(name: str) -> str:
    """Return a name of a model that means the same later, from any folder.

    Raises:
        DataError: No folder, run or model has this name.
        MachineError: As for `checkpoint_of`.
    """
    folder = checkpoint_of(name)
    stays = folder == STARTER_FOLDER or HubName.of_cached(folder) is not None
    return name if stays else str(folder.absolute())


def is_local_path(name: str) -> bool:
    """Return whether a name is a path on this machine and not `user/name` on the Hub.

    `runs/first` is a path where a folder `runs` exists, whether or not it has a `first`; names of
    files, such as `export/model.onnx`, are paths as well.
    """
    path = expanded(name)
    is_file_name = path.suffix.lower() in (".onnx", ".pt2", ".pth", ".safetensors")
    return HubName.parse(name) is None or is_file_name or path.parent.is_dir()


def _hint_for_file(name: str) -> str:
    if onnx_file(name):
        return f"It predicts images: 'pinmem predict IMAGE --model {shell_join(name)}'."
    return "Name the folder. 'pinmem runs' lists the runs."


def onnx_file(name: str) -> Path | None:
    """Return the path of a model that is an ONNX file; None for the name of another model.

    Raises:
        DataError: The file does not exist.
    """
    path = expanded(name)
    if path.suffix.lower() != ".onnx" or path.is_dir():
        return None
    if not path.is_file():
        raise DataError(f"{name} does not exist.", "Write it: 'pinmem export onnx RUN'.")
    return path


def starter_summary() -> str:
    """Return one line with the training data and the scores of the starter model."""
    return (STARTER_FOLDER / "summary.txt").read_text(encoding="utf-8").strip()


_UNREADABLE = (
    DataError,
    YamlTextError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""Errors of a file of scores that has another form than pinmem writes."""


def model_summary(checkpoint: Path) -> str:
    """Return one line with the mIoU of a model and where it was measured, or "mIoU unknown".

    The scores are those of the run (`scores.json`), of a report on these weights next to them, or
    of the model card, which lists unseen domains only. What cannot be read is ignored.
    """
    if checkpoint == STARTER_FOLDER:
        return starter_summary()
    sources = (
        lambda: _scores_of_run(checkpoint.parent / "scores.json"),
        lambda: _scores_of_report(checkpoint),
        lambda: _scores_of_card(checkpoint / CARD),
    )
    for read in sources:
        with suppress(*_UNREADABLE):
            if scores := read():
                return f"mIoU {', '.join(scores)}"
    with suppress(DataError):
        config = read_json_object(checkpoint / "config.json", 1 << 28)
        if progress := progress_of(config):
            return f"mIoU unknown ({progress_in_words(progress)})"
    return "mIoU unknown"


def _scores_of_run(path: Path) -> list[str]:
    saved = read_json_object(path)
    return _in_words(ModelMetrics.of_run(saved, str(saved["protocol"])))


def _scores_of_report(checkpoint: Path) -> list[str]:
    report = read_json_object(checkpoint / "report.json", 1 << 28)
    config = read_json_object(checkpoint / "config.json", 1 << 28)
    if report["checkpoint"]["weights_sha256"] != config["sha256"]["weights"]:
        return []
    return _in_words(ModelMetrics.of_report(report))


def _scores_of_card(path: Path) -> list[str]:
    front = _FRONT_MATTER.match(read_text(path))
    models = load_yaml(front[1])["model-index"] if front else []
    return [
        f"{100 * float(metric['value']):.1f} % on {result['dataset']['name']} (unseen)"
        for model in models
        for result in model["results"]
        for metric in result["metrics"]
        if metric["type"] == "mean_iou"
    ]


def _in_words(metrics: ModelMetrics) -> list[str]:
    return [
        f"{100 * domain.miou:.1f} % on {domain.name} ({seen_in_words(domain.seen)})"
        for domain in metrics.domains
        if domain.miou is not None
    ]


def run_folder(checkpoint: Path) -> Path:
    """Return the folder for files that are derived from a checkpoint, such as reports.

    This is the run that contains the checkpoint, or the checkpoint folder itself outside of a run.
    The starter model and models of the Hub use a folder in pinmem's home instead.
    """
    if checkpoint == STARTER_FOLDER:
        return home() / STARTER
    on_hub = HubName.of_cached(checkpoint)
    if on_hub:
        return home() / "hub" / f"{on_hub.repo.replace('/', '--')}@{on_hub.revision}"
    return checkpoint.parent if checkpoint.name == CHECKPOINT else checkpoint
