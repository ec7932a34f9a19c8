"""Verified downloads of the archives of a dataset, several at a time."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from requests.cookies import RequestsCookieJar
from urllib3.util import Retry

from pinmem_core.addresses import redact_url
from pinmem_core.data.access import Credentials, log_in, require_accepted, require_credentials
from pinmem_core.data.archives import check_archive, is_archive
from pinmem_core.data.card import Archive, DatasetCard
from pinmem_core.data.catalog import name_to_type
from pinmem_core.data.http_range import (
    RETRY,
    TIMEOUT,
    PartialFile,
    Transfer,
    TransferError,
    TransferOptions,
    new_session,
)
from pinmem_core.data.thread_pool import CancelToken, run_all, serialized
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.events import Listener, Notice, ThrottledProgress, ignore
from pinmem_core.files import write_atomic
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.paths import archives_root

_Checksum = tuple[str, str]
"""Algorithm, "sha256" or "md5", and hexadecimal digest."""
_BLOCK = 2**20


@dataclass(frozen=True)
class Wanted:
    """An archive of a dataset, its path, and the number of its bytes on disk."""

    archive: Archive
    path: Path
    done: int

    @property
    def state(self) -> Literal["present", "partial", "absent"]:
        """Whether the file is complete by its name, begun, or neither; it is not verified."""
        if self.path.is_file():
            return "present"
        return "partial" if self.done else "absent"


def wanted(
    card: DatasetCard, folder: Path | None = None, parts: Sequence[str] = ()
) -> list[Wanted]:
    """Return the archives of a dataset, without a request to any site.

    Args:
        card: The dataset.
        folder: Folder of the archives; by default under `PINMEM_HOME`.
        parts: Names of the wanted parts; none means all.

    Raises:
        ConfigError: The dataset has no such part.
    """
    known = {archive.part for archive in card.archives if archive.part}
    for part in parts:
        if part not in known:
            raise unknown_name(f"part of {card.name}", part, known)
    folder = folder or archives_root(card.name)
    files = []
    for archive in card.archives:
        if not parts or archive.part in parts:
            path = folder / archive.file
            done = path.stat().st_size if path.is_file() else PartialFile(path).size
            files.append(Wanted(archive, path, done))
    return files


def download(
    card: DatasetCard,
    folder: Path | None = None,
    *,
    parts: Sequence[str] = (),
    jobs: int = 4,
    credentials: Credentials | None = None,
    on_event: Listener = ignore,
    retry: Retry = RETRY,
    timeout: tuple[float, float] = TIMEOUT,
) -> list[Path]:
    """Download the archives of a dataset, verify them and return their paths.

    Existing files are verified and kept; partial files are resumed. The first failure, and Ctrl-C,
    cancel all transfers within seconds and keep the received bytes.

    Args:
        card: The dataset.
        folder: Folder of the archives; by default under `PINMEM_HOME`.
        parts: Names of the wanted parts; none means all.
        jobs: Number of simultaneous downloads.
        credentials: Login of the site; None for the stored one.
        on_event: Callback for progress events; calls do not overlap.
        retry: Retry policy, which should be derived from `RETRY`.
        timeout: Seconds to wait for a connection and for the next bytes.

    Raises:
        ConfigError: The user must download the files, accept the terms or log in first.
        DataError: A file cannot be downloaded, or is not the published one.
        MachineError: The disk is too small, or another process is downloading the same file.
    """
    files = wanted(card, folder, parts)
    _require_addresses(card, files)
    require_accepted(card)
    token = CancelToken()
    listener = serialized(on_event, token)

    def is_right(file: Wanted) -> bool:
        return not _find_fault_of_finished(file.archive, file.path, listener)

    present = [file for file in files if file.state == "present"]
    verified = dict(zip(present, run_all(is_right, present, jobs, token), strict=True))
    missing = [file for file in files if not verified.get(file)]
    if missing:
        if card.login:
            credentials = require_credentials(card, card.login, credentials)
        _require_space(card, missing)
        cookies = _log_in(card, credentials, timeout)
        options = TransferOptions(cookies, retry, timeout, token, listener)
        run_all(lambda file: _fetch(file.archive, file.path, options), missing, jobs, token)
    return [file.path for file in files]


def _require_addresses(card: DatasetCard, files: Sequence[Wanted]) -> None:
    """Check that pinmem can download the files that are not there."""
    manual = [file for file in files if not file.archive.url]
    if files and all(file.state == "present" for file in manual):
        return
    if card.generate:
        raise ConfigError(
            f"{card.name} is synthetic: it cannot be downloaded.",
            f"Generate it: pinmem data prepare {card.name}",
        )
    command = f"pinmem data prepare {name_to_type(card)} --from FOLDER"
    if not files:
        raise ConfigError(
            f"the card of {card.name} names no archives that pinmem could download.",
            f"Name the folder or pack that holds it: {command}",
        )
    names = ", ".join(file.archive.file for file in manual)
    steps = [f"{number}. {step}" for number, step in enumerate(card.steps, 1)]
    raise ConfigError(
        f"pinmem cannot download {names} of {card.name}: a person has to.",
        "\n".join([*steps, f"Put {names} into a folder, then: {command}"]),
    )


def _require_space(card: DatasetCard, missing: Sequence[Wanted]) -> None:
    needed = sum(
        max((file.archive.expected_bytes or 0) - PartialFile(file.path).size, 0) for file in missing
    )
    folder = missing[0].path.parent
    disk = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise MachineError(
            f"{card.name} needs {needed / 1e9:.1f} GB more in {folder}, but {free / 1e9:.1f} GB "
            "are free.",
            "Make room, or name another folder.",
        )


def _log_in(
    card: DatasetCard, credentials: Credentials | None, timeout: tuple[float, float]
) -> RequestsCookieJar:
    """Log in if the site requires it, and return the cookies for all transfers."""
    with new_session() as session:
        if card.login and credentials:
            log_in(session, card.login, credentials, timeout)
            for cookie in session.cookies:
                cookie.secure = card.login.startswith("https://")  # never over plain http
        return session.cookies


def _fetch(archive: Archive, path: Path, options: TransferOptions) -> None:
    """Download and verify a file; a wrong one is downloaded once more from its beginning."""
    part = PartialFile(path)
    with hold_lock(lock_file(path), str(path), options.on_event):
        try:
            if path.is_file() and _keeps(archive, path, options):
                return None
            fault = _fetch_and_verify(archive, archive.url, part, options)
            if fault:
                message = f"{archive.file} {fault}; it is downloaded once more."
                options.on_event(Notice(message, warning=True))
                urls = archive.url[1:] + archive.url[:1]
                fault = _fetch_and_verify(archive, urls, part, options)
            if not fault:
                _record(archive, path, part.path, options.on_event)
                return part.finish(path)
        except OSError as error:
            reason = error.strerror or error
            hint = "Make room, or name another folder. The next download resumes."
            raise MachineError(f"cannot write {part.path}: {reason}.", hint) from error
    raise DataError(
        f"{archive.file} {fault}, twice in a row.",
        "The site may have changed the file: see whether a newer pinmem knows it, or put "
        f"the right file into {path.parent} by hand.",
    )


def _keeps(archive: Archive, path: Path, options: TransferOptions) -> bool:
    """Return whether an existing file is right; otherwise set it aside."""
    fault = _find_fault_of_finished(archive, path, options.on_event)
    if fault and not archive.url:
        raise DataError(f"{path} {fault}.", "Download it again from its official source.")
    if fault:
        _set_aside(path, fault, options.on_event)
    return not fault


def _fetch_and_verify(
    archive: Archive, urls: Sequence[str], part: PartialFile, options: TransferOptions
) -> str | None:
    """Download from the first address that works; return what is wrong with the result."""
    with new_session(options.cookies) as session:
        for url in urls:
            try:
                Transfer(archive, url, part, session, options).run()
                break
            except TransferError as error:
                refusal = error
        else:
            raise DataError(
                f"cannot download {archive.file}: {redact_url(url)} {refusal.reason}.",
                f"{refusal.hint} You may also put the file into {part.path.parent} by hand.",
            )
    fault = _find_fault(archive, part.path, _published(archive), options.on_event)
    if fault:
        part.discard()
    return fault


def _published(archive: Archive) -> _Checksum | None:
    """Return the strongest checksum in the card."""
    if archive.sha256:
        return "sha256", archive.sha256
    return ("md5", archive.md5) if archive.md5 else None


def _record(archive: Archive, path: Path, bytes_at: Path, on_event: Listener) -> None:
    """Write `path`.sha256, in the format of `sha256sum`, unless the card holds a checksum."""
    if not _published(archive):
        digest = _digest(bytes_at, "sha256", archive.file, on_event)
        write_atomic(_record_of(path), f"{digest}  {path.name}\n".encode())


def _find_fault(
    archive: Archive, path: Path, expected: _Checksum | None, on_event: Listener
) -> str | None:
    """Return what is wrong with the file at `path`, as the end of a sentence, or None."""
    size = path.stat().st_size
    if archive.bytes not in (None, size):
        return f"has {size} bytes instead of {archive.bytes}"
    if expected:
        algorithm, published = expected
        digest = _digest(path, algorithm, archive.file, on_event)
        wrong = digest != published
        return f"has the {algorithm} {digest} instead of {published}" if wrong else None
    if is_archive(Path(archive.file)):
        try:
            check_archive(path, archive.file)
        except DataError as error:
            return error.message.removeprefix(f"{path} ").removesuffix(".")
    return None


def _find_fault_of_finished(archive: Archive, path: Path, on_event: Listener) -> str | None:
    """Return what is wrong with a file under its final name, or None.

    Without a published checksum, the one recorded after the download counts. A file that the user
    put there is checked once, and its checksum is recorded.
    """
    expected = _published(archive) or _recorded(path)
    fault = _find_fault(archive, path, expected, on_event)
    if not fault and not expected:
        _record(archive, path, path, on_event)
    return fault


def _set_aside(path: Path, fault: str, on_event: Listener) -> None:
    """Rename a wrong file to an unused name, and remove its recorded checksum."""
    renamed = path.with_name(f"{path.name}.wrong")
    number = 2
    while renamed.exists():
        renamed = path.with_name(f"{path.name}.wrong-{number}")
        number += 1
    path.rename(renamed)
    _record_of(path).unlink(missing_ok=True)
    message = f"{path} {fault}; it is renamed to {renamed.name} and downloaded again."
    on_event(Notice(message, warning=True))


def _recorded(path: Path) -> _Checksum | None:
    try:
        match = re.match(r"[0-9a-f]{64}\b", _record_of(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return ("sha256", match[0]) if match else None


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path, algorithm: str, name: str, on_event: Listener) -> str:
    progress = ThrottledProgress(f"checking {name}", path.stat().st_size, on_event)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress.update(file.tell())
        progress.update(file.tell(), force=True)
    return digest.hexdigest()
