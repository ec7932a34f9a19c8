"""Label files give the numbers that are stored in them, or are refused."""

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from odd_images import png
from PIL import Image

from pinmem_core.data.catalog import get_card, read_card
from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.statistics import statistics
from pinmem_core.data.verify import verify
from pinmem_core.errors import DataError
from pinmem_core.images import check_image, image_size, read_image, write_png
from pinmem_core.label_files import read_label, read_train_ids
from pinmem_core.png import label_png

IDS = LabelMap.from_ids({0: 0})
COLORS = LabelMap.from_colors({(0, 0, 0): 0})
HEIGHT, WIDTH = 11, 21


def _ids(largest: int = 18) -> NDArray[np.uint8]:
    return np.random.default_rng(largest).integers(0, largest + 1, (HEIGHT, WIDTH), np.uint8)


def _put(folder: Path, content: bytes, name: str = "a.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _saved(image: Image.Image | NDArray, form: str, **options: object) -> bytes:
    file = BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def _with_alpha(*bands: NDArray[np.uint8], alpha: int = 255) -> NDArray[np.uint8]:
    return np.dstack([*bands, np.full((HEIGHT, WIDTH), alpha, np.uint8)])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("kind", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (3, 1), (3, 2), (3, 4), (3, 8)]
)
def test_a_png_of_any_depth_gives_its_ids(tmp_path, depth, kind, interlaced):
    ids = _ids(min(2**depth - 1, 255)).astype(np.uint16) * (257 if depth == 16 else 1)
    palette = [(b"PLTE", np.random.default_rng(0).bytes(3 << depth))] if kind == 3 else []
    path = _put(tmp_path, png(ids, depth, *palette, kind=kind, interlaced=interlaced))
    assert np.array_equal(read_label(path), ids)
    assert np.array_equal(ENCODINGS.get("ids")(path, IDS), ids)


