"""Downloads of the archives of a dataset, several at a time."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import requests
from filelock import FileLock, Timeout

from pinmem_core.addresses import redact_url
from pinmem_core.data.access import Credentials, log_in, require_accepted, require_credentials
from pinmem_core.data.card import Archive, DatasetCard
from pinmem_core.data.catalog import name_to_type
from pinmem_core.data.http_range import (
    Exchange,
    InterruptionError,
    Means,
    Partial,
    Patience,
    RefusalError,
    new_session,
)
from pinmem_core.data.thread_pool import Stop, in_turn, run_all
from pinmem_core.data.verification import (
    find_fault,
    find_fault_of_finished,
    published,
    record,
    set_aside,
)
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.home import archives_root


def fetch(archive: Archive, path: Path, means: Means) -> None:
    """Make `path` the published bytes of `archive`, going on from what is there.

    Raises:
        DataError: No address gives it, or what came is not what was published.
        MachineError: Another process is fetching it, or the disk does not take it.
        StoppedError: It was given up.
    """
    with _locked(path):
        if path.is_file():
            fault = find_fault_of_finished(archive, path, means.on_event)
            if not fault:
                return
            if not archive.url:
                raise DataError(f"{path} {fault}.", "Fetch it again from its official source.")
            set_aside(path, fault, means.on_event)
        with means.open_session() as session:
            _Transfer(archive, path, session, means).run()


class _Transfer:
    def __init__(
        self, archive: Archive, path: Path, session: requests.Session, means: Means
    ) -> None:
        self._archive = archive
        self._path = path
        self._part = Partial(path)
        self._session = session
        self._means = means

    def run(self) -> None:
        """Fetch and verify; what comes out wrong is fetched once more from its beginning."""
        urls = self._archive.url
        fault = self._fetch_and_check(urls)
        if fault:
            message = f"{self._archive.file} {fault}; fetching it once more."
            self._means.on_event(Notice(message, warning=True))
            fault = self._fetch_and_check(urls[1:] + urls[:1])
        if fault:
            raise DataError(
                f"{self._archive.file} {fault}, twice in a row.",
                "The site may have changed the file: see whether a newer pinmem knows it, or put "
                f"the right file into {self._path.parent} by hand.",
            )
        record(self._archive, self._path, self._part.path, self._means.on_event)
        self._part.become(self._path)

    def _fetch_and_check(self, urls: tuple[str, ...]) -> str | None:
        """Return what is wrong with what came, which is gone then."""
        self._fetch_from_any(urls)
        fault = find_fault(
            self._archive, self._part.path, published(self._archive), self._means.on_event
        )
        if fault:
            self._part.discard()
        return fault

    def _fetch_from_any(self, urls: tuple[str, ...]) -> None:
        """Try the addresses in turn."""
        for url in urls:
            try:
                return self._persist(url)
            except RefusalError as refusal:
                last = refusal
        raise DataError(
            f"cannot fetch {self._archive.file}: {redact_url(url)} {last.reason}.",
            f"{last.hint or 'Open the address in a browser.'} "
            f"You may also put the file into {self._path.parent} by hand.",
        )

    def _persist(self, url: str) -> None:
        """Ask one address until all is there, or until it brings nothing new for too long."""
        exchange = Exchange(self._archive, url, self._session, self._means)
        failures, reached = 0, self._part.size
        while True:
            try:
                return exchange.fetch_rest(self._part)
            except InterruptionError as interruption:
                cause = interruption
            size = self._part.size
            failures, reached = (0, size) if size > reached else (failures + 1, reached)
            if failures > self._means.patience.retries:
                raise RefusalError(f"{cause.reason}, {failures} times in a row", "Try again later.")
            self._pause(url, cause, failures)

    def _pause(self, url: str, cause: InterruptionError, failures: int) -> None:
        seconds = self._means.patience.wait(failures, cause.wait)
        if failures:
            message = f"{redact_url(url)} {cause.reason}; trying again in {seconds:.0f} s."
            self._means.on_event(Notice(message))
        self._means.stop.wait(seconds)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=1)
    except Timeout:
        raise MachineError(
            f"another pinmem is fetching {path}.", "Wait for it, or stop it."
        ) from None
    except OSError as error:
        raise MachineError(
            f"cannot write to {path.parent}: {error.strerror}.", "Name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


_PATIENCE = Patience()


@dataclass(frozen=True)
class Wanted:
    """An archive, its place, and how many of its bytes are on disk."""

    archive: Archive
    path: Path
    done: int

    @property
    def state(self) -> Literal["present", "partial", "absent"]:
        """Whether the file has its name, is begun, or neither; nothing is verified."""
        if self.path.is_file():
            return "present"
        return "partial" if self.done else "absent"


def wanted(
    card: DatasetCard, folder: Path | None = None, parts: Sequence[str] = ()
) -> list[Wanted]:
    """Return the archives of `card`, without asking any site.

    Args:
        card: The dataset.
        folder: Where they are kept; by default under `PINMEM_HOME`.
        parts: Names of the parts wanted; none means all.

    Raises:
        ConfigError: The dataset has no such part.
    """
    known = {archive.part for archive in card.archives if archive.part}
    for part in parts:
        if part not in known:
            raise unknown_name(f"part of {card.name}", part, known)
    folder = folder or archives_root(card.name)
    archives = [archive for archive in card.archives if not parts or archive.part in parts]
    return [_look_at(archive, folder / archive.file) for archive in archives]


def download(
    card: DatasetCard,
    folder: Path | None = None,
    *,
    parts: Sequence[str] = (),
    jobs: int = 4,
    credentials: Credentials | None = None,
    on_event: Listener = ignore,
    patience: Patience = _PATIENCE,
) -> list[Path]:
    """Fetch the archives of `card` and return where they are, verified.

    What is there is verified and kept; what an interrupted download left is gone on with. The
    first failure, and Ctrl-C, end all transfers soon and keep what came so far.

    Args:
        card: The dataset.
        folder: Where the archives are kept; by default under `PINMEM_HOME`.
        parts: Names of the parts wanted; none means all.
        jobs: How many files are fetched at a time.
        credentials: For a site with a login; None takes what the user has stored.
        on_event: Hears of the progress, one event at a time.
        patience: Limits of waiting.

    Raises:
        ConfigError: A person has to fetch the files, accept the terms or log in first.
        DataError: A file cannot be fetched, or is not what was published.
        MachineError: The disk is too small, or another process is fetching the same.
    """
    files = wanted(card, folder, parts)
    _require_addresses(card, files)
    require_accepted(card)
    stop = Stop()
    listen = in_turn(on_event, stop)
    missing = _without_right_ones(files, jobs, stop, listen)
    if missing:
        if card.login:
            credentials = require_credentials(card, card.login, credentials)
        _require_space(card, missing)
        open_session = _opener(card, credentials, patience)
        means = Means(open_session, patience, stop, listen)
        run_all(lambda file: fetch(file.archive, file.path, means), missing, jobs, stop)
    return [file.path for file in files]


def _look_at(archive: Archive, path: Path) -> Wanted:
    return Wanted(archive, path, path.stat().st_size if path.is_file() else Partial(path).size)


def _require_addresses(card: DatasetCard, files: Sequence[Wanted]) -> None:
    """Say what a person has to do where pinmem cannot fetch a file."""
    awaited = [file.archive.file for file in files if not file.archive.url]
    if files and all(file.state == "present" for file in files if not file.archive.url):
        return
    if card.draw:
        raise ConfigError(
            f"{card.name} is drawn, not fetched.", f"Draw it: pinmem data prepare {card.name}"
        )
    steps = [f"{number}. {step}" for number, step in enumerate(card.steps, 1)]
    command = f"pinmem data prepare {name_to_type(card)} --from FOLDER"
    if not files:
        raise ConfigError(
            f"the card of {card.name} names no archives that pinmem could fetch.",
            f"Name the folder or pack that holds it: {command}",
        )
    names = ", ".join(awaited)
    last = f"Put {names} into a folder, then: {command}"
    raise ConfigError(
        f"pinmem cannot fetch {names} of {card.name}: a person has to.",
        "\n".join([*steps, last]),
    )


def _without_right_ones(
    files: Sequence[Wanted], jobs: int, stop: Stop, listen: Listener
) -> list[Wanted]:
    """Return those that have to be fetched; wrong ones stay until their turn comes."""

    def is_right(file: Wanted) -> bool:
        return not find_fault_of_finished(file.archive, file.path, listen)

    present = [file for file in files if file.state == "present"]
    right = dict(zip(present, run_all(is_right, present, jobs, stop), strict=True))
    return [file for file in files if not right.get(file)]


def _require_space(card: DatasetCard, missing: Sequence[Wanted]) -> None:
    """Raise MachineError where the disk is too small, as far as sizes are known."""
    needed = sum(
        max((file.archive.expected_bytes or 0) - Partial(file.path).size, 0) for file in missing
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


def _opener(
    card: DatasetCard, credentials: Credentials | None, patience: Patience
) -> Callable[[], requests.Session]:
    """Log in once where that is needed; return what gives every thread a session of its own."""
    with new_session() as visitor:
        if card.login and credentials:
            log_in(visitor, card.login, credentials, patience)
            for cookie in visitor.cookies:
                cookie.secure = card.login.startswith("https://")  # never over plain http

    def open_session() -> requests.Session:
        session = new_session()
        session.cookies.update(visitor.cookies)
        return session

    return open_session
