"""A million samples: no folder holds too many files, and no command looks at each for its size."""

import io
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from archive_makers import Item, make_zip
from conftest import Result, camvid_folder

from pinmem_core.data import archives
from pinmem_core.data.archives import extract
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card, read_card, write_card
from pinmem_core.data.convert import Reencoding
from pinmem_core.data.pack import pack
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import MANIFEST, RECORDS, SUMMARY, PreparedDataset
from pinmem_core.data.samples import own_path
from pinmem_core.data.state import state_of
from pinmem_core.data.unpack import unpack
from pinmem_core.data.verify import verify
from pinmem_core.errors import DataError
from pinmem_core.paths import dataset_root, raw_root
from pinmem_core.registry import Registry

CAMVID = get_card("camvid")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    return make_zip(path, *(Item(name, data) for name, data in files.items()))


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """The folders that are listed, in order."""
    seen: list[str] = []
    real = os.scandir

    def noting(path="."):
        seen.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", noting)
    return seen


def test_files_are_spread_evenly_over_256_folders():
    places = Counter(own_path("labels", f"drive_{n:06}.png").parent for n in range(10_000))
    assert len(places) == 256 and max(places.values()) < 80
    assert own_path("images", "é\udcff.png").parent.parent == Path("images")


@pytest.mark.parametrize("reencoding", [None, Reencoding("png")])
def test_labels_and_images_lie_below_two_folders(tmp_path, reencoding):
    dataset = prepare(CAMVID, [camvid_folder(tmp_path, {"0001TP": 6})], reencoding=reencoding)
    for path in (*dataset.root.rglob("*.png"),):
        assert own_path(path.parent.parent.name, path.name) == path.relative_to(dataset.root)
    assert verify("camvid").findings == ()


def _flatten(root: Path) -> None:
    """Have a prepared dataset as versions before wrote it: all labels in one folder, no sizes."""
    for name in (MANIFEST, RECORDS):
        text = re.sub(r'"(labels|images)/[0-9a-f]{2}/', r'"\1/', (root / name).read_text())
        (root / name).write_text(text)
    for kind in ("labels", "images"):
        for folder in [*(root / kind).glob("*")]:
            for path in folder.iterdir():
                path.rename(root / kind / path.name)
            folder.rmdir()
    old = json.loads((root / SUMMARY).read_text())
    del old["bytes"]
    (root / SUMMARY).write_text(json.dumps(old, indent=2) + "\n")


@pytest.mark.parametrize("reencoding", [None, Reencoding("png")])
def test_a_dataset_of_an_earlier_version_is_read_and_moved_when_prepared_again(
    tmp_path, reencoding, monkeypatch
):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    root = prepare(CAMVID, [source], reencoding=reencoding).root
    now = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    _flatten(root)
    old = PreparedDataset.open("camvid")
    assert (root / "labels" / "0001TP_00000.png").is_file()
    assert [s.read() and s.label.parent for s in old.samples] == [root / "labels"] * 6
    assert verify("camvid").findings == ()
    assert state_of(CAMVID).bytes_prepared == size_of(root)
    converted = []
    monkeypatch.setattr(
        "pinmem_core.data.convert.Conversion.convert",
        lambda self, raw, split: converted.append(raw.id),
    )
    prepare(CAMVID, [source], reencoding=reencoding)
    assert converted == []
    assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == now