@pytest.mark.parametrize("maxval", [1, 5, 18, 33, 254, 255, 256, 1000, 65534, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_gives_its_ids_whatever_its_largest_value_is(tmp_path, maxval, plain):
    ids = np.random.default_rng(1).integers(0, maxval + 1, (HEIGHT, WIDTH))
    if plain:
        head, body = "P2", " ".join(map(str, ids.ravel())).encode()
    else:
        head, body = "P5", ids.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    path = _put(tmp_path, f"{head}\n{WIDTH} {HEIGHT}\n{maxval}\n".encode() + body, "a.pgm")
    assert np.array_equal(read_label(path), ids)


@pytest.mark.parametrize(("largest", "value"), [(2, b"\xff"), (18, b"\x13"), (300, b"\x01\x2d")])
def test_a_pgm_with_a_value_above_its_largest_is_refused(tmp_path, largest, value):
    path = _put(tmp_path, b"P5\n2 1\n%d\n" % largest + b"\0" * len(value) + value, "a.pgm")
    with pytest.raises(DataError, match=f"values above {largest}"):
        read_label(path)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_other_lossless_files_give_their_ids(tmp_path, form, options):
    ids = _ids()
    assert np.array_equal(read_label(_put(tmp_path, _saved(ids, form, **options))), ids)
    colored = Image.fromarray(ids)
    colored.putpalette(np.random.default_rng(0).bytes(768))
    if form != "TIFF" and not options:
        assert np.array_equal(read_label(_put(tmp_path, _saved(colored, form))), ids)


def test_one_bit_files_give_0_and_1_as_they_are_stored(tmp_path):
    bits = _ids(1)
    image = Image.fromarray(bits.astype(bool))
    for form in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(read_label(_put(tmp_path, _saved(image, form))), bits)
    packed = np.packbits(bits, axis=1).tobytes()
    path = _put(tmp_path, b"P4\n%d %d\n" % (WIDTH, HEIGHT) + packed)
    assert np.array_equal(read_label(path), bits)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_ids_are_found_beside_an_opaque_alpha_channel_and_in_red(tmp_path, form):
    ids, zeros = _ids(), np.zeros((HEIGHT, WIDTH), np.uint8)
    pictures = [_with_alpha(ids, zeros, zeros), _with_alpha(ids, ids, ids)]
    pictures += [np.dstack([ids] * 3), np.dstack([ids, zeros, zeros])]
    pictures += [] if form == "WEBP" else [_with_alpha(ids)]
    for picture in pictures:
        content = _saved(picture, form, **({"lossless": True} if form == "WEBP" else {}))
        assert np.array_equal(ENCODINGS.get("ids")(_put(tmp_path, content), IDS), ids)


def test_colours_are_given_as_they_are_seen(tmp_path):
    ids = _ids(15)
    colors = np.random.default_rng(3).integers(0, 256, (16, 3), dtype=np.uint8)
    seen = colors[ids]
    files = [png(seen), png(_with_alpha(seen)), png(ids, 4, (b"PLTE", colors.tobytes()), kind=3)]
    for content in files:
        assert np.array_equal(ENCODINGS.get("colors")(_put(tmp_path, content), COLORS), seen)
    bits = _ids(1)
    found = ENCODINGS.get("colors")(_put(tmp_path, png(bits, 1)), COLORS)
    assert np.array_equal(found, np.dstack([bits * 255] * 3))


REFUSED = {
    "jpeg": (_saved(_ids(), "JPEG", quality=100), "lossily"),
    "jpeg in tiff": (_saved(np.dstack([_ids()] * 3), "TIFF", compression="jpeg"), "lossily"),
    "webp": (_saved(np.dstack([_ids()] * 3), "WEBP", quality=100), "lossily"),
    "jpeg 2000": (_saved(_ids(), "JPEG2000"), "lossily"),
    "half clear": (png(_with_alpha(_ids(), alpha=128)), "transparent pixels"),
    "clear colours": (png(_with_alpha(*[_ids()] * 3, alpha=0)), "transparent pixels"),
    "floats": (_saved(_ids().astype(np.float32), "TIFF"), "cannot read exactly"),
    "16-bit colours": (png(np.dstack([_ids()] * 3), 16), "cannot read exactly"),
    "16-bit alpha": (png(np.dstack([_ids()] * 2), 16), "cannot read exactly"),
    "colours": (png(np.random.default_rng(0).integers(0, 9, (9, 9, 3), np.uint8)), "RGB colours"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_changed_by_reading_is_refused_as_ids(tmp_path, name):
    content, reason = REFUSED[name]
    with pytest.raises(DataError, match=reason) as error:
        ENCODINGS.get("ids")(_put(tmp_path, content), IDS)
    assert "dataset itself" not in (error.value.hint or "")


def _tiff(ids: NDArray[np.uint8], *, height: int = HEIGHT, photometric: int = 1) -> bytes:
    """Return a TIFF of one uncompressed strip that may claim more rows than it holds."""
    values = {256: WIDTH, 257: height, 258: 8, 259: 1, 262: photometric, 273: 8}
    values |= {277: 1, 278: HEIGHT, 279: ids.size}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    head = b"II*\0" + struct.pack("<I", 8 + ids.size + ids.size % 2)
    body = head + ids.tobytes() + bytes(ids.size % 2)
    return body + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def test_a_tiff_that_lacks_a_strip_or_inverts_its_values_is_refused(tmp_path):
    ids = _ids()
    assert np.array_equal(read_label(_put(tmp_path, _tiff(ids))), ids)
    for content in (_tiff(ids, height=2 * HEIGHT), _tiff(ids, photometric=0)):
        with pytest.raises(DataError, match="cannot read exactly"):
            read_label(_put(tmp_path, content))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_labels_are_turned_as_their_images_are(tmp_path, form, orientation):
    ids = np.dstack([_ids()] * 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    path = _put(tmp_path, _saved(ids, form, exif=exif, **options))
    assert np.array_equal(read_label(path), read_image(path))
    assert read_label(path).shape[:2] == image_size(path)[::-1]
    assert not np.array_equal(read_label(path), ids)


def _late_orientation(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG that says only behind its pixels that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + data))
    whole = png(pixels)
    return whole[:-12] + chunk + whole[-12:]


def test_a_size_is_that_of_the_pixels_wherever_the_orientation_stands(tmp_path):
    path = _put(tmp_path, _late_orientation(_ids()))
    assert read_image(path).shape[:2] == read_label(path).shape == image_size(path)[::-1]


def _stream(rows: NDArray[np.uint8], kept: int, *, ending: bytes | None = None) -> bytes:
    """Return the zlib stream of the first `kept` unfiltered rows."""
    data = b"".join(b"\0" + row.tobytes() for row in rows[:kept])
    stream = zlib.compress(data)
    return stream if ending is None else stream[:-4] + ending


def _with_stream(pixels: NDArray[np.uint8], stream: bytes) -> bytes:
    """Return a PNG with right checksums around any stream of pixels."""
    whole = png(pixels)
    head = whole[: 8 + 25]
    parts = [(b"IDAT", stream), (b"IEND", b"")]
    for kind, data in parts:
        head += struct.pack(">I", len(data)) + kind + data
        head += struct.pack(">I", zlib.crc32(kind + data))
    return head


DAMAGED = {
    "short by rows": lambda a: _stream(a, 5),
    "short by a row": lambda a: _stream(a, HEIGHT - 1),
    "of no rows": lambda a: _stream(a, 0),
    "empty": lambda a: b"",
    "cut": lambda a: _stream(a, HEIGHT)[:30],
    "with a wrong ending": lambda a: _stream(a, HEIGHT, ending=b"abcd"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_png_whose_stream_ends_early_is_found(tmp_path, damage, channels):
    pixels = np.dstack([_ids() + 1] * channels)
    path = _put(tmp_path, _with_stream(pixels, DAMAGED[damage](pixels)))
    for read in (check_image, read_image, read_label):
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_an_interlaced_png_that_lacks_its_last_pass_is_found(tmp_path, depth):
    whole = png(_ids(1), depth, interlaced=True)
    at = whole.index(b"IDAT")
    length = struct.unpack(">I", whole[at - 4 : at])[0]
    data = zlib.decompress(whole[at + 4 : at + 4 + length])
    row = 1 + (WIDTH * depth + 7) // 8
    stream = zlib.compress(data[:-row])
    chunk = struct.pack(">I", len(stream)) + b"IDAT" + stream
    chunk += struct.pack(">I", zlib.crc32(b"IDAT" + stream))
    path = _put(tmp_path, whole[: at - 4] + chunk + whole[at + 8 + length :])
    for read in (check_image, read_image, read_label):
        with pytest.raises(DataError, match="ends early"):
            read(path)
    check_image(_put(tmp_path, whole), label=True)


def test_black_rows_and_bytes_behind_the_pixels_are_no_damage(tmp_path):
    black = np.zeros((HEIGHT, WIDTH), np.uint8)
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for row in black) + b"more")
    for content in (png(black), _with_stream(black, stream)):
        path = _put(tmp_path, content)
        check_image(path)
        assert not read_image(path).any() and not read_label(path).any()


def _swapped(whole: bytes) -> bytes:
    """Move the header behind the pixels."""
    return whole[:8] + whole[33:-12] + whole[8:33] + whole[-12:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-12],
        lambda whole: whole[:-1],
        lambda whole: whole[:33] + whole[8:33] + whole[33:],
        lambda whole: whole[:-12] + struct.pack(">I", 2**31) + b"tEXt",
        _swapped,
    ],
)
def test_a_png_of_disordered_chunks_is_damaged(tmp_path, damage):
    with pytest.raises(DataError, match="cannot be read"):
        check_image(_put(tmp_path, damage(png(_ids()))))


def test_prepared_labels_are_written_so_that_any_reader_gives_them_back(tmp_path):
    ids = _ids()
    path = _put(tmp_path, label_png(ids))
    with Image.open(path) as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), ids)
    assert np.array_equal(read_train_ids(path), ids)


