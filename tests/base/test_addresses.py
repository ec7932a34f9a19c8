"""Web addresses are shown and shared without the secrets in them."""

import json
import tarfile

import pytest
from conftest import Result, camvid_folder

from pinmem_core.addresses import redact_text, redact_url


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://example.org/a.zip", "https://example.org/a.zip"),
        ("https://example.org/f/?packageID=3", "https://example.org/f/?packageID=3"),
        ("https://example.org/a?dl=1&lang=en", "https://example.org/a?dl=1&lang=en"),
        ("https://ada:se@same@example.org:8080/a", "https://example.org:8080/a"),
        ("https://ada@example.org/a", "https://example.org/a"),
        ("ftp://ada:sesame@example.org/a", "ftp://example.org/a"),
        ("https://example.org/a?token=abc", "https://example.org/a?token=***"),
        ("https://example.org/a?X-Amz-Signature=12", "https://example.org/a?X-Amz-Signature=***"),
        ("https://example.org/a?%74oken=12&b=2", "https://example.org/a?%74oken=***&b=2"),
        ("https://example.org/a?hunter2hunter2", "https://example.org/a?***"),
        ("https://example.org/a?x=hunter2", "https://example.org/a?x=***"),
        ("https://example.org/a;jsessionid=9/b", "https://example.org/a;***/b"),
        ("https://example.org/a#access_token=hunter2", "https://example.org/a"),
        ("https://ada:ses/ame@example.org/a", "https://***"),
        ("https://[ada:sesame@example.org/a", "https://example.org/a"),
        ("https://[hunter2/a", "https://***"),
        ("a.zip", "a.zip"),
    ],
)
def test_secrets_of_an_address_are_masked(address, shown):
    assert redact_url(address) == shown
    assert redact_text(f"see '{address}', or ask.") == f"see '{shown}', or ask."


CARD = """
name: mycity
title: My city
homepage: https://ada:sesame@example.org/
login: https://ada:sesame@example.org/login
terms: See https://example.org/terms?token=hunter2.
layouts:
  - {name: f, image: "images/{n}.png", label: "labels/{n}.png", label_maps: [trainids], id: "{n}"}
archives:
  - {file: a.zip, bytes: 100, url: "https://ada:sesame@example.org/a.zip?token=hunter2"}
"""


def test_commands_and_packs_hold_no_secret_of_a_card(tmp_path, home):
    card = tmp_path / "mycity.yaml"
    card.write_text(CARD)
    raw = camvid_folder(tmp_path / "raw", {"a": 3})
    options = "--card", str(card)
    shown = [
        Result("data", "download", "mycity", *options, "--dry-run"),
        Result("data", "download", "mycity", *options, "--dry-run", "--json"),
        Result("data", "download", "mycity", *options),
        Result("data", "prepare", "mycity", *options, "--from", str(raw)),
        Result("data", "info", "mycity"),
        Result("data", "info", "mycity", "--json"),
    ]
    assert [result.code for result in shown] == [0, 0, 2, 0, 0, 0]
    pack = tmp_path / "mycity.tar"
    assert Result("data", "pack", "mycity", "-o", str(pack)).code == 0
    with tarfile.open(pack) as tar:
        packed = b"".join(
            file.read()
            for member in tar
            if not member.name.endswith(".png") and (file := tar.extractfile(member))
        ).decode()
    assert "example.org/a.zip" in packed
    assert json.loads(shown[1].out)["files"][0]["url"] == ["https://example.org/a.zip?token=***"]
    for text in [packed, *(result.out + result.err for result in shown)]:
        assert "sesame" not in text and "hunter2" not in text
