import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import camvid_folder
from PIL import Image

from pinmem_core.data.catalog import get_card
from pinmem_core.data.convert import Reencoding, label_digest
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import MANIFEST, RECORDS, SUMMARY, PreparedDataset, read_summary
from pinmem_core.data.state import state_of
from pinmem_core.data.verify import verify
from pinmem_core.errors import BusyError, ConfigError, DataError
from pinmem_core.images import write_png
from pinmem_core.label_files import read_label
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import archives_root, raw_root

CAMVID = get_card("camvid")
Spoil = Callable[[PreparedDataset], Path]


@pytest.fixture
def dataset(tmp_path) -> PreparedDataset:
    """Four samples to train, one to validate."""
    return prepare(CAMVID, [camvid_folder(tmp_path / "source", {"0001TP": 5})])


@pytest.fixture
def card_today(monkeypatch):
    """Let the card say something else than when the dataset was prepared."""

    def change(**values: object) -> None:
        card = CAMVID.model_copy(update=values)
        monkeypatch.setattr("pinmem_core.data.verify.get_card", lambda name: card)

    return change


@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize("reencoding", [None, Reencoding("jpeg", height=20)])
def test_an_intact_dataset_has_no_finding(tmp_path, reencoding, headers_only):
    source = camvid_folder(tmp_path / "source", {"0001TP": 5})
    dataset = prepare(CAMVID, [source], reencoding=reencoding)
    verification = verify("camvid", headers_only=headers_only)
    assert verification.findings == ()
    assert verification.checked == 5
    assert verification.counts == {"train": 4, "val": 1}
    assert verification.digest == (None if headers_only else dataset.summary["digest"])


def _no_image(dataset: PreparedDataset) -> Path:
    dataset.samples[1].image.unlink()
    return dataset.samples[1].image


def _torn_image(dataset: PreparedDataset) -> Path:
    path = dataset.samples[1].image
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _small_image(dataset: PreparedDataset) -> Path:
    write_png(dataset.samples[1].image, np.zeros((15, 20, 3), np.uint8))
    return dataset.samples[1].image


def _image_without_header(dataset: PreparedDataset) -> Path:
    dataset.samples[1].image.write_bytes(b"no picture")
    return dataset.samples[1].image


def _no_label(dataset: PreparedDataset) -> Path:
    dataset.samples[1].label.unlink()
    return dataset.samples[1].label