@pytest.mark.parametrize("value", [19, 33, 128, 254])
def test_a_prepared_label_with_other_values_never_reaches_the_loss(tmp_path, value):
    ids = _ids()
    ids[0, 0], ids[-1, -1] = 255, 18
    assert np.array_equal(read_train_ids(_put(tmp_path, label_png(ids))), ids)
    ids[3, 4] = value
    path = _put(tmp_path, label_png(ids))
    for checked in (False, True):
        with pytest.raises(DataError, match=f"not trainIds: {value}"):
            read_train_ids(path, checked=checked)


def test_a_prepared_label_of_another_kind_is_refused(tmp_path):
    for pixels, depth in ((np.dstack([_ids()] * 3), 8), (_ids(), 16)):
        with pytest.raises(DataError, match="8-bit single-channel"):
            read_train_ids(_put(tmp_path, png(pixels, depth)))


# The same through `prepare` and `verify`.


def _own_data(folder: Path, **files: bytes) -> Path:
    """Write pairs, and files in the place of some of their labels; return the card."""
    for name in ("a", "b"):
        write_png(_made(folder / "images") / f"{name}.png", np.dstack([_ids() * 9 + 5] * 3))
        (_made(folder / "labels") / f"{name}.png").write_bytes(label_png(_ids()))
    for name, content in files.items():
        kind, _, name = name.rpartition("_")
        write_png(_made(folder / "images") / f"{name}.png", np.dstack([_ids() * 9 + 5] * 3))
        (folder / "labels" / f"{name}.png").write_bytes(label_png(_ids()))
        (folder / (kind or "labels") / f"{name}.png").write_bytes(content)
    card = {
        "name": "own",
        "title": "own data",
        "layouts": [
            {
                "name": "folders",
                "image": "images/{n}.png",
                "label": "labels/{n}.png",
                "label_maps": ["trainids"],
                "id": "{n}",
            }
        ],
    }
    (folder / "own.yaml").write_text(json.dumps(card))
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _prepared(folder: Path) -> tuple[PreparedDataset, dict[str, str]]:
    dataset = prepare(read_card(folder / "own.yaml"), [folder])
    reasons = {Path(d["file"]).stem: d["reason"] for d in dataset.summary["excluded"]}
    return dataset, reasons


