import errno
import gzip
import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from itertools import pairwise
from pathlib import Path

import platformdirs
import pytest
import requests
from http_server import LOGIN, PASSWORD, USER, Mood, Site, serving

from pinmem_core.data import access as login_module
from pinmem_core.data import download as download_module
from pinmem_core.data import thread_pool
from pinmem_core.data.access import (
    Credentials,
    accept,
    accepted,
    find_credentials,
    log_in,
    require_accepted,
)
from pinmem_core.data.card import Archive, DatasetCard, Layout
from pinmem_core.data.catalog import write_card
from pinmem_core.data.download import download, wanted
from pinmem_core.data.http_range import RETRY, new_session
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.events import Event, Notice, Progress

HURRY = RETRY.new(total=3, backoff_factor=0.001, backoff_jitter=0.0, backoff_max=0.01)
SHORT = (2.0, 2.0)
GET, PARTIAL = "/a.zip", "a.zip.part"


def zipped(seed: int, size: int = 150_000) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(3):
            member = zipfile.ZipInfo(f"{number}.png")  # without the time of day: always the same
            archive.writestr(member, random.Random(seed + number).randbytes(size // 3))
    return file.getvalue()


@cache
def bomb() -> bytes:
    """Return a small gzip file that unpacks to 60 MB."""
    return gzip.compress(bytes(60_000_000), 1)


DATA = zipped(0)
CHECKSUMS = {
    "sha256": {"sha256": hashlib.sha256(DATA).hexdigest()},
    "md5": {"md5": hashlib.md5(DATA).hexdigest()},
    "none": {},
}
checksums = pytest.mark.parametrize("checksum", CHECKSUMS.values(), ids=CHECKSUMS)


@pytest.fixture
def site():
    with serving() as site:
        site.files[GET] = DATA
        yield site


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "archives"


def card_of(*archives: Archive, **values: object) -> DatasetCard:
    layout = Layout(name="x", image="{n}.png", label="{n}_l.png", label_maps="trainids", id="{n}")
    settings = {"name": "toytown", "title": "Toytown", "layouts": (layout,), "archives": archives}
    return DatasetCard(**(settings | values))


def zip_of(site: Site, *paths: str, **values: object) -> DatasetCard:
    """The card of one archive that lies at each of `paths`."""
    urls = tuple(site.url(path) for path in paths or (GET,))
    return card_of(Archive(file="a.zip", url=urls, **values))


def fetch(card: DatasetCard, folder: Path, **values: object) -> list[Event]:
    """Download, and see that the result is `DATA` and nothing else."""
    events: list[Event] = []
    settings = {"retry": HURRY, "timeout": SHORT, "on_event": events.append} | values
    assert download(card, folder, **settings) == [folder / "a.zip"]
    assert (folder / "a.zip").read_bytes() == DATA
    assert not list(folder.glob("*.part*"))
    return events


def refuse(card: DatasetCard, folder: Path, **values: object) -> str:
    """Download, and see that it fails with one sentence and without a result."""
    with pytest.raises((ConfigError, DataError, MachineError)) as error:
        download(card, folder, retry=HURRY, timeout=SHORT, **values)
    assert error.value.message.endswith(".") and "\n" not in error.value.message
    assert error.value.hint
    assert not (folder / "a.zip").exists()
    return error.value.message


def warnings(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice) and event.warning]


# One file, one address


@checksums
def test_a_file_is_fetched_verified_and_reported(site, folder, checksum):
    events = fetch(zip_of(site, bytes=len(DATA), **checksum), folder)
    shown = [event for event in events if isinstance(event, Progress)]
    assert Progress("a.zip", len(DATA), len(DATA), "bytes") in shown
    assert Progress("checking a.zip", len(DATA), len(DATA), "bytes") in shown
    assert (folder / "a.zip.sha256").exists() == (not checksum)


def test_the_record_is_in_the_format_of_sha256sum(site, folder):
    fetch(zip_of(site), folder)
    digest = hashlib.sha256(DATA).hexdigest()
    assert (folder / "a.zip.sha256").read_text() == f"{digest}  a.zip\n"


@checksums
def test_a_connection_that_keeps_breaking_brings_the_file_in_the_end(site, folder, checksum):
    rng = random.Random(7)
    site.moods[GET] = [Mood(cut=rng.randrange(1, 9_000)) for _ in range(20)]
    fetch(zip_of(site, **checksum), folder)
    starts = [int(text[6:-1]) for text in site.ranges(GET)[1:]]
    assert len(starts) == 20 > 3  # every new byte resets the count
    assert starts == sorted(starts) and all(
        request.headers["If-Range"] for request in site.gets(GET)[1:]
    )


def test_an_address_that_brings_nothing_new_is_given_up(site, folder):
    site.always[GET] = Mood(cut=0)
    message = refuse(zip_of(site), folder)
    assert site.url(GET) in message and "4 times in a row" in message
    assert len(site.gets(GET)) == 3 + 1


def test_a_server_without_ranges_is_asked_for_the_whole(site, folder):
    site.moods[GET] = [Mood(cut=50_000)]
    site.always[GET] = Mood(deaf=True)
    fetch(zip_of(site), folder)
    assert site.ranges(GET) == [None, "bytes=50000-"]


def test_a_server_without_ranges_that_always_breaks_is_given_up(site, folder):
    site.always[GET] = Mood(deaf=True, cut=50_000)
    refuse(zip_of(site), folder)
    assert len(site.gets(GET)) == 3 + 2


def test_a_server_that_gives_little_at_a_time_is_asked_for_more(site, folder):
    site.moods[GET], site.always[GET] = [Mood(cut=50_000)], Mood(ration=40_000)
    fetch(zip_of(site), folder)
    assert site.ranges(GET) == [None, "bytes=50000-", "bytes=90000-", "bytes=130000-"]


def test_a_length_too_long_is_seen_through(site, folder):
    site.moods[GET] = [Mood(lie=77)]
    fetch(zip_of(site), folder)
    assert site.ranges(GET) == [None, f"bytes={len(DATA)}-"]  # answered with 416 */length


def test_a_length_that_is_always_too_long_is_given_up(site, folder):
    site.always[GET] = Mood(lie=77)
    refuse(zip_of(site), folder)


@checksums
def test_a_length_too_short_is_no_complete_file(site, folder, checksum):
    site.always[GET] = Mood(lie=-77)
    assert "twice in a row" in refuse(zip_of(site, **checksum), folder)


def test_another_length_than_published_is_refused_before_it_is_fetched(site, folder):
    message = refuse(zip_of(site, bytes=len(DATA) + 1), folder)
    assert f"offers {len(DATA)} bytes instead of {len(DATA) + 1}" in message
    assert not (folder / PARTIAL).exists()


def test_a_server_without_a_length_is_believed_if_the_file_is_whole(site, folder):
    site.always[GET] = Mood(hidden=True)
    fetch(zip_of(site), folder)
    (folder / "a.zip").unlink()
    site.always[GET] = Mood(hidden=True, cut=100_000)
    refuse(zip_of(site), folder)


@checksums
def test_a_byte_turned_once_is_noticed_and_fetched_again(site, folder, checksum):
    site.moods[GET] = [Mood(flip=1000)]
    events = fetch(zip_of(site, **checksum), folder)
    assert len(site.gets(GET)) == 2 and len(warnings(events)) == 1


@checksums
def test_a_byte_turned_always_is_an_error_that_leaves_nothing(site, folder, checksum):
    site.always[GET] = Mood(flip=1000)
    assert "a.zip" in refuse(zip_of(site, **checksum), folder)
    assert len(site.gets(GET)) == 2 and not list(folder.glob("a.zip*"))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(site, folder, status):
    site.moods[GET] = [Mood(status=status), Mood(status=status)]
    events = fetch(zip_of(site), folder)
    assert len(site.gets(GET)) == 3
    assert sum(f"answered {status}" in str(event) for event in events) == 2


def test_the_wait_that_a_server_asks_for_is_kept_within_limits(site, folder):
    site.moods[GET] = [Mood(status=429, headers={"Retry-After": "3600"})]
    start = time.monotonic()
    fetch(zip_of(site), folder, retry=HURRY.new(backoff_max=0.3))
    assert 0.3 <= time.monotonic() - start < 2


def test_waits_double_up_to_the_longest(site, folder):
    site.moods[GET] = [Mood(status=503)] * 5
    fetch(zip_of(site), folder, retry=HURRY.new(total=5, backoff_factor=0.05, backoff_max=0.15))
    times = [request.time for request in site.gets(GET)]
    waits = [later - earlier for earlier, later in pairwise(times)]
    for wait, least in zip(waits, (0.05, 0.1, 0.15, 0.15, 0.15), strict=True):
        assert least <= wait < least + 0.1


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 0.3, 1),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.2),
        ("soon", 0, 0.2),
        ("9" * 5000, 0, 0.2),
    ],
    ids=["future", "past", "text", "digits"],
)
def test_a_retry_after_may_be_a_date_or_nonsense(site, folder, header, least, most):
    site.moods[GET] = [Mood(status=429, headers={"Retry-After": header})]
    fetch(zip_of(site), folder, retry=HURRY.new(backoff_max=0.3))
    first, second = site.gets(GET)
    assert least <= second.time - first.time < most