def test_work_that_an_earlier_version_left_unfinished_is_moved(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    root = prepare(CAMVID, [source]).root
    now = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    _flatten(root)
    work = root.with_name(".camvid.part")
    root.rename(work)
    for name in (MANIFEST, SUMMARY):
        (work / name).unlink()
    prepare(CAMVID, [source])
    assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == now


@pytest.mark.parametrize("reencoding", [None, Reencoding("jpeg")])
def test_sizes_are_known_without_listing_pictures(tmp_path, reencoding, listed):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    root = prepare(CAMVID, [source], reencoding=reencoding).root
    listed.clear()
    state = state_of(CAMVID)
    assert not [p for p in listed if Path(p).parent == root or Path(p).parent.parent == root]
    assert state.bytes_prepared == size_of(root)
    path = pack("camvid", tmp_path / "camvid.tar").path
    root = unpack(path).root
    assert state_of(CAMVID).bytes_prepared == size_of(root) > path.stat().st_size / 4


def test_the_size_of_what_was_unpacked_is_known_without_listing_it(tmp_path, listed):
    files = {f"stills/{n}.png": bytes(100 + n) for n in range(3)}
    folder = extract(_zip(tmp_path / "camvid.zip", files), raw_root("camvid"))
    listed.clear()
    state = state_of(CAMVID)
    assert str(folder.parent) in listed and str(folder) not in listed
    assert state.bytes_raw == size_of(folder) > 303


def test_archives_inside_an_archive_count_as_what_they_were_unpacked_to(tmp_path, home):
    pairs = camvid_folder(tmp_path / "pairs", {"0001TP": 3})
    files = {p.relative_to(pairs).as_posix(): p.read_bytes() for p in pairs.rglob("*.png")}
    inner = _zip(tmp_path / "inner.zip", files)
    archive = _zip(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    assert Result("data", "prepare", "camvid", "--from", str(archive)).code == 0
    assert (raw_root("camvid") / "outer" / "inner").is_dir()
    assert state_of(CAMVID).bytes_raw == size_of(raw_root("camvid")) > 0


@pytest.mark.parametrize("marker", ["{}", "[]", "torn", '{"unpacked_bytes": -1}'])
def test_a_folder_without_a_recorded_size_is_counted(tmp_path, marker):
    extract(_zip(tmp_path / "camvid.zip", {"a.txt": b"123"}), raw_root("camvid"))
    (raw_root("camvid") / "camvid" / ".archive.json").write_text(marker)
    assert state_of(CAMVID).bytes_raw == size_of(raw_root("camvid")) == 3 + len(marker)


@pytest.mark.parametrize("size", [-1, "1", 1.5])
def test_a_size_that_is_none_is_damage(tmp_path, size):
    root = prepare(CAMVID, [camvid_folder(tmp_path, {"0001TP": 3})]).root
    summary = json.loads((root / SUMMARY).read_text()) | {"bytes": size}
    (root / SUMMARY).write_text(json.dumps(summary))
    state = state_of(CAMVID)
    assert state.state == "defective" and "bytes" in (state.problem or "")
    assert state.bytes_prepared == size_of(dataset_root("camvid"))


def test_no_folder_is_searched_for_each_sample(tmp_path, monkeypatch):
    """Which encodings there are is asked for each dataset, not for each sample."""
    asked = []
    real = Registry.all
    monkeypatch.setattr(Registry, "all", lambda self: asked.append(self.kind) or real(self))
    counts = []
    for number in (3, 9):
        asked.clear()
        prepare(CAMVID, [camvid_folder(tmp_path / str(number), {"0001TP": number})])
        counts.append(asked.count("label encoding"))
    assert counts[0] == counts[1] > 0


@pytest.fixture
def many_listed(tmp_path) -> DatasetCard:
    """A prepared dataset of four samples whose card lists 200,003."""
    source = camvid_folder(tmp_path / "raw", {"a": 4})
    listed = [*(f"a_{n:05}" for n in range(3)), *(f"frame{n:06}" for n in range(200_000))]
    (tmp_path / "train.txt").write_text("\n".join(listed))
    (tmp_path / "big.yaml").write_text(
        "name: big\ntitle: Big\nsplit_lists: {train: train.txt, val: [a_00003]}\nlayouts:\n"
        '- {name: f, image: "images/{n}.png", label: "labels/{n}.png", label_maps: trainids, '
        'id: "{n}"}\n'
    )
    card = read_card(tmp_path / "big.yaml")
    prepare(card, [source])
    return card


def test_a_card_that_lists_many_samples_is_read_back(many_listed):
    """More values than YAML may hold made every command refuse the prepared dataset."""
    assert get_card("big") == many_listed
    assert verify("big").counts == {"train": 3, "val": 1}
    assert state_of(many_listed).bytes_prepared == size_of(dataset_root("big"))


def test_what_could_not_be_unpacked_is_not_packed(tmp_path, many_listed, monkeypatch):
    with pytest.raises(DataError, match=r"lists 200,004 samples.* may list 100,000"):
        pack("big", tmp_path / "big.tar")
    monkeypatch.setattr("pinmem_core.data.pack.MOST_MEMBERS", 20)
    with pytest.raises(DataError, match="at most 2 samples, and this one would hold 4"):
        pack("big", tmp_path / "big.tar")
    assert not (tmp_path / "big.tar").exists()


def test_ids_with_spaces_stay_apart_however_many_there_are(tmp_path):
    spaced = tuple(f"frame {n}" for n in range(10_001))
    card = CAMVID.model_copy(update={"split_lists": {"train": spaced}})
    write_card(card, tmp_path / "card.yaml")
    assert read_card(tmp_path / "card.yaml").split_lists == {"train": spaced}


class Killed(BaseException):
    """The end of the process."""


def test_a_move_that_is_stopped_at_any_change_goes_on(tmp_path, monkeypatch):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 2})
    root = prepare(CAMVID, [source]).root
    now = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    _flatten(root)
    shutil.copytree(root, tmp_path / "flat")
    moment, stopped = 0, True
    while stopped:
        shutil.rmtree(root.parent)
        shutil.copytree(tmp_path / "flat", root)
        left, stopped = [moment], False
        with monkeypatch.context() as patch:
            for name in ("hardlink_to", "unlink", "rename", "replace", "rmdir"):
                patch.setattr(Path, name, _stopping(getattr(Path, name), left))
            try:
                prepare(CAMVID, [source], jobs=1)
            except Killed:
                assert verify("camvid").findings == ()
                moment += 1
                stopped = True
        prepare(CAMVID, [source])
        assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == now
        assert [path.name for path in root.parent.iterdir()] == ["camvid"]
    assert moment > 6


