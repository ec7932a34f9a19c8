"""Plan the upload of a checkpoint to the Hugging Face Hub, and upload it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from markupsafe import escape

from pinmem_core.checkpoints.base_weights import BaseRecord
from pinmem_core.checkpoints.checkpoint import WEIGHTS, weights_sha256
from pinmem_core.checkpoints.config_file import CONFIG
from pinmem_core.checkpoints.hub import HubName, asking_hub, checkpoint_of
from pinmem_core.checkpoints.model_card import CARD, model_card
from pinmem_core.data.catalog import shipped_cards
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, shell_join
from pinmem_core.evaluation.compare import LARGEST_REPORT
from pinmem_core.evaluation.report import DATA, PAGE
from pinmem_core.evaluation.results import report_text
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.export.files import Evidence, evidence_of, keeps_card
from pinmem_core.models import load_checkpoint
from pinmem_core.version import __version__

_PLACE = "<dt>checkpoint</dt><dd>%s</dd>"
"""Part of a `report.html` that names the folder of the checkpoint."""


@dataclass(frozen=True)
class Upload:
    """Plan of an upload.

    Attributes:
        name: Repository `user/name` and branch; None for the main branch.
        private: Whether a new repository is private and an existing one must be private.
        files: Contents, or the files that hold them, by path in the repository.
    """

    name: HubName
    private: bool
    files: Mapping[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """File sizes in bytes, by path in the repository."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in self.files.items()
        }

    @property
    def card(self) -> str:
        """Text of the model card."""
        content = self.files[CARD]
        return content.decode() if isinstance(content, bytes) else content.read_text("utf-8")


def plan_upload(
    model: str,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    on_event: Listener = ignore,
) -> Upload:
    """Return the files that an upload to the Hub would send, without sending anything.

    The upload consists of the checkpoint, which is loaded to check it; the model card with the
    scores of the newest report on these weights, or of the run; and that report. A card that a
    person has written is sent unchanged. The report's HTML page is sent only if all its images are
    synthetic.

    Args:
        model: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        repo: Repository, `user/name`.
        revision: Branch; None for the main branch.
        private: Whether only the owner may see the repository.
        on_event: Callback for notices about files that are left out.

    Raises:
        ConfigError: `repo` is no valid repository name, `revision` is no valid branch name, or the
            checkpoint names base weights on this machine.
        DataError: The model does not exist or is damaged.
    """
    name = _named(repo, revision)
    checkpoint = checkpoint_of(model, on_event=on_event)
    _, config = load_checkpoint(checkpoint)
    base = BaseRecord.of(config, checkpoint)
    if base and base.is_local:
        raise ConfigError(
            f"{model} needs the base weights {Path(base.source).name}, a file or folder of this "
            "machine, which others lack.",
            "Write the whole network, and push its folder: "
            f"pinmem export weights {shell_join(model)} -o whole",
        )
    evidence = evidence_of(checkpoint)
    files: dict[str, Path | bytes] = {f: checkpoint / f for f in (WEIGHTS, CONFIG)}
    files[CARD] = _card(checkpoint / CARD, config, evidence, name)
    if evidence and evidence.report:
        files |= _report(evidence, evidence.report, name, on_event)
    return Upload(name, private, files)


def upload(plan: Upload, *, on_event: Listener = ignore) -> str:
    """Upload a model to the Hub in one commit; return the URL of the commit.

    The commit removes a report on other weights, which an earlier upload has left there.

    Args:
        plan: Plan of the upload. A missing repository or branch is created.
        on_event: Callback for notices about files that are removed.

    Raises:
        ConfigError: The plan is private, but the repository exists and is public.
        DataError: The Hub rejects the metadata of the model card.
        MachineError: The Hub cannot be reached, or refuses the upload.
    """
    name, api = plan.name, HfApi(library_name="pinmem", library_version=__version__)
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, content) for path, content in plan.files.items()
    ]
    with asking_hub(name, f"push to {name}"):
        api.create_repo(name.repo, private=plan.private or None, exist_ok=True)
        if plan.private and not api.model_info(name.repo).private:
            raise ConfigError(
                f"{name.repo} exists and is public; nothing was sent.",
                "Make it private in its settings, choose another name, or leave out --private.",
            )
        if name.revision:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        for path in _outdated(plan, api):
            on_event(Notice(f"{path} of {name} is removed; it is on other weights"))
            changes.append(CommitOperationDelete(path))
        try:
            commit = api.create_commit(
                name.repo,
                changes,
                commit_message=f"Checkpoint from pinmem {__version__}",
                revision=name.revision,
            )
        except ValueError as error:
            if not str(error).startswith("Invalid metadata"):
                raise
            raise DataError(
                f"the Hub rejects the metadata of the {CARD}; nothing was sent.",
                "Correct the YAML between its two lines '---'.",
            ) from None
    return str(commit.commit_url)


def _outdated(plan: Upload, api: HfApi) -> list[str]:
    """Return the files of a report on other weights in the repository of an upload."""
    info = api.model_info(plan.name.repo, revision=plan.name.revision, files_metadata=True)
    there = {file.rfilename: file.lfs for file in info.siblings or ()}
    weights, ours = there.get(WEIGHTS), plan.files[WEIGHTS]
    if weights and isinstance(ours, Path) and weights.sha256 == weights_sha256(ours.parent):
        return []
    return [path for path in (DATA, PAGE) if path in there and path not in plan.files]


def _named(repo: str, revision: str | None) -> HubName:
    name = HubName.parse(repo)
    if name is None:
        raise ConfigError(f"'{repo}' is no valid model name on the Hub.", "Use 'user/name'.")
    if revision and name.revision:
        raise ConfigError(
            f"'{repo}' names a branch, and --revision another.", "Leave one of them out."
        )
    full = HubName.parse(f"{name.repo}@{revision}") if revision else name
    if full is None:
        raise ConfigError(f"'{revision}' is no valid branch name.", "Use letters and digits.")
    return full


def _card(
    old: Path, config: Mapping[str, Any], evidence: Evidence | None, name: HubName
) -> Path | bytes:
    """Return a new model card, or the old one if `keeps_card` says so."""
    if keeps_card(old, evidence):
        return old
    return model_card(config, evidence.metrics if evidence else None, name.repo).encode()


def _report(
    evidence: Evidence, report: Path, name: HubName, on_event: Listener
) -> dict[str, bytes]:
    """Return the report's files, without where the checkpoint lay on this machine."""
    content = read_json_object(report, LARGEST_REPORT)
    place = content["checkpoint"]["path"]
    content["checkpoint"]["path"] = name.repo
    files = {DATA: report_text(content).encode()}
    page = report.with_name(PAGE)
    if not page.exists():
        return files
    if not _are_synthetic(domain.name for domain in evidence.metrics.domains):
        on_event(Notice(f"{PAGE} is left out; the terms of its images may forbid sharing them"))
        return files
    text, old = page.read_text(encoding="utf-8"), _PLACE % escape(place)
    if old in text:
        files[PAGE] = text.replace(old, _PLACE % escape(name.repo)).encode()
    else:
        on_event(Notice(f"{PAGE} is left out; it does not belong to the {DATA} next to it"))
    return files


def _are_synthetic(domains: Iterable[str]) -> bool:
    """Return whether the images of all these domains are pinmem's synthetic scenes."""
    known = shipped_cards()
    datasets = {name.partition("@")[0].partition(":")[0] for name in domains}
    return all(name in known and known[name].generate for name in datasets)
