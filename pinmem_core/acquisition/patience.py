"""How long to wait for a site, and how often to try again."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Patience:
    """Limits of waiting, in seconds."""

    retries: int = 6
    """How many tries in a row may fail without a single new byte."""
    first_wait: float = 1.0
    """Wait before the second try; each further one waits twice as long."""
    longest_wait: float = 60.0
    """Most that is waited between two tries, whatever the site asks for."""
    connect: float = 10.0
    """Time for a connection to be made."""
    read: float = 60.0
    """Time for the next bytes to come."""

    @property
    def timeout(self) -> tuple[float, float]:
        """The limits of one request, as `requests` wants them."""
        return self.connect, self.read

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Return how long to wait after `failures` in a row; `asked` is what the site asks for."""
        if asked is not None:
            return min(asked, self.longest_wait)
        doubled = self.first_wait * 2.0 ** max(failures - 1, 0)
        return min(doubled, self.longest_wait) * random.uniform(0.5, 1.0)


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None where it says nothing."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