def _flip_checksum(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[-13] ^= 1  # of the pixels
    path.write_bytes(data)
    return path


def _flipped_image(dataset: PreparedDataset) -> Path:
    return _flip_checksum(dataset.samples[1].image)


def _flipped_label(dataset: PreparedDataset) -> Path:
    return _flip_checksum(dataset.samples[1].label)


def _small_label(dataset: PreparedDataset) -> Path:
    write_png(dataset.samples[1].label, np.zeros((15, 20), np.uint8))
    return dataset.samples[1].label


def _label_as(mode: str, suffix: str = "png") -> Spoil:
    def rewrite(dataset: PreparedDataset) -> Path:
        path = dataset.samples[1].label
        with Image.open(path) as picture:
            picture.convert(mode).save(path, suffix)
        return path

    return rewrite


def _put_pixel(dataset: PreparedDataset, value: int) -> Path:
    path = dataset.samples[1].label
    train_ids = read_label(path).copy()
    train_ids[0, 0] = value
    write_png(path, train_ids)
    return path


def _strange_value(dataset: PreparedDataset) -> Path:
    return _put_pixel(dataset, 19)


def _other_value(dataset: PreparedDataset) -> Path:
    return _put_pixel(dataset, 18)  # no class of CamVid's


SEEN_BY_HEADERS = [
    (_no_image, "does not exist"),
    (_image_without_header, "cannot be read: it is not a supported image"),
    (_small_image, "is 20x15, but the manifest says 40x30"),
    (_no_label, "does not exist"),
    (_small_label, "is 20x15, but the manifest says 40x30"),
    (_label_as("RGB"), "is a PNG of mode 'RGB', not an 8-bit single-channel PNG"),
    (_label_as("P"), "is a PNG of mode 'P', not an 8-bit single-channel PNG"),
    (_label_as("I;16"), "is a PNG of mode 'I;16', not an 8-bit single-channel PNG"),
    (_label_as("1"), "is a PNG of mode '1', not an 8-bit single-channel PNG"),
    (_label_as("L", "jpeg"), "is a JPEG of mode 'L', not an 8-bit single-channel PNG"),
]
SEEN_BY_PIXELS = [
    (_torn_image, "cannot be read: "),
    (_flipped_image, "cannot be read: "),
    (_flipped_label, "cannot be read: "),
    (_strange_value, "holds values that are not trainIds: 19"),
    (_other_value, "holds other trainIds than 'prepare' wrote"),
]


@pytest.mark.parametrize(("spoil", "reason"), SEEN_BY_HEADERS + SEEN_BY_PIXELS)
def test_a_spoilt_file_is_found(dataset, spoil, reason):
    path = spoil(dataset)
    found = [finding for finding in verify("camvid").findings if finding.file == str(path)]
    assert len(found) == 1 and found[0].reason.startswith(reason)
    assert str(path) not in found[0].reason


@pytest.mark.parametrize(("spoil", "reason"), SEEN_BY_HEADERS)
def test_headers_tell_of_files_and_sizes(dataset, spoil, reason):
    path = spoil(dataset)
    (finding,) = verify("camvid", headers_only=True).findings
    assert finding.file == str(path) and finding.reason == reason


@pytest.mark.parametrize("spoil", [_strange_value, _other_value])
def test_headers_do_not_tell_of_pixels(dataset, spoil):
    spoil(dataset)
    assert verify("camvid", headers_only=True).findings == ()


def test_a_file_that_the_disk_does_not_give_is_a_finding_not_the_end(dataset, monkeypatch):
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pinmem_core.data.verify.image_size", fail)
    findings = verify("camvid", headers_only=True).findings
    assert len(findings) == 10
    assert {finding.reason for finding in findings} == {"cannot be read: Input/output error"}


def test_a_changed_label_changes_the_digest(dataset):
    _other_value(dataset)
    verification = verify("camvid")
    assert verification.digest not in (None, dataset.summary["digest"])
    assert "another digest" in verification.findings[0].reason
    dataset.samples[1].label.unlink()
    assert verify("camvid").digest is None


def _edit_lines(dataset: PreparedDataset, name: str, edit: Callable[[list[str]], object]) -> None:
    path = dataset.root / name
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("".join(f"{line}\n" for line in lines))


def _edit_summary(dataset: PreparedDataset, **values: object) -> None:
    path = dataset.root / SUMMARY
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _with(line: str, **values: object) -> str:
    return json.dumps(json.loads(line) | values)


def test_a_label_that_was_changed_with_its_record_is_known_by_the_digest(dataset):
    train_ids = read_label(_other_value(dataset))
    pixels = np.bincount(train_ids.ravel(), minlength=256)[:19].tolist()
    record = {"label_sha256": label_digest(train_ids), "pixels": pixels}

    def edit(lines: list[str]) -> None:
        lines[1] = _with(lines[1], **record)

    _edit_lines(dataset, RECORDS, edit)
    (finding,) = verify("camvid").findings
    assert finding.file == str(dataset.root / SUMMARY)
    assert finding.reason == "says another digest than the labels have"


def _swap_domain(lines: list[str]) -> None:
    record = json.loads(lines[1])
    record["sample"]["domain"] = "0016E5"
    lines[1] = json.dumps(record)


def _wrong_pixels(lines: list[str]) -> None:
    lines[1] = _with(lines[1], pixels=[1] * 19)


@pytest.mark.parametrize(
    ("file", "edit", "where", "reason"),
    [
        (RECORDS, lambda lines: lines.pop(1), RECORDS, "lacks samples of the manifest: 0001TP_0"),
        (RECORDS, lambda lines: lines.clear(), RECORDS, "0001TP_00002 and 2 more"),
        (RECORDS, _swap_domain, RECORDS, "differs from the manifest: 0001TP_00001"),
        (RECORDS, _wrong_pixels, "labels/*/0001TP_00001.png", "other numbers of pixels"),
        (MANIFEST, lambda lines: lines.pop(1), RECORDS, "that the manifest lacks: 0001TP_00001"),
        (MANIFEST, lambda lines: lines.pop(1), SUMMARY, "says train 4, val 1, but the manifest"),
        (MANIFEST, lambda lines: lines.pop(1), "labels/*/0001TP_00001.png", "named by no line"),
        (MANIFEST, lambda lines: lines.append(lines[0]), MANIFEST, "more than once: 0001TP_00000"),
    ],
)
def test_books_that_disagree_are_found(dataset, file, edit, where, reason):
    _edit_lines(dataset, file, edit)
    findings = verify("camvid").findings
    (place,) = dataset.root.glob(where)
    assert any(f.file == str(place) and reason in f.reason for f in findings)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"counts": {"train": 5}}, "says train 5, but the manifest holds train 4, val 1"),
        ({"digest": "0" * 64}, "says another digest than the labels have"),
        ({"label_map": {"name": "segnet", "digest": "0"}}, "another label map than the card's"),
        ({"label_map": {"name": "gone", "digest": "0"}}, "another label map than the card's"),
        ({"card_version": 0}, "prepared by version 0 of the card, which is at 1"),
    ],
)
def test_a_summary_that_is_not_true_is_found(dataset, values, reason):
    _edit_summary(dataset, **values)
    (finding,) = verify("camvid").findings
    assert finding.file == str(dataset.root / SUMMARY) and reason in finding.reason


