"""Bringing one archive to disk: from whichever address, with patience, and verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock, Timeout

from pinmem_core.acquisition.exchange import Exchange, InterruptionError, Means, RefusalError
from pinmem_core.acquisition.partial import Partial
from pinmem_core.acquisition.verification import (
    find_fault,
    find_fault_of_finished,
    published,
    record,
    set_aside,
)
from pinmem_core.addresses import masked
from pinmem_core.datasets import Archive
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Notice


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
            f"cannot fetch {self._archive.file}: {masked(url)} {last.reason}.",
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
            message = f"{masked(url)} {cause.reason}; trying again in {seconds:.0f} s."
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