def _stopping(real, left):
    """Return a function that ends the process once it was called as often as `left` says."""

    def act(path, *arguments, **options):
        if path.suffix != ".lock":  # a process that has ended holds none
            left[0] -= 1
            if left[0] == -1:
                raise Killed
        return real(path, *arguments, **options)

    return act


def test_the_texts_of_a_pack_may_be_as_long_as_many_samples_need(tmp_path):
    """The digests of 200,000 images take 20 MB, and so do as many files that were left out."""
    dataset = prepare(CAMVID, [camvid_folder(tmp_path / "raw", {"0001TP": 3})])
    defect = {"file": "x" * 9_000, "reason": "no split lists it", "rule": "not listed"}
    summary = json.loads((dataset.root / SUMMARY).read_text()) | {"excluded": [defect] * 2_000}
    (dataset.root / SUMMARY).write_text(json.dumps(summary))
    path = pack("camvid", tmp_path / "camvid.tar").path
    with tarfile.open(path) as tar, tarfile.open(tmp_path / "long.tar", "w") as longer:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name == "images.sha256":
                data += b"".join(
                    b"%064d  images/ab/frame_%020d.png\n" % (n, n) for n in range(170_000)
                )
            member.size = len(data)
            longer.addfile(member, io.BytesIO(data))
    assert len(data) > 16 << 20
    assert len(unpack(tmp_path / "long.tar").samples) == 3


def test_a_folder_that_another_process_replaces_meanwhile_is_no_error(tmp_path, monkeypatch):
    folder = extract(_zip(tmp_path / "camvid.zip", {"a.txt": b"123"}), raw_root("camvid"))
    real = archives.read_json_object

    def vanishing(path: Path) -> dict:
        content = real(path)
        shutil.rmtree(path.parent)
        return content

    monkeypatch.setattr(archives, "read_json_object", vanishing)
    assert state_of(CAMVID).bytes_raw == 0 and not folder.exists()