def test_a_card_that_has_changed_is_found(dataset, card_today):
    swapped = CAMVID.label_maps["segnet"].model_copy(update={"classes": {"road": (1,)}})
    card_today(version=2, label_maps={**CAMVID.label_maps, "segnet": swapped})
    reasons = [finding.reason for finding in verify("camvid").findings]
    assert reasons == [
        "was prepared by version 1 of the card, which is at 2",
        "was prepared with another label map than the card's today",
    ]


def test_splits_of_another_size_than_published_are_found(tmp_path, card_today):
    source = camvid_folder(tmp_path / "source", {"0001TP": 5})
    (source / "labels" / "0001TP_00000.png").write_bytes(b"")
    prepare(CAMVID, [source])
    card_today(counts={"train": 4, "val": 1, "test": 2})
    assert [finding.reason for finding in verify("camvid").findings] == [
        "split test: 2 published, 0 here, 1 left out of all splits",
        "split train: 4 published, 3 here, 1 left out of all splits",
    ]


@pytest.mark.parametrize("folder", ["labels", "images"])
def test_a_picture_that_no_line_names_is_found(tmp_path, folder):
    source = camvid_folder(tmp_path / "source", {"0001TP": 2})
    dataset = prepare(CAMVID, [source], reencoding=Reencoding("png"))
    stray = dataset.root / folder / "deeper" / "stray.png"
    write_png(stray, np.zeros((2, 2), np.uint8))
    (finding,) = verify("camvid").findings
    assert finding.file == str(stray)


def test_a_home_that_is_named_in_a_roundabout_way_has_no_strays(dataset, home, monkeypatch):
    monkeypatch.setenv("PINMEM_HOME", str(home / "datasets" / ".."))
    assert verify("camvid").findings == ()


def test_findings_come_in_the_order_of_the_manifest_however_many_work(dataset):
    for sample in dataset.samples[1:4]:
        sample.image.unlink()
        sample.label.unlink()
    expected = [str(p) for s in dataset.samples[1:4] for p in (s.image, s.label)]
    events = []
    findings = verify("camvid", jobs=4, on_event=events.append).findings
    assert [finding.file for finding in findings] == expected
    assert verify("camvid", jobs=1).findings == findings
    assert [(event.done, event.total) for event in events] == [(n, 5) for n in range(1, 6)]


def test_what_is_not_prepared_cannot_be_verified():
    with pytest.raises(DataError, match="is not prepared"):
        verify("camvid")
    with pytest.raises(ConfigError, match="unknown dataset"):
        verify("camvit")


def test_work_in_parallel_keeps_the_order_and_stops_when_nobody_listens():
    calls = []

    def work(number: int) -> int:
        calls.append(threading.get_ident())
        time.sleep(0.002 * (3 - number) if number < 3 else 0.1)
        return number * number

    assert list(parallel_map(work, range(3), 3)) == [0, 1, 4]
    assert len(set(calls)) > 1
    calls.clear()
    with pytest.raises(KeyboardInterrupt), closing(parallel_map(work, range(60), 2)) as results:
        next(results)
        raise KeyboardInterrupt
    assert len(calls) < 30


def test_a_dataset_is_absent_then_downloaded_then_ready(tmp_path):
    assert state_of(CAMVID).state == "absent"
    archive = archives_root("camvid") / CAMVID.archives[0].file
    archive.parent.mkdir(parents=True)
    archive.with_suffix(".zip.part").write_bytes(b"half")
    (raw_root("camvid") / ".half.part").mkdir(parents=True)
    assert state_of(CAMVID).state == "absent"
    archive.write_bytes(b"whole")
    assert state_of(CAMVID).state == "downloaded"
    archive.unlink()
    source = camvid_folder(raw_root("camvid") / "stills", {"0001TP": 5})
    assert state_of(CAMVID).state == "downloaded"
    dataset = prepare(CAMVID, [source])
    state = state_of(CAMVID)
    assert (state.name, state.title, state.state) == ("camvid", CAMVID.title, "ready")
    assert (state.counts, state.excluded, state.problem) == ({"train": 4, "val": 1}, 0, None)
    assert (state.digest, state.label_map) == (dataset.summary["digest"], "segnet")
    assert state.layout == dataset.summary["layout"]


