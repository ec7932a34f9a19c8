"""What `pinmem data` asks for on a terminal: terms, user name, password."""

import io
import os
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import Result
from http_server import LOGIN, PASSWORD, USER, Site, serving

pty = pytest.importorskip("pty")


@pytest.fixture
def site():
    with serving() as running:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("images/a.png", b"1234")
        running.files["/a.zip"] = data.getvalue()
        running.members.add("/a.zip")
        yield running


def _card(folder: Path, site: Site) -> Path:
    card = {
        "name": "mine",
        "title": "Mine",
        "terms": "Be kind.",
        "must_accept": True,
        "login": site.url(LOGIN),
        "archives": [{"file": "a.zip", "url": site.url("/a.zip")}],
        "layouts": [
            {
                "name": "mine",
                "image": "images/{n}.png",
                "label": "labels/{n}.png",
                "label_maps": "trainids",
                "id": "{n}",
            }
        ],
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def _converse(command: list[str], answers: dict[str, str]) -> tuple[int, str]:
    """Run a command on a terminal; type each answer once its question has appeared."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, deadline = "", time.monotonic() + 30
    waiting = dict(answers)
    while time.monotonic() < deadline:
        try:
            part = os.read(ours, 4096).decode()
        except OSError:  # the other end is closed
            part = ""
        if not part:
            break
        seen += part
        for question in [q for q in waiting if q in seen]:
            time.sleep(0.3)  # as people do: what is typed before the echo is off is dropped
            os.write(ours, f"{waiting.pop(question)}\n".encode())
    os.close(ours)
    return process.wait(10), seen


@pytest.mark.parametrize(
    ("answer", "password", "code"),
    [
        ("n", "", 2),
        ("y", PASSWORD, 0),
        pytest.param("y", "wrong one", 2, marks=pytest.mark.slow),
    ],
)
def test_terms_and_credentials_are_asked_for_and_passwords_never_shown(
    tmp_path, site, home, answer, password, code
):
    command = [sys.executable, "-m", "pinmem_cli", "data", "download", "mine", "--card"]
    answers = {"accept them?": answer, "User name": USER, "Password": password}
    if answer == "n":
        answers = {"accept them?": "n"}
    ended, seen = _converse([*command, str(_card(tmp_path, site))], answers)
    assert ended == code, seen
    assert "Be kind." in seen
    assert not password or password not in seen
    assert (home / "archives" / "mine" / "a.zip").exists() == (code == 0)
    stored = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    assert not password or not any(password.encode() in text for text in stored)


@pytest.mark.slow
def test_the_command_that_asks_for_credentials_works_when_pasted(tmp_path, site):
    card = _card(tmp_path, site)
    refused = Result("data", "download", "mine", "--card", str(card), "--accept-terms")
    (hint,) = re.findall("'pinmem (data download [^']+)'", refused.err)
    words = shlex.split(hint.replace("CARD.yaml", str(card)))
    command = [sys.executable, "-m", "pinmem_cli", *words]
    assert _converse(command, {"User name": USER, "Password": PASSWORD})[0] == 0
