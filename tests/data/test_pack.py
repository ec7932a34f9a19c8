import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import camvid_folder

from pinmem_core.data.card import Archive, DatasetCard, Layout
from pinmem_core.data.catalog import card_of_user, get_card, write_card
from pinmem_core.data.convert import Reencoding, label_digest
from pinmem_core.data.pack import pack
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.unpack import is_pack, packed_card, unpack
from pinmem_core.data.verify import verify
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.events import Event, Notice
from pinmem_core.images import read_image, write_png
from pinmem_core.label_files import read_label

CAMVID = get_card("camvid")
MINE = DatasetCard(
    name="mine",
    title="My streets",
    layouts=(
        Layout(
            name="flat",
            image="images/{name}.png",
            label="labels/{name}.png",
            label_maps=("trainids",),
            id="{name}",
        ),
    ),
)
Members = dict[str, bytes]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Move to another machine: call it, and PINMEM_HOME is an empty folder."""

    def move() -> Path:
        monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "elsewhere"))
        return tmp_path / "elsewhere"

    return move


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return prepare(CAMVID, [camvid_folder(tmp_path / "raw", {"0001TP": 5, "Seq05VD": 5})])


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def write(path: Path, files: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def facts(dataset: PreparedDataset) -> list[tuple[object, ...]]:
    return [(s.id, s.split, s.domain, s.width, s.height) for s in dataset.samples]


def test_a_dataset_is_the_same_on_another_machine(tmp_path, dataset, elsewhere):
    before = {s.id: (s.image.read_bytes(), s.label.read_bytes()) for s in dataset.samples}
    summary = pack("camvid", tmp_path / "camvid.tar")
    home = elsewhere()
    moved = unpack(summary.path)
    assert moved == PreparedDataset.open("camvid")
    assert facts(moved) == facts(dataset)
    assert {s.id: (s.image.read_bytes(), s.label.read_bytes()) for s in moved.samples} == before
    assert all(s.image.is_relative_to(home / "datasets" / "camvid") for s in moved.samples)
    for key in ("digest", "counts", "class_pixels", "label_map", "layout"):
        assert moved.summary[key] == dataset.summary[key]
    assert (summary.samples, summary.digest) == (10, dataset.summary["digest"])
    assert summary.bytes == (tmp_path / "camvid.tar").stat().st_size


def test_a_dataset_of_ones_own_brings_its_card(tmp_path, elsewhere):
    prepare(MINE, [camvid_folder(tmp_path / "raw", {"a": 5})])
    path = pack("mine", tmp_path / "mine.tar").path
    elsewhere()
    with pytest.raises(ConfigError, match="unknown dataset"):
        PreparedDataset.open("mine")
    assert packed_card(path) == MINE
    assert len(unpack(path).samples) == 5
    assert get_card("mine") == MINE


def test_a_card_in_a_pack_is_not_registered_without_a_word(tmp_path, elsewhere):
    archive = Archive(file="a.zip", url=("https://files.example/a.zip",))
    card = MINE.model_copy(update={"archives": (archive,)})
    prepare(card, [camvid_folder(tmp_path / "raw", {"a": 5})])
    path = pack("mine", tmp_path / "mine.tar").path
    elsewhere()
    events: list[Event] = []

    def notices() -> list[str]:
        unpack(path, on_event=events.append)
        said = [e.message for e in events if isinstance(e, Notice) and e.warning]
        events.clear()
        return said

    (first,) = notices()
    assert str(path) in first and "now known here" in first and "files.example" in first
    assert notices() == []
    write_card(MINE, card_of_user("mine"))
    assert "in place of the one" in notices()[0]


@pytest.mark.parametrize("member", ["pinmem-pack.json", "dataset.json"])
def test_deep_json_in_a_pack_is_refused(tmp_path, dataset, elsewhere, member):
    files = members(pack("camvid", tmp_path / "camvid.tar").path)
    elsewhere()
    with pytest.raises(DataError, match=r"camvid|deep"):
        unpack(write(tmp_path / "deep.tar", {**files, member: b"[" * 10**6}))


def test_a_known_dataset_keeps_the_card_that_pinmem_has(tmp_path, dataset, elsewhere):
    path = pack("camvid", tmp_path / "camvid.tar").path
    home = elsewhere()
    unpack(path)
    assert packed_card(path).name == "camvid"
    assert sorted(p.name for p in (home / "datasets" / "camvid").iterdir()) == [
        "conversions.jsonl",
        "dataset.json",
        "images",
        "labels",
        "manifest.jsonl",
    ]
    assert [p.name for p in (home / "datasets").iterdir()] == ["camvid"]


def test_a_pack_takes_the_place_of_what_was_there(tmp_path, dataset):
    path = pack("camvid", tmp_path / "camvid.tar", splits=["val"]).path
    assert len(unpack(path).samples) == 2
    assert not list((dataset.root / "labels").rglob("*00000.png"))


def test_a_pack_says_nothing_of_where_it_was_made(tmp_path, elsewhere):
    source = camvid_folder(tmp_path / "secret-folder" / "raw", {"0001TP": 5})
    (source / "images" / "0001TP_00000.png").write_bytes(b"no picture")
    prepare(CAMVID, [source])
    files = members(pack("camvid", tmp_path / "camvid.tar").path)
    assert b"secret-folder" not in b"".join(files.values())
    (excluded,) = json.loads(files["dataset.json"])["excluded"]
    assert excluded["file"] == "images/0001TP_00000.png"
    assert (excluded["rule"], json.loads(files["dataset.json"])["sources"]) == ("unreadable", [])


def test_the_same_data_gives_the_same_bytes(tmp_path, dataset, elsewhere):
    one = pack("camvid", tmp_path / "one.tar").path
    elsewhere()
    time.sleep(0.01)
    prepare(CAMVID, [camvid_folder(tmp_path / "other", {"0001TP": 5, "Seq05VD": 5})], jobs=1)
    other = pack("camvid", tmp_path / "other.tar", jobs=1).path
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as tar:
        infos = tar.getmembers()
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname) for i in infos} == {(0, 0, 0, "", "")}
    names = [info.name for info in infos]
    assert names[:2] == ["pinmem-pack.json", "card.yaml"]
    assert names[5:15] == sorted(names[5:15]) and names[15:25] == sorted(names[15:25])
    assert names[25:] == ["images.sha256"]


def test_a_pack_of_a_pack_is_the_same(tmp_path, dataset, elsewhere):
    one = pack("camvid", tmp_path / "one.tar").path
    elsewhere()
    unpack(one)
    assert pack("camvid", tmp_path / "two.tar").path.read_bytes() == one.read_bytes()


def test_images_are_shrunk_and_labels_follow(tmp_path, dataset, elsewhere):
    reencoding = Reencoding("webp", 80, 15)
    path = pack("camvid", tmp_path / "camvid.tar", reencoding=reencoding).path
    elsewhere()
    moved = unpack(path)
    assert moved.summary["reencoding"] == {"format": "webp", "quality": 80, "height": 15}
    assert moved.summary["digest"] != dataset.summary["digest"]
    for before, after in zip(dataset.samples, moved.samples, strict=True):
        assert (after.image.suffix, after.width, after.height) == (".webp", 20, 15)
        assert read_image(after.image).shape == (15, 20, 3)
        label = read_label(after.label)
        assert np.array_equal(label, reencoding.label(read_label(before.label)))
    pixels = sum(np.bincount(read_label(s.label).ravel(), minlength=256) for s in moved.samples)
    assert list(moved.summary["class_pixels"].values()) == pixels[:19].tolist()


def test_a_smaller_pack_is_not_taken_for_the_original(tmp_path, dataset):
    unpack(pack("camvid", tmp_path / "a.tar", reencoding=Reencoding("png", height=15)).path)
    again = prepare(CAMVID, [tmp_path / "raw"])
    assert again == dataset


def test_only_some_splits(tmp_path, dataset, elsewhere):
    summary = pack("camvid", tmp_path / "val.tar", splits=["val"])
    elsewhere()
    moved = unpack(summary.path)
    assert (moved.counts, moved.summary["counts"]) == ({"val": 2}, {"val": 2})
    assert summary.digest == moved.summary["digest"] != dataset.summary["digest"]


def test_progress_is_told(tmp_path, dataset):
    events = []
    path = pack("camvid", tmp_path / "a.tar", on_event=events.append).path
    assert [(e.done, e.total) for e in events if e.task == "packing"][-1] == (20, 20)
    unpack(path, on_event=events.append)
    assert [(e.done, e.total) for e in events if e.task == "checking"][-1] == (10, 10)


def test_a_wrong_split_or_name_is_told(tmp_path, dataset):
    with pytest.raises(ConfigError) as error:
        pack("camvid", tmp_path / "a.tar", splits=["vall"])
    assert "'val'" in (error.value.hint or "")
    with pytest.raises(ConfigError, match="unknown dataset 'camvit'"):
        pack("camvit", tmp_path / "a.tar")
    with pytest.raises(ConfigError, match="holds the dataset 'camvid', not 'gtav'"):
        unpack(pack("camvid", tmp_path / "a.tar").path, "gtav")


def test_a_file_is_not_overwritten_unasked(tmp_path, dataset):
    out = tmp_path / "camvid.tar"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        pack("camvid", out)
    assert out.read_text() == "precious"
    assert is_pack(pack("camvid", out, overwrite=True).path)
    with pytest.raises(ConfigError, match=r"is a \.tar"):
        pack("camvid", tmp_path / "camvid.zip")
    with pytest.raises(MachineError, match="cannot write"):
        pack("camvid", out / "below-a-file.tar")


@pytest.mark.parametrize("kind", ["image", "label"])
def test_what_has_changed_since_is_not_packed(tmp_path, dataset, kind):
    path = getattr(dataset.samples[3], kind)
    write_png(path, np.zeros((7, 9, 3) if kind == "image" else (30, 40), np.uint8))
    with pytest.raises(DataError, match="has changed since"):
        pack("camvid", tmp_path / "camvid.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "raw"]


def test_a_full_disk_leaves_no_half_file(tmp_path, dataset):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(MachineError, match="cannot write"):
            pack("camvid", tmp_path / "camvid.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "raw"]


KILLED = """
import os, signal
from pathlib import Path
from pinmem_core.data.{function} import {function}
def listen(event):
    if event.task == "{task}" and event.done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
{function}({arguments}, on_event=listen)
"""


def _killed(function: str, task: str, arguments: str) -> None:
    script = KILLED.format(function=function, task=task, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_pack_leaves_nothing_under_its_name(tmp_path, dataset):
    out = tmp_path / "camvid.tar"
    _killed("pack", "packing", f"'camvid', Path({str(out)!r})")
    assert not out.exists()
    pack("camvid", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["camvid.tar", "home", "raw"]


def test_a_killed_unpack_is_done_anew(tmp_path, dataset, elsewhere):
    path = pack("camvid", tmp_path / "camvid.tar").path
    home = elsewhere()
    _killed("unpack", "checking", f"Path({str(path)!r})")
    assert not (home / "datasets" / "camvid").exists()
    (home / "datasets" / ".camvid.unpacked" / "camvid" / ".archive.json").unlink()
    assert facts(unpack(path)) == facts(dataset)
    assert [p.name for p in (home / "datasets").iterdir()] == ["camvid"]


def test_packs_are_told_from_other_files(tmp_path, dataset):
    assert is_pack(pack("camvid", tmp_path / "a.tar").path)
    other = write(tmp_path / "b.tar", {"images/a.png": b"", "pinmem-pack.json": b"{}"})
    (tmp_path / "c.tar").write_bytes(b"no tar")
    for path in (other, tmp_path / "c.tar", tmp_path, tmp_path / "nowhere"):
        assert not is_pack(path)
        with pytest.raises(DataError):
            packed_card(path)


def _edited(name: str, **values: object) -> Callable[[Members], None]:
    def spoil(files: Members) -> None:
        files[name] = json.dumps({**json.loads(files[name]), **values}).encode()

    return spoil


def _first(files: Members, folder: str) -> str:
    return next(name for name in files if name.startswith(folder))


def _flip_label(files: Members) -> None:
    name = _first(files, "labels/")
    data = bytearray(files[name])
    data[len(data) // 2] ^= 1
    files[name] = bytes(data)


def _cut_image(files: Members) -> None:
    name = _first(files, "images/")
    files[name] = files[name][:-40]


def _swap_labels(files: Members) -> None:
    first, second, *_ = (name for name in files if name.startswith("labels/"))
    files[first], files[second] = files[second], files[first]


def _other_image(files: Members) -> None:
    """Put another image of the same size in its place, as a flipped bit of a BMP would."""
    first, second, *_ = (name for name in files if name.startswith("images/"))
    files[first] = files[second]


def _drop(folder: str) -> Callable[[Members], None]:
    def spoil(files: Members) -> None:
        del files[_first(files, folder)]

    return spoil


def _lose_a_sample(files: Members) -> None:
    for name in ("manifest.jsonl", "conversions.jsonl"):
        files[name] = b"".join(files[name].splitlines(keepends=True)[1:])


def _rename_a_sample(files: Members) -> None:
    files["manifest.jsonl"] = files["manifest.jsonl"].replace(b'"id": "0001TP_00000"', b'"id": "a"')


def _point(where: str) -> Callable[[Members], None]:
    """Have the first sample's image lie somewhere else, in manifest and record alike."""

    def spoil(files: Members) -> None:
        image = _first(files, "images/").encode()
        for name in ("manifest.jsonl", "conversions.jsonl"):
            files[name] = files[name].replace(image, where.encode())

    return spoil