def test_disk_use_is_the_size_of_all_files(dataset):
    before = state_of(CAMVID)
    assert before.bytes_archives == before.bytes_raw == 0
    files = [path for path in dataset.root.rglob("*") if path.is_file()]
    assert before.bytes_prepared == sum(path.stat().st_size for path in files) > 0
    for root, size in ((archives_root("camvid"), 300), (raw_root("camvid"), 500)):
        (root / "deep" / "deeper").mkdir(parents=True)
        (root / "deep" / "deeper" / "file").write_bytes(bytes(size))
        (root / "file").write_bytes(bytes(7))
    after = state_of(CAMVID)
    assert (after.bytes_archives, after.bytes_raw) == (307, 507)
    assert after.bytes_prepared == before.bytes_prepared


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ({"train": 4, "val": 1}, "ready"),
        ({"train": 3}, "ready"),
        ({"train": 5, "val": 1}, "partial"),
        ({"train": 4, "val": 1, "test": 1}, "partial"),
        ({"train": 3, "val": 2}, "partial"),
    ],
)
def test_published_samples_that_are_not_there_make_a_dataset_partial(dataset, published, expected):
    assert state_of(CAMVID.model_copy(update={"counts": published})).state == expected


def test_samples_left_out_are_not_missed_but_doubles_fill_no_gap(tmp_path):
    source = camvid_folder(tmp_path / "source", {"0001TP": 5})
    (source / "labels" / "0001TP_00000.png").write_bytes(b"")
    shutil.copytree(source / "images", tmp_path / "again" / "images")
    prepare(CAMVID, [source, tmp_path / "again"])
    whole, more = ({"train": n, "val": 1} for n in (4, 5))
    state = state_of(CAMVID.model_copy(update={"counts": whole}))
    assert state.state == "ready" and state.excluded == 6
    assert state_of(CAMVID.model_copy(update={"counts": more})).state == "partial"


@pytest.mark.parametrize("file", [SUMMARY, MANIFEST])
@pytest.mark.parametrize("text", [None, "{"])
def test_a_folder_that_cannot_be_opened_is_defective(dataset, file, text):
    (dataset.root / file).unlink() if text is None else (dataset.root / file).write_text(text)
    state = state_of(CAMVID)
    assert state.state == "defective" and str(dataset.root) in (state.problem or "")
    assert (state.counts, state.digest, state.layout) == ({}, None, None)
    assert state.bytes_prepared > 0


def _recompressed(path: Path) -> None:
    """Write the same pixels as another file."""
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, "PNG", compress_level=0)


@pytest.mark.parametrize("reencoding", [None, Reencoding("png")])
def test_a_deep_check_finds_images_that_are_other_files(tmp_path, reencoding):
    source = camvid_folder(tmp_path / "source", {"0001TP": 5})
    dataset = prepare(CAMVID, [source], reencoding=reencoding, hash_images=True)
    assert verify("camvid", deep=True).findings == ()
    path = dataset.samples[2].image
    _recompressed(path)
    assert verify("camvid").findings == ()
    (finding,) = verify("camvid", deep=True).findings
    assert finding.file == str(path) and "SHA-256" in finding.reason


def test_digests_of_images_are_added_later_and_kept(tmp_path, dataset):
    with pytest.raises(DataError, match="SHA-256") as error:
        verify("camvid", deep=True)
    assert "pinmem data prepare camvid --hash-images" in (error.value.hint or "")
    source = tmp_path / "source"
    prepare(CAMVID, [source], hash_images=True)
    prepare(CAMVID, [source])
    assert verify("camvid", deep=True).findings == ()


def test_a_check_is_deep_or_of_headers(dataset):
    with pytest.raises(ConfigError):
        verify("camvid", deep=True, headers_only=True)


def test_a_dataset_that_is_replaced_while_it_is_checked_is_not_called_defective(tmp_path, dataset):
    """`prepare` replaces the whole folder, so that its files are not those of the manifest read."""
    replaced = []

    def replace(_) -> None:
        if not replaced:
            replaced.append(prepare(CAMVID, [tmp_path / "source"], reencoding=Reencoding("jpeg")))

    with pytest.raises(BusyError, match="was replaced while it was checked"):
        verify("camvid", on_event=replace)
    assert not verify("camvid").findings


def test_an_empty_manifest_is_damage_and_not_a_dataset_without_samples(dataset):
    """A power cut may leave a file that was written just before it without its content."""
    dataset.manifest.write_bytes(b"")
    for read in (PreparedDataset.open, read_summary):
        with pytest.raises(DataError, match=r"is damaged: .* is empty") as error:
            read("camvid")
        assert "data prepare camvid" in error.value.hint
    assert state_of(CAMVID).state == "defective"