def test_a_server_that_falls_silent_is_asked_again(site, folder):
    site.moods[GET] = [Mood(pause=30)]
    fetch(zip_of(site), folder, timeout=(2, 0.2))
    first, second = site.ranges(GET)
    assert first is None and second is not None


def test_a_slow_link_is_waited_for(site, folder):
    site.always[GET] = Mood(pause=0.01)
    start = time.monotonic()
    events = fetch(zip_of(site), folder)
    most = 3 + 10 * (time.monotonic() - start)
    steps = [event for event in events if isinstance(event, Progress) and event.task == "a.zip"]
    assert 3 <= len(steps) <= most and site.ranges(GET) == [None]


@checksums
@pytest.mark.parametrize("wrong", [{"shift": 7}, {"lie": 7}], ids=["start", "total"])
def test_an_answer_with_other_bytes_than_asked_for_is_not_appended(site, folder, checksum, wrong):
    site.moods[GET] = [Mood(cut=50_000), Mood(**wrong)]
    events = fetch(zip_of(site, **checksum), folder)
    assert site.ranges(GET) == [None, "bytes=50000-", None] and not warnings(events)


@pytest.mark.parametrize("trusting", [False, True], ids=["If-Range", "ETag"])
def test_a_file_that_changes_on_the_server_is_begun_anew(site, folder, trusting):
    site.files[GET] = zipped(5)
    assert len(site.files[GET]) == len(DATA)
    site.moods[GET], site.always[GET] = [Mood(cut=50_000)], Mood(cut=0)
    refuse(zip_of(site), folder)
    assert (folder / PARTIAL).stat().st_size == 50_000
    site.files[GET], site.always[GET] = DATA, Mood(trusting=trusting)
    assert not warnings(fetch(zip_of(site), folder))


