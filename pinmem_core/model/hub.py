"""Models on the Hugging Face Hub: their names, fetching them, and what can go wrong.

Everything is left to `huggingface_hub`: its cache, its login, and the variables that it obeys
(`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, ...).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub import constants, snapshot_download
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

from pinmem_core.errors import DataError, MachineError, PinMemError

FILES = ("model.safetensors", "config.json", "README.md", "report.json")
"""What is fetched of a model."""
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[
    0
]  # of httpx or httpx2, as huggingface_hub has it
_CACHED = "What was fetched once is taken from the Hub's cache."
_LOGIN = "Log in with 'hf auth login', or set HF_TOKEN."


@dataclass(frozen=True)
class HubName:
    """How a model on the Hub is called.

    Attributes:
        repo: `user/name`.
        revision: A branch, a tag or a commit; None for the newest.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name that `text` (`user/name[@revision]`) is, or None if it is none."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        try:
            validate_repo_id(found["repo"])
        except HFValidationError:
            return None
        return cls(found["repo"], found["revision"])

    @classmethod
    def of_cached(cls, folder: Path) -> Self | None:
        """Return the name and commit of a model in the Hub's cache, or None for other folders."""
        snapshots, repo = folder.parent, folder.parent.parent.name
        if snapshots.name != "snapshots" or not repo.startswith("models--"):
            return None
        return cls(repo.removeprefix("models--").replace("--", "/"), folder.name[:7])

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def fetch(name: HubName, **options: Any) -> Path:
    """Return the folder of a model of the Hub in the Hub's cache, fetching what is not there.

    Args:
        name: Of the model.
        options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only`, as
            `huggingface_hub.snapshot_download` has them; a revision in the name comes first.

    Raises:
        DataError: There is no such model or revision, or it is gated.
        MachineError: The Hub cannot be reached, and the model is not in the cache.
    """
    revision = name.revision or options.pop("revision", None)
    named = HubName(name.repo, revision)
    with asking_hub(named, f"fetch {named}, which is no folder here"):
        return Path(
            snapshot_download(
                name.repo, **{**options, "revision": revision, "allow_patterns": [*FILES]}
            )
        )


@contextmanager
def asking_hub(name: HubName, aim: str) -> Iterator[None]:
    """Have the block speak with the Hub: no bars, and each failure told in a sentence.

    Args:
        name: Of the model that it is about.
        aim: What cannot be done where it fails, e.g. "fetch user/name".

    Raises:
        DataError: There is no such model or revision, or it is gated.
        MachineError: The Hub cannot be reached, or it refused.
    """
    silent = are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    if not silent:
        disable_progress_bars()
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, _HTTPError) as error:
        raise _told(name, aim, error) from None
    finally:
        if not silent:
            enable_progress_bars()


def _told(name: HubName, aim: str, error: BaseException) -> PinMemError:
    """Return the error for humans; of the original's text, which may hold anything, nothing."""
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
                f"If it is somebody's private model: {_LOGIN[0].lower()}{_LOGIN[1:]}",
            )
        case RevisionNotFoundError():
            return DataError(
                f"the model {name.repo} has no revision '{name.revision}'.",
                f"{hub}/{name.repo}/tree/main lists its branches and tags.",
            )
        case HfHubHTTPError(response=answer) if answer.status_code in (401, 403):
            return MachineError(
                f"cannot {aim}: the Hub refuses it (status {answer.status_code}).",
                f"{_LOGIN} The token needs the right to it.",
            )
        case HfHubHTTPError(response=answer):
            return MachineError(
                f"cannot {aim}: the Hub answers with status {answer.status_code}.",
                "Try again later.",
            )
    if constants.HF_HUB_OFFLINE:
        return MachineError(f"cannot {aim}: HF_HUB_OFFLINE is set.", f"Unset it. {_CACHED}")
    return MachineError(
        f"cannot {aim}: the Hub ({hub}) cannot be reached.", f"Is there a network? {_CACHED}"
    )
