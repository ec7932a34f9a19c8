"""Inputs of the fuzzing suite that were once taken wrongly, or ended in a traceback."""

import io
import json
import struct
import zlib

import pytest
from conftest import camvid_folder
from PIL import Image

from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.state import state_of
from pinmem_core.errors import DataError
from pinmem_core.inference.protocols import get_protocol
from pinmem_core.png import check_png


def test_a_png_of_two_palettes_is_damaged():
    file = io.BytesIO()
    image = Image.new("P", (4, 4))
    image.putpalette(list(range(12)))
    image.save(file, "png")
    check_png(file)
    data = file.getvalue()
    chunk = b"PLTE" + bytes(12)
    more = struct.pack(">I", 12) + chunk + struct.pack(">I", zlib.crc32(chunk))
    place = data.index(b"PLTE") - 4
    with pytest.raises(ValueError, match="two palettes"):
        check_png(io.BytesIO(data[:place] + more + data[place:]))


def test_a_field_of_a_protocol_may_be_given_again():
    assert get_protocol("fast+flip=true+flip") == get_protocol("fast+flip")
    assert get_protocol("fast+crop=none+crop=512") == get_protocol("fast+crop=512")


@pytest.fixture
def prepared(tmp_path):
    return prepare(get_card("camvid"), [camvid_folder(tmp_path / "raw", {"0001TP": 3})])


def test_a_manifest_that_is_not_utf_8_is_damaged(prepared):
    manifest = prepared.root / "manifest.jsonl"
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b'"0001TP', b'"\xff001TP', 1))
    with pytest.raises(DataError, match="damaged"):
        PreparedDataset.open("camvid")


def test_a_summary_without_counts_is_shown(prepared):
    summary = json.loads((prepared.root / "dataset.json").read_text())
    del summary["counts"]
    (prepared.root / "dataset.json").write_text(json.dumps(summary))
    assert state_of(get_card("camvid")).counts == {}