def test_a_redirect_is_followed_to_another_host_without_the_cookies(site, folder):
    site.always["/old.zip"] = Mood(status=302, headers={"Location": site.url(GET, "localhost")})
    card = zip_of(site, "/old.zip").model_copy(update={"login": site.url(LOGIN)})
    fetch(card, folder, credentials=Credentials(USER, PASSWORD))
    assert "member=yes" in site.gets("/old.zip")[0].headers["Cookie"]
    assert "Cookie" not in site.gets(GET)[0].headers


def test_a_web_page_is_not_taken_for_the_file(site, folder):
    site.always[GET] = Mood(page=True)
    assert "answered with a web page instead of the file" in refuse(zip_of(site), folder)
    assert not list(folder.glob("a.zip*")) and len(site.log) == 1


def test_what_is_no_archive_is_taken_as_it_comes(site, folder):
    site.files["/list.txt"] = b"0001\n0002\n"
    card = card_of(Archive(file="list.txt", url=site.url("/list.txt")))
    assert download(card, folder)[0].read_bytes() == b"0001\n0002\n"


# A body that is larger than it may be


@pytest.mark.parametrize(
    "card",
    [{"bytes": len(DATA)}, {"about": f"{len(DATA)}"}, {}],
    ids=["bytes", "about", "announced"],
)
@pytest.mark.parametrize("hidden", [False, True], ids=["length", "no-length"])
def test_a_body_without_an_end_is_cut_off(site, folder, card, hidden, monkeypatch):
    monkeypatch.setattr("pinmem_core.data.http_range.LARGEST_UNKNOWN", 3_000_000)
    site.always[GET] = Mood(endless=True, hidden=hidden)
    written: list[int] = []
    message = refuse(
        zip_of(site, **card),
        folder,
        on_event=lambda event: written.append(getattr(event, "done", 0)),
    )
    assert "sends more than the" in message and not list(folder.glob("a.zip*"))
    known = "bytes" in card or not hidden
    assert max(written) <= (len(DATA) if known else 3_000_000)
    assert len(site.gets(GET)) == 1


def test_a_continuation_without_an_end_is_cut_off(site, folder):
    site.moods[GET] = [Mood(cut=50_000)]
    site.always[GET] = Mood(endless=True)
    assert f"more than the expected {len(DATA)} bytes" in refuse(zip_of(site), folder)


