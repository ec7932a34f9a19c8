"""Models on the Hugging Face Hub: names, downloads and errors.

`huggingface_hub` manages the cache, the login and the environment variables (`HF_HOME`, `HF_TOKEN`,
`HF_ENDPOINT`, `HF_HUB_OFFLINE`, ...).
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
"""Files of a model that are downloaded."""
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
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
        if match is None:
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
        DataError: There is no such model or revision, or it is gated.
        MachineError: The Hub cannot be reached, and the model is not in the cache.
    """
    revision = name.revision or options.pop("revision", None)
    named = HubName(name.repo, revision)
    with asking_hub(named, f"fetch {named}, which is not a local folder"):
        return Path(
            snapshot_download(
                name.repo, **{**options, "revision": revision, "allow_patterns": [*FILES]}
            )
        )


@contextmanager
def asking_hub(name: HubName, aim: str) -> Iterator[None]:
    """Hide progress bars in the block, and convert errors of the Hub to a `PinMemError`.

    Args:
        name: Name of the model.
        aim: Action that the error message names, e.g. "fetch user/name".

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
