"""Archives as people have them: renamed, copied, packed once more, in folders of other things."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.data.catalog import get_card
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.prepare import prepare
from pinmem_core.errors import DataError
from pinmem_core.events import Notice

BDD = get_card("bdd100k")
RNG = np.random.default_rng(0)


def picture(*shape: int, form: str = "PNG", high: int = 19) -> bytes:
    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, high, shape, dtype=np.uint8)).save(data, form)
    return data.getvalue()


IMAGE, LABEL = picture(6, 8, 3, form="JPEG", high=255), picture(6, 8)
IMAGES = {f"bdd100k/images/10k/train/{n}.jpg": IMAGE for n in "ab"}
LABELS = {f"bdd100k/labels/sem_seg/masks/train/{n}.png": LABEL for n in "ab"}


def zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def put(folder: Path, **archives: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in archives.items():
        (folder / name).write_bytes(zipped(members))
    return folder


def counts(card: DatasetCard, *sources: Path, events: list | None = None) -> dict[str, int]:
    heard = [] if events is None else events
    return prepare(card, locate_raw_files(card, sources, on_event=heard.append)).counts


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("10k_images_train.zip", "bdd100k_sem_seg_labels_trainval.zip"),
        ("10k_images_train (1).zip", "bdd100k_sem_seg_labels_trainval(12).zip"),
        ("10K_IMAGES_TRAIN.ZIP", "bdd100k_sem_seg_labels_trainval (2).ZIP"),
        ("10k_images_train.zip.1", "bdd100k_sem_seg_labels_trainval.zip"),
        ("bdd100k_images_10k.zip", "bdd100k_sem_seg_labels_trainval.zip"),
    ],
)
def test_archives_are_known_by_the_names_that_they_have_on_disk(tmp_path, images, labels):
    put(tmp_path / "in", **{images: IMAGES, labels: LABELS})
    assert counts(BDD, tmp_path / "in") == {"train": 2}
    assert counts(BDD, tmp_path / "in" / images, tmp_path / "in" / labels) == {"train": 2}


def test_the_old_archive_holds_both(tmp_path):
    members = {f"bdd100k/seg/images/val/{n}.jpg": IMAGE for n in "abc"}
    members |= {f"bdd100k/seg/labels/val/{n}_train_id.png": LABEL for n in "abc"}
    assert counts(BDD, put(tmp_path / "in", **{"bdd100k_seg.zip": members})) == {"val": 3}


def test_of_two_copies_the_one_without_a_number_counts(tmp_path):
    archives = {"10k_images_train (1).zip": {}, "10k_images_train.zip": IMAGES}
    folder = put(tmp_path / "in", **archives, **{"bdd100k_sem_seg_labels_trainval.zip": LABELS})
    events: list = []
    assert counts(BDD, folder, events=events) == {"train": 2}
    said = [event.message for event in events if isinstance(event, Notice)]
    assert any("10k_images_train (1).zip" in message for message in said)


def test_archives_of_other_names_are_named_with_a_command_that_works(tmp_path):
    members = {"my streets.zip": IMAGES | LABELS, "b.7z": {}, "c.zip.part": {}, "d.txt": {}}
    folder = put(tmp_path / "in", **members)
    with pytest.raises(DataError) as caught:
        locate_raw_files(BDD, [folder])
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(str(folder / name) in text for name in ("my streets.zip", "b.7z", "c.zip.part"))
    assert f"--from '{folder / 'my streets.zip'}'" in text and "d.txt" not in text
    assert counts(BDD, folder / "my streets.zip") == {"train": 2}


def test_a_folder_that_holds_the_dataset_is_taken_and_its_archives_are_named(tmp_path):
    folder = put(tmp_path / "in", **{"10k_images_train.zip": IMAGES, "x.zip": {}})
    for name, data in (IMAGES | LABELS).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    events: list = []
    assert locate_raw_files(BDD, [folder], on_event=events.append) == [folder]
    assert [
        e.message for e in events if "10k_images_train.zip" in e.message and "x.zip" in e.message
    ]


def test_what_is_unpacked_already_counts_next_to_archives(tmp_path):
    folder = put(tmp_path / "in", **{"10k_images_train.zip": IMAGES})
    for name, data in LABELS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert counts(BDD, folder) == {"train": 2}


def tar_xz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_an_archive_in_an_archive_is_unpacked_once(tmp_path, home):
    inner = {"10k_images_train.zip": zipped(IMAGES), "x/labels.zip": zipped(LABELS)}
    outer = tar_xz(tmp_path / "all.tar.xz", {"in.zip": zipped(inner)})
    assert counts(BDD, outer) == {"train": 2}
    assert not list((home / "raw").rglob("*.zip"))  # the outer archive still holds them
    assert counts(BDD, outer) == {"train": 2}


def test_archives_in_an_archive_share_its_limit(tmp_path, home):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(40 << 20))
    (tmp_path / "x.zip").write_bytes(zipped({f"{n}.zip": bomb.getvalue() for n in range(3)}))
    with pytest.raises(DataError, match="would grow to more than 200 times"):
        locate_raw_files(BDD, [tmp_path / "x.zip"])
    written = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
    assert written < 90 << 20


def test_an_archive_of_an_unknown_kind_is_named_as_one(tmp_path):
    (tmp_path / "a.7z").write_bytes(b"7z")
    (tmp_path / "a.txt").write_bytes(b"a")
    with pytest.raises(DataError, match="an archive of a kind"):
        locate_raw_files(BDD, [tmp_path / "a.7z"])
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        locate_raw_files(BDD, [tmp_path / "a.txt"])


@pytest.mark.parametrize("name", ["a.7z", "a.tar.zst", "a.zip.part", "a.zip.crdownload"])
def test_no_command_is_given_for_archives_that_it_would_refuse(tmp_path, name):
    put(tmp_path / "in", **{name: IMAGES})
    with pytest.raises(DataError, match=f"archives that its card does not name: .*{name}") as error:
        locate_raw_files(BDD, [tmp_path / "in"])
    assert "--from" not in error.value.hint and "Unpack it with another tool" in error.value.hint


def test_extract_says_what_it_left(tmp_path):
    folder = put(tmp_path / "in", **{"10k_images_train.zip": IMAGES, "x.zip": {}})
    result = Result("data", "extract", "bdd100k", "--from", str(folder))
    assert result.code == 0 and "x.zip" in result.err and "10k_images_train" in result.out


# An archive's name stands for the folder that it lacks


def test_camvid_labels_lie_flat_in_their_archive(tmp_path):
    stills = {f"701_StillsRaw_full/0001TP_{n}.png": picture(6, 8, 3, high=255) for n in range(3)}
    colours = np.array([[(128, 0, 0), (0, 64, 64), (64, 128, 64)]], np.uint8).repeat(3, 0)
    data = io.BytesIO()
    Image.fromarray(colours.repeat(2, 0).repeat(3, 1)[:, :8]).save(data, "PNG")
    labels = {f"0001TP_{n}_L.png": data.getvalue() for n in range(3)}
    archives = {"701_StillsRaw_full.zip": stills, "LabeledApproved_full (1).zip": labels}
    folder = put(tmp_path / "in", **archives)
    assert counts(get_card("camvid"), folder) == {"train": 3}


def own_card(**layout: str) -> DatasetCard:
    said = {"name": "x", "label_maps": ("trainids",), "id": "{n}", **layout}
    return DatasetCard(name="mine", title="x", layouts=(Layout.model_validate(said),))


def test_the_rule_is_for_every_card_and_for_fields(tmp_path):
    kinds = {"image": "{split}_img/{n}.png", "label": "{split}_gt/{n}.png", "split": "{split}"}
    card = own_card(**kinds, id="{split}-{n}")
    image = picture(6, 8, 3, high=255)
    for split in ("train", "val"):
        put(tmp_path, **{f"{split}_img.zip": {"a.png": image}, f"{split}_gt.zip": {"a.png": LABEL}})
    sources = [tmp_path / f"{s}_{k}.zip" for s in ("train", "val") for k in ("img", "gt")]
    card = card.model_copy(
        update={"layouts": (card.layouts[0].model_copy(update={"id": "{split}-{n}"}),)}
    )
    assert counts(card, *sources) == {"train": 1, "val": 1}


def test_a_folder_of_the_users_stands_for_nothing(tmp_path):
    for part, data in (("img", picture(6, 8, 3, high=255)), ("gt", LABEL)):
        (tmp_path / "val" / part).mkdir(parents=True)
        (tmp_path / "val" / part / "a.png").write_bytes(data)
    card = own_card(image="{city}/img/{n}.png", label="{city}/gt/{n}.png")
    with pytest.raises(DataError, match="holds no images"):
        counts(card, tmp_path / "val")


# Names with backslashes, as some tools unpack them


def test_synthia_unpacked_to_names_with_backslashes_is_recognized(tmp_path):
    label = io.BytesIO()
    values = RNG.integers(1, 13, (6, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    label.write(png16(8, 6, rows))
    for n in range(2):
        (tmp_path / f"RGB\\000000{n}.png").write_bytes(picture(6, 8, 3, high=255))
        (tmp_path / f"GT\\LABELS\\000000{n}.png").write_bytes(label.getvalue())
    assert sum(counts(get_card("synthia"), tmp_path).values()) == 2


def png16(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_a_backslash_in_a_name_that_fits_stays_one(tmp_path):
    for part, data in (("img", picture(6, 8, 3, high=255)), ("gt", LABEL)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a\\b.png").write_bytes(data)
    card = own_card(image="img/{n}.png", label="gt/{n}.png")
    assert counts(card, tmp_path) == {"train": 1}


# Versions that share a layout


def mapillary(folder: Path, *, largest: int, palette: int | None = None) -> Path:
    for place in ("training/images", "training/labels"):
        (folder / place).mkdir(parents=True)
    values = np.arange(48, dtype=np.uint8).reshape(6, 8) % largest + 1
    label = Image.fromarray(values)
    if palette is not None:
        colours = np.random.default_rng(1).integers(0, 99, (124, 3))
        colours[palette] = (128, 64, 128)
        label.putpalette(colours.astype(np.uint8).tobytes())
    label.save(folder / "training/labels/a.png")
    (folder / "training/images/a.jpg").write_bytes(IMAGE)
    return folder


def version(folder: Path, label_map: str | None = None) -> tuple[str, bool]:
    """Return which map is taken, and whether that is said to be assumed."""
    events: list = []
    dataset = prepare(get_card("mapillary"), [folder], label_map=label_map, on_event=events.append)
    said = [e for e in events if isinstance(e, Notice) and e.warning and "--label-map" in e.message]
    return dataset.summary["label_map"]["name"], bool(said)


def test_a_small_extract_is_of_the_version_that_is_named(tmp_path):
    folder = mapillary(tmp_path / "in", largest=40)
    assert version(folder) == ("pinmem", True)
    assert version(folder, "v2.0") == ("v2.0", False)
    assert version(folder, "rein") == ("rein", False)


def test_a_named_version_that_cannot_be_is_refused(tmp_path):
    folder = mapillary(tmp_path / "in", largest=48)
    Image.fromarray(np.arange(76, 124, dtype=np.uint8).reshape(6, 8)).save(
        folder / "training/labels/a.png"
    )
    assert version(folder) == ("v2.0", False)
    with pytest.raises(DataError, match="another version"):
        version(folder, "pinmem")


@pytest.mark.parametrize(("road", "expected"), [(13, "pinmem"), (21, "v2.0")])
def test_the_palette_decides_the_version(tmp_path, road, expected):
    folder = mapillary(tmp_path / "in", largest=40, palette=road)
    assert version(folder) == (expected, False)


@pytest.mark.parametrize(("classes", "expected"), [(66, "pinmem"), (124, "v2.0")])
def test_a_configuration_decides_the_version(tmp_path, classes, expected):
    folder = mapillary(tmp_path / "in", largest=40)
    (folder / "config.json").write_text(json.dumps({"labels": [{}] * classes}))
    assert version(folder) == (expected, False)


def test_configurations_that_differ_or_are_odd_are_ignored(tmp_path):
    folder = mapillary(tmp_path / "in", largest=40)
    for name, text in (("config_v1.2.json", 66), ("config_v2.0.json", 124)):
        (folder / name).write_text(json.dumps({"labels": [{}] * text}))
    (folder / "config.json").write_text("[" * 9999)
    assert version(folder) == ("pinmem", True)