def _another_dataset(files: Members) -> None:
    files["card.yaml"] = files["card.yaml"].replace(b"name: camvid", b"name: kitti", 1)


def _evil_name(files: Members) -> None:
    _edited("pinmem-pack.json", dataset="../evil")(files)
    files["card.yaml"] = files["card.yaml"].replace(b"name: camvid", b"name: ../evil", 1)


SPOILT = [
    (_edited("pinmem-pack.json", format_version=2), "another version"),
    (_edited("dataset.json", schema_version=99), "another version"),
    (_edited("pinmem-pack.json", digest="0" * 64), "is damaged"),
    (_edited("pinmem-pack.json", samples=9), "is damaged"),
    (_edited("pinmem-pack.json", dataset="kitti"), "is damaged"),
    (_edited("pinmem-pack.json", more=1), "is no pack"),
    (_edited("dataset.json", digest="0" * 64), "is damaged"),
    (_edited("dataset.json", dataset="kitti"), "is damaged"),
    (_another_dataset, "is damaged"),
    (_evil_name, "is damaged"),
    (_flip_label, "is damaged"),
    (_cut_image, "is damaged: images/"),
    (_other_image, "its SHA-256 differs"),
    (_swap_labels, "holds other trainIds"),
    (_drop("labels/"), "labels/.* does not exist"),
    (_drop("images/"), "images/.* does not exist"),
    (_drop("manifest.jsonl"), "cannot be read"),
    (_drop("conversions.jsonl"), "is damaged"),
    (_drop("dataset.json"), "cannot be read"),
    (_drop("card.yaml"), "is no pack"),
    (_lose_a_sample, "is damaged"),
    (_rename_a_sample, "not of its records"),
    (_point("/etc/hostname"), "outside of the dataset"),
    (_point("images/../../../x.png"), "outside of the dataset"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
def test_a_spoilt_pack_is_refused_and_changes_nothing(tmp_path, dataset, elsewhere, spoil, reason):
    files = members(pack("camvid", tmp_path / "camvid.tar").path)
    home = elsewhere()
    before = unpack(write(tmp_path / "good.tar", files))
    spoil(files)
    with pytest.raises(DataError, match=reason) as error:
        unpack(write(tmp_path / "spoilt.tar", files))
    assert "spoilt.tar" in error.value.message and "elsewhere" not in error.value.message
    assert PreparedDataset.open("camvid") == before
    assert [p.name for p in (home / "datasets").iterdir()] == ["camvid"]
    assert all(label_digest(read_label(s.label)) for s in before.samples)


def test_images_of_a_pack_are_compared_with_their_digests(tmp_path, dataset, elsewhere):
    out = tmp_path / "a.tar"
    pack("camvid", out)
    files = members(out)
    *_, last = files
    assert last == "images.sha256"
    listed = dict(line.split("  ")[::-1] for line in files[last].decode().splitlines())
    images = {name: data for name, data in files.items() if name.startswith("images/")}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in images.items()}
    elsewhere()
    unpack(out)
    assert verify("camvid", deep=True).findings == ()


def test_a_pack_without_digests_of_images_is_still_unpacked(tmp_path, dataset, elsewhere):
    out = tmp_path / "a.tar"
    pack("camvid", out)
    files = members(out)
    del files["images.sha256"]
    elsewhere()
    assert len(unpack(write(tmp_path / "old.tar", files)).samples) == 10
    assert verify("camvid").findings == ()


def test_a_member_that_leads_elsewhere_is_refused(tmp_path, dataset, elsewhere):
    files = members(pack("camvid", tmp_path / "camvid.tar").path)
    home = elsewhere()
    with pytest.raises(DataError, match="leads out"):
        unpack(write(tmp_path / "evil.tar", {**files, "../../evil": b"x"}))
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_pack_of_one_split_verifies_where_the_others_are_not(tmp_path, home, monkeypatch):
    published = CAMVID.model_copy(update={"counts": {"train": 5, "val": 1}})
    monkeypatch.setattr("pinmem_core.data.verify.get_card", lambda name: published)
    prepare(CAMVID, [camvid_folder(tmp_path / "raw", {"0001TP": 6})])
    pack("camvid", tmp_path / "train.tar", splits=["train"])
    unpack(tmp_path / "train.tar")
    assert verify("camvid").counts == {"train": 5}
    assert verify("camvid").findings == ()
