"""`pinmem data` from a web server to a training run, and how its failures read."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import Result, camvid_folder
from http_server import Mood, Site, serving
from PIL import Image

from pinmem_core.data.catalog import get_card


@pytest.fixture
def site():
    with serving() as running:
        yield running


def _zipped(folder: Path) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return data.getvalue()


@pytest.fixture
def city(tmp_path: Path, site: Site) -> Path:
    """The card of a dataset whose two archives `site` serves."""
    archives = []
    for number, drive in enumerate(("north", "south"), start=1):
        folder = camvid_folder(tmp_path / "web" / drive, {drive: 6})
        data = site.files[f"/{drive}.zip"] = _zipped(folder)
        archives.append(
            {
                "file": f"{drive}.zip",
                "url": site.url(f"/{drive}.zip"),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "part": str(number),
            }
        )
    card = {
        "name": "mycity",
        "title": "My city",
        "terms": "Be kind.",
        "must_accept": True,
        "archives": archives,
        "label_maps": {
            "mine": {
                "values": {n: f"value {n}" for n in range(12)},
                "classes": {"road": [0, 1], "sky": 2, "car": [5, 9]},
            }
        },
        "layouts": [
            {
                "name": "mine",
                "image": "images/{drive}_{frame}.png",
                "label": "labels/{drive}_{frame}.png",
                "label_maps": "mine",
                "id": "{drive}_{frame}",
                "domain": "{drive}",
            }
        ],
        "domains": {"north": "hills", "south": "plain"},
        "recipe": "demo",
    }
    path = tmp_path / "mycity.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


@pytest.mark.slow
def test_from_a_server_to_another_machine(city, site, tmp_path, home, monkeypatch):
    options = ["--card", str(city), "--json"]
    plan = Result("data", "download", "mycity", "--dry-run", *options).json
    assert [(f["file"], f["state"]) for f in plan["files"]] == [
        ("north.zip", "absent"),
        ("south.zip", "absent"),
    ]
    assert plan["bytes_left"] == sum(map(len, site.files.values())) and not site.log

    refused = Result("data", "prepare", "mycity", *options)
    assert refused.code == 2 and "terms of mycity are not accepted" in refused.err

    done = Result("data", "prepare", "mycity", "--accept-terms", *options)
    assert done.code == 0, done.err
    assert done.json["counts"] == {"train": 10, "val": 2}
    assert len(site.log) == 2

    assert Result("data", "prepare", "mycity", "--json").json["digest"] == done.json["digest"]
    assert len(site.log) == 2  # nothing is fetched or asked twice

    checked = Result("data", "verify", "mycity", "--json")
    assert checked.code == 0 and checked.json["digest"] == done.json["digest"]

    figures = Result("data", "stats", "mycity", "--plot", str(tmp_path / "plot.png"), "--json").json
    assert figures["samples"] == 12 and figures["class_images"]["road"] == 12
    assert Image.open(tmp_path / "plot.png").width >= 900
    for name, start in (("plot.svg", b"<?xml"), ("plot.pdf", b"%PDF")):
        assert Result("data", "stats", "mycity", "--plot", str(tmp_path / name)).code == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    refused = Result("data", "stats", "mycity", "--plot", "plot.bmp")
    assert refused.code == 2 and ".png, .svg or .pdf" in refused.err

    packed = Result("data", "pack", "mycity", "-o", str(tmp_path / "p.tar"), "--json")
    assert packed.json["digest"] == done.json["digest"]
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "elsewhere"))
    moved = Result("data", "prepare", "mycity", "--from", str(tmp_path / "p.tar"), "--json")
    assert moved.json["digest"] == done.json["digest"]
    assert Result("data", "verify", "mycity").code == 0
    assert Result("data", "preview", "mycity:north", "-o", str(tmp_path / "s.png")).code == 0
    listed = {entry["name"]: entry for entry in Result("data", "list", "--json").json["datasets"]}
    assert listed["mycity"]["state"] == "ready"
    plan = Result("train", "--sources", "mycity:north", "--dry-run", "--device", "cpu")
    assert plan.code == 0, plan.err


def test_parts_can_be_fetched_alone(city, site, tmp_path):
    options = ["--card", str(city), "--accept-terms"]
    done = Result("data", "download", "mycity", "--parts", "2", "-o", str(tmp_path), *options)
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.glob("*.zip")] == ["south.zip"]
    assert f"--from {tmp_path}" in done.err
    one = Result("data", "prepare", "mycity", "--parts", "2", *options, "--json")
    assert one.json["counts"] == {"train": 5, "val": 1}


def test_the_command_of_a_hint_names_a_card_that_is_not_kept_yet(city):
    refused = Result("data", "prepare", "mycity", "--card", str(city))
    command = re.search("'pinmem ([^']+)'", refused.err)[1].replace("CARD.yaml", str(city))
    assert Result(*command.split()).code == 0
    assert Result("data", "prepare", "mycity", "--card", str(city)).code == 0


def test_archives_go_when_asked(city, home):
    options = ["--card", str(city), "--accept-terms", "--remove-archives"]
    assert Result("data", "prepare", "mycity", *options).code == 0
    assert not list((home / "archives").rglob("*.zip"))
    assert Result("data", "prepare", "mycity").code == 0  # what was unpacked is enough


def test_verify_tells_a_changed_label_by_exit_code_4(city):
    Result("data", "prepare", "mycity", "--card", str(city), "--accept-terms")
    from pinmem_core.data.prepared import PreparedDataset

    victim = PreparedDataset.open("mycity").samples[3]
    Image.new("L", (40, 30)).save(victim.label)
    checked = Result("data", "verify", "mycity")
    assert checked.code == 4
    assert str(victim.label) in checked.out and "next: pinmem data prepare mycity" in checked.err


def test_a_broken_server_is_told_in_a_sentence(city, site):
    site.always["/north.zip"] = Mood(status=404)
    done = Result("data", "prepare", "mycity", "--card", str(city), "--accept-terms")
    assert done.code == 3
    assert "404" in done.err and "north.zip" in done.err


ERRORS = [
    (["data", "download", "gtav"], 2, "terms of gtav are not accepted"),
    (["data", "download", "gtav", "--parts", "11", "--dry-run"], 2, "unknown part of gtav '11'"),
    (["data", "download", "idd"], 2, "a person has to"),
    (["data", "prepare", "mapillary"], 2, "mapillary-vistas-dataset_public_v1.2.zip"),
    (["data", "download", "cityscapes", "--accept-terms"], 2, "accounts only"),
    (["data", "prepare", "gtav", "--from", "nowhere"], 3, "nowhere does not exist"),
    (["data", "prepare", "gtav", "--from", ".", "--label-map", "pinmen"], 2, "label map of gtav"),
    (["data", "prepare", "gtaw"], 2, "unknown dataset 'gtaw'"),
    (["data", "prepare", "gtav", "--from", ".", "--reencode", "jpg"], 2, "image format 'jpg'"),
    (["data", "prepare", "gtav", "--from", ".", "--height", "9"], 2, "--height needs --reencode"),
    (["data", "prepare", "gtav", "--card", "x.yaml"], 2, "pinmem knows"),
    (["data", "prepare", "mine", "--card", "x.yaml"], 2, "x.yaml cannot be read"),
    (["data", "verify", "gtav"], 3, "not prepared"),
    (["data", "stats", "gtav"], 3, "not prepared"),
    (["data", "pack", "gtav", "-o", "a.tar"], 3, "not prepared"),
    (["data", "extract", "gtav", "--from", "nowhere"], 3, "nowhere"),
    (["data", "new-card", "nowhere"], 3, "nowhere"),
]


@pytest.mark.parametrize(("command", "code", "said"), ERRORS, ids=lambda v: str(v)[:60])
def test_errors_are_one_sentence_and_a_hint(command, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_: str(tmp_path / "none"))
    done = Result(*command)
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_info_shows_what_the_card_knows():
    card = get_card("cityscapes")
    shown = Result("data", "info", "cityscapes")
    assert card.title in shown.out and "2975" in shown.out
    known = Result("data", "info", "cityscapes", "--json").json
    assert known["published"] == {"train": 2975, "val": 500} and known["counts"] == {}
    assert known["state"] == "absent" and known["label_maps"] == ["cityscapes-ids", "trainids"]
    assert json.dumps(known["archives"]).count("md5") == 2


def test_a_folder_of_ones_own_to_a_prepared_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = camvid_folder(tmp_path / "raw", {"north": 6, "south": 6})
    drafted = Result("data", "new-card", str(source), "--name", "mine")
    assert drafted.code == 0, drafted.err
    assert "pinmem data prepare mine --card mine.yaml" in drafted.err
    again = Result("data", "new-card", str(source), "--name", "mine")
    assert again.code == 2 and "mine.yaml exists" in again.err
    unchanged = Result("data", "prepare", "mine", "--card", "mine.yaml", "--from", str(source))
    assert unchanged.code == 0, unchanged.err
    card = yaml.safe_load(Path("mine.yaml").read_text())
    card["label_maps"]["own"]["classes"] = {}
    Path("mine.yaml").write_text(yaml.safe_dump(card))
    unfilled = Result("data", "prepare", "mine", "--card", "mine.yaml", "--from", str(source))
    assert unfilled.code == 3 and "no pixel of it belongs to a class" in unfilled.err
    del card["label_space"]
    card["label_maps"]["own"]["classes"] = {"road": [3], "sky": 0}
    Path("mine.yaml").write_text(yaml.safe_dump(card))
    done = Result("data", "prepare", "mine", "--card", "mine.yaml", "--from", str(source))
    assert done.code == 0, done.err
    assert Result("data", "list").out.count("mine") == 1


def test_a_dry_run_says_what_a_folder_holds(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    (source / "labels" / "0001TP_00002.png").unlink()
    done = Result("data", "prepare", "camvid", "--from", str(source), "--dry-run", "--json").json
    assert done["counts"] == {"train": 4, "val": 1} and done["left_out"] == {"missing partner": 1}
    assert Result("data", "list", "--json").json["datasets"][2]["state"] == "absent"