def test_a_size_far_beyond_the_cards_is_refused_before_it_is_fetched(site, folder):
    site.files[GET] = bytes(3_000_000)
    assert "offers 3000000 bytes" in refuse(zip_of(site, about="100 kB"), folder)
    assert not (folder / PARTIAL).exists()


def test_the_body_of_a_redirect_is_neither_read_nor_unpacked(site, folder):
    site.always["/old.zip"] = Mood(
        status=302,
        headers={"Location": site.url(GET), "Content-Encoding": "gzip", "Set-Cookie": "a=b"},
        body=bomb(),
    )
    tracemalloc.start()
    fetch(zip_of(site, "/old.zip"), folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert "a=b" in site.gets(GET)[0].headers["Cookie"]


@pytest.mark.parametrize("length", ["9" * 5000, "²", "-1"])
def test_a_length_that_is_no_number_is_no_length(site, folder, length):
    site.always["/odd.zip"] = Mood(status=200, headers={"Content-Range": f"bytes 0-1/{length}"})
    site.always[GET] = Mood(status=206, headers={"Content-Range": f"bytes 0-{length}/{length}"})
    refuse(zip_of(site), folder)


def test_a_redirect_to_what_is_no_text_is_an_error_in_words(site, folder):
    site.always[GET] = Mood(status=302, headers={"Location": "http://127.0.0.1/\xff\xfe"})
    assert "no address that can be downloaded from" in refuse(zip_of(site), folder)


# Several addresses, several files


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_the_next_address_is_tried_at_once(site, folder, status):
    site.always["/gone.zip"] = Mood(status=status)
    fetch(zip_of(site, "/gone.zip", GET), folder)
    assert len(site.gets("/gone.zip")) == 1


def test_an_address_that_is_down_or_none_is_passed_over(site, folder):
    with serving() as dead:
        address = dead.url(GET)
    urls = (address, "gopher://127.0.0.1/a.zip", site.url(GET))
    fetch(card_of(Archive(file="a.zip", url=urls)), folder)


def test_a_certificate_that_is_not_trusted_is_reported_with_the_remedy(site, folder, monkeypatch):
    def distrust(*_: object, **__: object) -> None:
        raise requests.exceptions.SSLError("certificate verify failed: unable to get local issuer")

    monkeypatch.setattr(requests.Session, "get", distrust)
    with pytest.raises(DataError, match="certificate that this machine does not trust") as error:
        download(zip_of(site), folder, retry=HURRY, timeout=SHORT)
    assert "REQUESTS_CA_BUNDLE" in (error.value.hint or "")


def test_a_missing_file_of_certificates_is_named(folder, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/none/ca.pem")
    card = card_of(Archive(file="a.zip", url="https://127.0.0.1/a.zip"))
    assert "/none/ca.pem" in refuse(card, folder)


def test_when_all_addresses_fail_the_last_is_named_without_its_user(site, folder):
    last = site.url("/gone.zip?packageID=3").replace("//", "//ada:sesame@")
    card = card_of(Archive(file="a.zip", url=(site.url("/lost.zip"), last)))
    message = refuse(card, folder)
    assert site.url("/gone.zip?packageID=3 answered 404 (Not Found)") in message


def test_no_file_holds_the_user_of_an_address(site, folder):
    url = site.url(f"{GET}?token=hunter2").replace("//", "//ada:sesame@")
    site.files[f"{GET}?token=hunter2"] = DATA
    site.moods[f"{GET}?token=hunter2"] = [Mood(cut=10)]
    site.always[f"{GET}?token=hunter2"] = Mood(cut=0)
    events: list[Event] = []
    message = refuse(card_of(Archive(file="a.zip", url=url)), folder, on_event=events.append)
    for text in ((folder / "a.zip.part.json").read_text(), message, str(events)):
        assert "sesame" not in text and "hunter2" not in text and "127.0.0.1" in text


def test_a_part_from_another_query_is_not_continued(site, folder):
    for number in "12":
        site.files[f"{GET}?token=secret{number}"] = zipped(int(number))
    site.moods[f"{GET}?token=secret1"] = [Mood(cut=50_000), Mood(status=404)]
    refuse(zip_of(site, f"{GET}?token=secret1"), folder)
    download(zip_of(site, f"{GET}?token=secret2"), folder, retry=HURRY, timeout=SHORT)
    assert (folder / "a.zip").read_bytes() == zipped(2)
    assert site.ranges(f"{GET}?token=secret2") == [None]


@checksums
def test_another_address_continues_only_what_a_checksum_will_prove(site, folder, checksum):
    site.files["/b.zip"] = DATA
    site.moods[GET] = [Mood(cut=50_000), Mood(status=404)]
    fetch(zip_of(site, GET, "/b.zip", **checksum), folder)
    assert site.ranges("/b.zip") == (["bytes=50000-"] if checksum else [None])
    assert "If-Range" not in site.gets("/b.zip")[0].headers


def test_wrong_bytes_are_fetched_again_from_the_other_address(site, folder):
    site.always["/bad.zip"] = Mood(flip=1000)
    site.files["/bad.zip"] = DATA
    fetch(zip_of(site, "/bad.zip", GET), folder)
    assert len(site.gets("/bad.zip")) == 1


@pytest.mark.parametrize("jobs", [1, 3, 9])
def test_several_files_come_at_a_time(site, folder, jobs):
    site.files |= {f"/{number}.zip": zipped(number, 30_000) for number in range(5)}
    archives = [Archive(file=path[1:], url=site.url(path), part=path[1]) for path in site.files]
    card = card_of(*archives)
    paths = download(card, folder, jobs=jobs, retry=HURRY, timeout=SHORT)
    assert [path.read_bytes() for path in paths] == list(site.files.values())
    assert not [path for path in folder.iterdir() if ".part" in path.name]


def test_the_first_failure_ends_the_other_transfers_soon_and_keeps_what_came(site, folder):
    site.files["/b.zip"] = DATA
    site.always[GET] = Mood(pause=30)
    site.moods["/b.zip"] = [Mood(pause=0.01, cut=50_000)]
    site.always["/b.zip"] = Mood(status=404)
    files = [Archive(file=path[1:], url=site.url(path)) for path in (GET, "/b.zip")]
    start = time.monotonic()
    with pytest.raises(DataError, match=r"b\.zip answered 404"):
        download(card_of(*files), folder, retry=HURRY)
    assert time.monotonic() - start < 1.5
    assert (folder / PARTIAL).stat().st_size > 0 and (folder / "b.zip.part").exists()


def test_a_thread_that_does_not_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(thread_pool, "JOIN_SECONDS", 0.05)
    deaf: list[threading.Thread] = []
    end = threading.Event()

    def work(stubborn: bool) -> None:
        if stubborn:
            deaf.append(threading.current_thread())
            end.wait(10)
        else:
            raise DataError("no.")

    with pytest.raises(DataError):
        thread_pool.run_all(work, [True, False], 2, thread_pool.CancelToken())
    assert deaf[0].is_alive() and deaf[0].daemon
    end.set()


# What is on disk already


@checksums
def test_a_right_file_is_verified_and_not_fetched_again(site, folder, checksum):
    fetch(zip_of(site, **checksum), folder)
    site.log.clear()
    events = fetch(zip_of(site, **checksum), folder)
    assert not site.log and Progress("checking a.zip", len(DATA), len(DATA), "bytes") in events


@checksums
def test_a_wrong_file_is_set_aside_with_a_warning_and_fetched(site, folder, checksum):
    card = zip_of(site, **checksum)
    fetch(card, folder)
    for name, other in (("a.zip.wrong", zipped(1)), ("a.zip.wrong-2", zipped(2))):
        (folder / "a.zip").write_bytes(other)
        (warning,) = warnings(fetch(card, folder))
        assert warning.endswith(f"it is renamed to {name} and downloaded again.")
        assert (folder / name).read_bytes() == other


def test_a_wrong_file_takes_its_record_along(site, folder):
    fetch(zip_of(site), folder)
    (folder / "a.zip").write_bytes(b"wrong")
    site.always[GET] = Mood(status=404)
    refuse(zip_of(site), folder)
    assert not (folder / "a.zip.sha256").exists()


@pytest.mark.parametrize("right", [True, False])
def test_a_file_put_there_by_hand_is_tested_and_recorded(site, folder, right):
    folder.mkdir()
    (folder / "a.zip").write_bytes(DATA if right else DATA[:-300])
    fetch(zip_of(site), folder)
    assert len(site.log) == (not right) and (folder / "a.zip.wrong").exists() != right
    assert (folder / "a.zip.sha256").exists()


def test_a_file_of_another_size_is_wrong(site, folder):
    folder.mkdir()
    (folder / "a.zip").write_bytes(zipped(3, 600))
    assert "bytes instead of" in warnings(fetch(zip_of(site, bytes=len(DATA)), folder))[0]


def _leave_part(folder: Path, size: int, record: object) -> None:
    folder.mkdir()
    (folder / PARTIAL).write_bytes(DATA[:size])
    if record is not None:
        (folder / "a.zip.part.json").write_text(json.dumps(record))


@checksums
@pytest.mark.parametrize(
    "record", [None, [], {"url": "http://127.0.0.1/other.zip"}], ids=["no", "torn", "other"]
)
def test_bytes_of_unknown_origin_are_continued_only_with_a_checksum(site, folder, checksum, record):
    _leave_part(folder, 60_000, record)
    fetch(zip_of(site, **checksum), folder)
    assert site.ranges(GET) == (["bytes=60000-"] if checksum else [None])


@pytest.mark.parametrize("known", [True, False])
def test_a_complete_part_gets_its_name(site, folder, known):
    record = {"url": site.url(GET)} | ({"total": len(DATA)} if known else {})
    _leave_part(folder, len(DATA), record)
    fetch(zip_of(site), folder)
    assert site.ranges(GET) == ([] if known else [f"bytes={len(DATA)}-"])


def test_a_part_longer_than_the_file_is_begun_anew(site, folder):
    folder.mkdir()
    (folder / PARTIAL).write_bytes(DATA + b"more")
    fetch(zip_of(site, **CHECKSUMS["md5"]), folder)
    assert site.ranges(GET)[-1] is None


def test_wanted_lists_what_is_there(site, folder):
    names = ("a.zip", "b.zip", "c.zip")
    card = card_of(*[Archive(file=name, part=name[0]) for name in names])
    _leave_part(folder, 100, None)
    (folder / "b.zip").write_bytes(DATA)
    assert [(w.archive.file, w.state, w.done) for w in wanted(card, folder)] == [
        ("a.zip", "partial", 100),
        ("b.zip", "present", len(DATA)),
        ("c.zip", "absent", 0),
    ]
    assert [w.path.name for w in wanted(card, folder, ["c", "a"])] == ["a.zip", "c.zip"]
    with pytest.raises(ConfigError, match="unknown part of toytown 'd'"):
        wanted(card, folder, ["d"])


def test_archives_are_kept_under_home(site, home):
    assert download(zip_of(site)) == [home / "archives" / "toytown" / "a.zip"]


# Interrupted, or not alone

CHILD = """
import signal, sys
from pathlib import Path
from pinmem_core.data.download import download
from pinmem_core.data.catalog import read_card
signal.signal(signal.SIGINT, signal.default_int_handler)
download(read_card(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture
def child(site, folder, tmp_path):
    """Another process that is fetching; the link is slow until `site.always` says otherwise."""
    card = tmp_path / "card.yaml"
    write_card(zip_of(site), card)
    site.always[GET] = Mood(pause=0.2)
    command = [sys.executable, "-c", CHILD, str(card), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _wait_for(lambda: (folder / PARTIAL).exists() and (folder / PARTIAL).stat().st_size > 0)
        yield process
        process.kill()


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_download_resumes_where_it_was(site, folder, child):
    child.kill()
    child.wait()
    there = (folder / PARTIAL).stat().st_size
    assert 0 < there < len(DATA)
    site.always[GET] = Mood()
    fetch(zip_of(site), folder)
    assert site.ranges(GET) == [None, f"bytes={there}-"]


def test_two_processes_do_not_fetch_the_same(site, folder, child):
    site.always[GET] = Mood()
    message = refuse(zip_of(site), folder)
    assert message == f"another pinmem process is using {folder / 'a.zip'}."
    assert len(site.gets(GET)) == 1


@pytest.mark.parametrize("silent", [False, True])
def test_ctrl_c_ends_soon_and_keeps_what_came(site, folder, tmp_path, silent, request):
    site.moods[GET] = [Mood(pause=30)] if silent else []
    process = request.getfixturevalue("child")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=10)[1]
    assert time.monotonic() - start < 5 and process.returncode
    assert (folder / PARTIAL).stat().st_size > 0


# What has to be so before


def test_a_disk_too_small_is_reported_before_anything_is_fetched(site, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 0, 2_000_000_000)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    message = refuse(zip_of(site, about="5.71 GB"), folder)
    assert "needs 5.7 GB" in message and "2.0 GB are free" in message
    assert not site.log


def test_a_missing_login_is_reported_before_the_disk_space(site, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 0, 0)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_: str(folder / "none"))
    archive = Archive(file="a.zip", url=(site.url(GET),), about="5.71 GB")
    card = card_of(archive, login=site.url("/login"))
    assert "accounts only" in refuse(card, folder)
    assert not site.log


def test_what_is_there_needs_no_space(site, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 0, len(DATA) - 60_000)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage)
    _leave_part(folder, 60_000, None)
    fetch(zip_of(site, bytes=len(DATA), **CHECKSUMS["md5"]), folder)


def test_a_folder_that_cannot_be_written_to_is_named(site, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refuse(zip_of(site), tmp_path / "file" / "archives")


def test_a_full_disk_is_named(site, folder, monkeypatch):
    opened = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", **values: object):
        if mode == "ab":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, **values)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    assert "a.zip.part: No space left on device." in refuse(zip_of(site), folder)


def test_what_a_person_has_to_download_is_listed_in_steps(folder):
    steps = ("Register at example.org.", "Fetch the files.")
    card = card_of(Archive(file="a.zip"), Archive(file="b.zip"), steps=steps)
    with pytest.raises(ConfigError, match=r"cannot download a\.zip, b\.zip of toytown") as error:
        download(card, folder)
    assert error.value.hint == (
        "1. Register at example.org.\n2. Fetch the files.\n"
        "Put a.zip, b.zip into a folder, then: "
        "pinmem data prepare toytown --card CARD.yaml --from FOLDER"
    )


def test_synthetic_data_are_not_downloaded(folder):
    with pytest.raises(ConfigError, match="toytown is synthetic"):
        download(card_of(generate=lambda folder, progress: None), folder)


@pytest.mark.parametrize("right", [True, False])
def test_what_a_person_has_fetched_is_verified_and_never_renamed(folder, right):
    folder.mkdir()
    (folder / "a.zip").write_bytes(DATA if right else DATA[:-1])
    card = card_of(Archive(file="a.zip", **CHECKSUMS["sha256"]))
    if right:
        assert download(card, folder) == [folder / "a.zip"]
    else:
        with pytest.raises(DataError, match=r"a\.zip has the sha256"):
            download(card, folder)
    assert (folder / "a.zip").exists()


def test_terms_are_accepted_once_and_anew_when_they_change(site, folder, home):
    card = zip_of(site).model_copy(
        update={"must_accept": True, "terms": "Research.", "terms_url": "https://example.org/t"}
    )
    refuse(card, folder)
    with pytest.raises(ConfigError, match="toytown") as error:
        require_accepted(card)
    assert error.value.hint == (
        "Read https://example.org/t; "
        "'pinmem data download toytown --card CARD.yaml --accept-terms' accepts them."
    )
    assert not accepted(card) and not site.log
    accept(card)
    accept(card.model_copy(update={"name": "otherville"}))
    fetch(card, folder)
    changed = card.model_copy(update={"terms": "Research, no cars."})
    assert accepted(card) and not accepted(changed)
    assert set(json.loads((home / "terms.json").read_text())) == {"toytown", "otherville"}


def test_terms_that_need_no_acceptance_are_not_asked_for(site, folder):
    fetch(zip_of(site).model_copy(update={"terms": "Cite."}), folder)


# Logging in


@pytest.fixture
def members_only(site, monkeypatch, tmp_path) -> DatasetCard:
    """A card whose file is given to members; this host passes for Cityscapes'."""
    site.members.add(GET)
    monkeypatch.setattr(login_module, "CITYSCAPES_ORIGINS", {site.url("")})
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda *names: str(Path(tmp_path, *names)))
    monkeypatch.delenv("CITYSCAPES_USERNAME", raising=False)
    monkeypatch.delenv("CITYSCAPES_PASSWORD", raising=False)
    return zip_of(site).model_copy(update={"login": site.url(LOGIN)})


def _store(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cityscapesscripts" / "cityscapes" / "credentials.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_a_member_gets_the_file_and_logs_in_once(site, folder, members_only):
    fetch(members_only, folder, credentials=Credentials(USER, PASSWORD))
    assert [request.method for request in site.log] == ["GET", "POST", "GET"]
    fetch(members_only, folder)  # what is there needs no login


def test_without_a_login_the_page_is_not_saved(site, folder, members_only):
    assert "web page" in refuse(zip_of(site), folder)


def test_a_wrong_password_is_reported_without_it(site, folder, members_only):
    message = refuse(members_only, folder, credentials=Credentials(USER, "hunter2"))
    assert USER in message and "hunter2" not in message
    assert "hunter2" not in repr(Credentials(USER, "hunter2"))
    assert not site.gets(GET)


def test_credentials_come_from_the_environment(folder, members_only, monkeypatch, tmp_path):
    monkeypatch.setenv("CITYSCAPES_USERNAME", USER)
    monkeypatch.setenv("CITYSCAPES_PASSWORD", PASSWORD)
    _store(tmp_path, json.dumps({"username": USER, "password": "outdated"}))
    fetch(members_only, folder)


def test_credentials_come_from_the_official_file(folder, members_only, tmp_path):
    _store(tmp_path, json.dumps({"username": USER, "password": PASSWORD}))
    fetch(members_only, folder)


@pytest.mark.parametrize("text", ['{"password": "hunter2"}', '["hunter2"]', '{"hunter2'])
def test_an_official_file_that_is_broken_is_named_without_its_text(
    site, folder, members_only, tmp_path, text
):
    _store(tmp_path, text)
    with pytest.raises(ConfigError, match=r"credentials\.json") as error:
        download(members_only, folder)
    assert "hunter2" not in f"{error.value.message} {error.value.hint}" and not site.log
    assert error.value.__suppress_context__  # the cause holds the file's text


def test_without_credentials_the_ways_are_listed(folder, members_only):
    with pytest.raises(ConfigError, match="toytown is given to accounts only") as error:
        download(members_only, folder)
    hint = error.value.hint or ""
    assert "CITYSCAPES_PASSWORD" in hint and "credentials.json" in hint and "terminal" in hint


def test_no_other_site_receives_the_credentials_for_cityscapes(site, folder, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", USER)
    monkeypatch.setenv("CITYSCAPES_PASSWORD", PASSWORD)
    assert find_credentials("https://www.cityscapes-dataset.com/login")
    refuse(zip_of(site).model_copy(update={"login": site.url(LOGIN)}), folder)
    assert not site.log


@pytest.mark.parametrize(
    "login",
    [
        "https://www.cityscapes-dataset.com:8443/login",
        "https://www.cityscapes-dataset.com.example.org/login",
        "https://www.cityscapes-dataset.com@example.org/login",
        r"https://example.org\\@www.cityscapes-dataset.com/login",
        r"https://example.org\@www.cityscapes-dataset.com/login",
        "https://www.cityscapes-dataset.com./login",
    ],
)
def test_the_credentials_for_cityscapes_go_to_its_origin_alone(login, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", USER)
    monkeypatch.setenv("CITYSCAPES_PASSWORD", PASSWORD)
    assert find_credentials(login) is None
    assert find_credentials("https://www.cityscapes-dataset.com/login")
    assert find_credentials("HTTPS://WWW.cityscapes-dataset.com:443/login")


@pytest.mark.parametrize(
    "login",
    [
        "http://www.cityscapes-dataset.com/login",
        "http://localhost.example.org/login",
        "http://example.org/login",
        "ftp://www.cityscapes-dataset.com/",
        "//www.cityscapes-dataset.com/login",
        "www.cityscapes-dataset.com/login",
    ],
)
def test_no_password_is_sent_without_encryption(site, login, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", USER)
    monkeypatch.setenv("CITYSCAPES_PASSWORD", PASSWORD)
    monkeypatch.setattr(requests.Session, "send", lambda *_, **__: pytest.fail("it is sent"))
    with pytest.raises(ConfigError, match="https"):
        find_credentials(login)
    with pytest.raises(ConfigError, match="https"):
        log_in(new_session(), login, Credentials(USER, PASSWORD))


def test_a_login_page_that_unpacks_to_gigabytes_is_not_unpacked(site):
    site.always[LOGIN] = Mood(status=200, headers={"Content-Encoding": "gzip"}, body=bomb())
    site.login_status = 302
    tracemalloc.start()
    log_in(new_session(), site.url(LOGIN), Credentials(USER, PASSWORD))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_site_out_of_order_is_not_taken_for_a_wrong_password(site):
    with serving() as closed:
        address = closed.url(LOGIN)
    with pytest.raises(DataError, match="could not be reached"):
        log_in(new_session(), address, Credentials(USER, PASSWORD))
    site.login_status = 503
    with pytest.raises(DataError, match="answered 503"):
        log_in(new_session(), site.url(LOGIN), Credentials(USER, PASSWORD))