def test_prepare_keeps_stored_ids_and_leaves_out_what_it_cannot_trust(tmp_path):
    small = _ids(15)
    short = _with_stream(_ids() + 1, _stream(_ids() + 1, 6))
    gone = np.dstack([_ids() + 1] * 3)
    folder = _own_data(
        tmp_path,
        small=png(small, 4),
        jpeg=_saved(_ids(), "JPEG"),
        short=short,
        images_gone=_with_stream(gone, _stream(gone, 6)),
    )
    dataset, reasons = _prepared(folder)
    samples = {sample.id: sample for sample in dataset.samples}
    assert set(samples) == {"a", "b", "small"}
    assert np.array_equal(samples["small"].read()[1], small)
    assert set(reasons) == {"jpeg", "short", "gone"}
    assert "lossily" in reasons["jpeg"]
    assert "ends early" in reasons["short"] and "ends early" in reasons["gone"]


def test_a_png_of_one_value_is_whole_though_its_last_bytes_hold_a_thousand_pixels(tmp_path):
    path = _put(tmp_path, _saved(np.full((250, 1049), 7, np.uint8), "PNG"))
    check_image(path)


def test_verify_finds_streams_that_end_early_in_images_and_labels(tmp_path):
    dataset, _ = _prepared(_own_data(tmp_path))
    assert verify("own").findings == ()
    first, second = dataset.samples
    image = read_image(first.image)
    first.image.write_bytes(_with_stream(image, _stream(image, 6)))
    label = read_label(second.label)
    second.label.write_bytes(_with_stream(label, _stream(label, 6)))
    found = {finding.file: finding.reason for finding in verify("own").findings}
    assert found[str(first.image)] == found[str(second.label)]
    assert found[str(first.image)] == "cannot be read: its pixel stream ends early"


def test_training_stops_at_a_label_that_was_spoilt_after_prepare(tmp_path):
    dataset, _ = _prepared(_own_data(tmp_path))
    sample = dataset.samples[0]
    spoilt = read_label(sample.label).copy()
    spoilt[2, 2] = 20
    sample.label.write_bytes(label_png(spoilt))
    with pytest.raises(DataError, match="not trainIds: 20") as error:
        sample.read()
    assert "pinmem data prepare own" in (error.value.hint or "")


def test_unknown_colours_are_named_as_a_card_has_them():
    colors = get_card("camvid").label_map("colors")
    pixels = np.array([[(128, 64, 128), (1, 2, 3)]], np.uint8)
    _, unknown = colors.apply(pixels)
    assert [colors.text(value) for value in unknown] == ["1,2,3"]
    assert IDS.text(33) == "33"


def test_prepare_names_unknown_colours_by_red_green_and_blue(tmp_path):
    folder = _own_data(tmp_path)
    for name in ("a", "b"):
        colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colors[1], colors[2] = (70, 130, 180), (128, 64, 128)
        (folder / "labels" / f"{name}.png").write_bytes(png(colors))
    card = json.loads((folder / "own.yaml").read_text())
    card["label_maps"] = {"mine": {"classes": {"sky": ["70,130,180"], "road": ["0,0,0"]}}}
    card["layouts"][0] |= {"label_maps": ["mine"], "encoding": "colors"}
    (folder / "own.yaml").write_text(json.dumps(card))
    with pytest.raises(DataError, match=r"does not know: 128,64,128\b"):
        _prepared(folder)


def _with_palette(ids: NDArray[np.uint8], colours: object) -> Image.Image:
    picture = Image.fromarray(ids)
    picture.putpalette(np.array(colours, np.uint8).tobytes())
    return picture


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_of_greys_that_are_not_their_numbers_is_refused_as_ids(tmp_path, form):
    greys = np.array([0, 1, 2, 8, 10, 13, 255])
    picture = _with_palette(_ids(6), np.repeat(greys[:, None], 3, axis=1))
    file = _put(tmp_path, _saved(picture, form))
    with pytest.raises(DataError, match=r"index, e\.g\. 3, or its grey value, 8") as error:
        ENCODINGS.get("ids")(file, IDS)
    assert "8-bit grey values" in (error.value.hint or "")
    assert np.array_equal(ENCODINGS.get("colors")(file, COLORS)[..., 0], greys[_ids(6)])


@pytest.mark.parametrize(
    "colours",
    [
        [[n, n, n] for n in range(256)],
        [[0, 0, 0]] * 256,
        [[0, 0, 0], [255, 255, 255]],
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
    ],
    ids=["ramp", "black", "black and white", "colours"],
)
def test_palettes_that_leave_no_doubt_give_their_ids(tmp_path, colours):
    ids = _ids(min(len(colours), 19) - 1)
    file = _put(tmp_path, _saved(_with_palette(ids, colours), "PNG"))
    assert np.array_equal(read_label(file), ids)


@pytest.mark.parametrize("file", ["image", "label"])
@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:40], None])
def test_a_file_spoilt_after_prepare_is_named_with_the_commands_that_mend_it(
    tmp_path, file, damage
):
    dataset, _ = _prepared(_own_data(tmp_path))
    spoilt = getattr(dataset.samples[0], file)
    if damage:
        spoilt.write_bytes(damage(spoilt.read_bytes()))
    else:
        spoilt.unlink()
    tasks = [dataset.samples[0].read]
    if file == "image":
        tasks.append(lambda: statistics(dataset.samples, "own"))
    for task in tasks:
        with pytest.raises(DataError, match=str(spoilt)) as error:
            task()
        hint = error.value.hint or ""
        assert "'pinmem data verify own'" in hint and "'pinmem data prepare own'" in hint
