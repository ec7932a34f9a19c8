"""Torn, odd and hostile JSON, TOML and YAML: the content, or an error in a sentence."""

import math
import os
import tracemalloc

import pytest

from pinmem_core.documents import (
    json_text,
    read_json,
    read_json_lines,
    read_json_object,
    read_text,
    read_toml,
    read_yaml,
)
from pinmem_core.errors import DataError


@pytest.fixture
def written(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "file"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("content", ['{"a": [1, 2.5, null, true, "é"]}', b'\xef\xbb\xbf{"a": 1}'])
def test_what_is_json_is_read(written, content):
    assert "a" in read_json_object(written(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "delimiter"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ("[" * 100_000, "nested deeper than 64"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested deeper than 64"),
        ("9" * 4301, "a number of 4301 digits"),
        ("-" + "9" * 400, "a number of 401 digits"),
        ("NaN", "not finite"),
        ("-Infinity", "not finite"),
        ("1e999", "not finite"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' twice"),
        ("[] []", "Extra data"),
    ],
)
def test_what_is_not_json_is_named_with_its_reason(written, content, reason):
    path = written(content)
    with pytest.raises(DataError, match=reason) as error:
        read_json(path)
    assert error.value.message.startswith(f"{path} cannot be read: ")
    assert error.value.message.endswith(".") and "\n" not in error.value.message


def test_what_is_written_is_json_whatever_its_numbers_are(written):
    numbers = {"a": [1, 0.5, math.nan], "b": {"c": (math.inf, -math.inf)}, "d": None}
    text = json_text(numbers, indent=1)
    assert read_json(written(text)) == {"a": [1, 0.5, None], "b": {"c": [None, None]}, "d": None}


def test_sixty_four_levels_are_not_too_deep(written):
    assert read_json(written("[" * 64 + "1" + "]" * 64))


@pytest.mark.parametrize("content", ["[1]", "3", '"text"', "null"])
def test_another_value_than_an_object_is_refused(written, content):
    with pytest.raises(DataError, match="does not hold a JSON object"):
        read_json_object(written(content))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "loop", tmp_path / "absent"):
        with pytest.raises(DataError, match="cannot be read"):
            read_text(path)
    with pytest.raises(DataError, match="not a regular file"):
        next(read_json_lines(tmp_path / "pipe", dict))


def test_a_file_beyond_the_limit_is_not_loaded(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    with pytest.raises(DataError, match="larger than 1,048,576 bytes"):
        read_text(tmp_path / "huge")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_last_line_that_is_torn_is_skipped_and_odd_ones_are_named(written):
    path = written(
        b'{"a": 1}\n\nnot json\n[1]\n{"b": 1}\n\xff\n'
        + b"[" * 5000
        + b"\n"
        + b" " * 3 * 2**20
        + b'\n{"a": 2}\n{"a": 3'
    )
    events = []
    assert list(read_json_lines(path, lambda line: line["a"], events.append)) == [1, 2]
    assert [event.message.split(":")[0] for event in events] == [
        f"{path}, line {number}" for number in (3, 4, 5, 6, 7)
    ]
    assert all(event.warning for event in events)


def test_without_a_listener_an_odd_or_torn_line_is_refused(written):
    lines = read_json_lines(written('{"a": 1}\n{"a": 2'), lambda line: line["a"])
    assert next(lines) == 1
    with pytest.raises(DataError, match="line 2"):
        next(lines)


def test_a_line_longer_than_the_limit_is_named(written):
    path = written(b'{"a": "' + b"x" * 3 * 2**20 + b'"}\n{"a": 2}\n')
    events = []
    assert list(read_json_lines(path, dict, events.append)) == [{"a": 2}]
    assert "longer than 1,048,576 bytes" in events[0].message


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(read_json_lines(tmp_path / "absent", dict)) == []


@pytest.mark.parametrize(
    "content",
    [
        "a = ",
        "a = " + "[" * 5000,
        "a = " + "[" * 70 + "]" * 70,
        b"a = '\xff'",
        "a = inf",
        "a = {b = [1, -1e400]}",
        "a = nan",
        "a = 0x" + "f" * 17,
        "a = 0x" + "f" * 100_000,
        "a" + ".a" * 500_000 + " = 1",
        "[" + "a." * 500_000 + "a]",
    ],
)
def test_what_is_not_toml_is_refused(written, content):
    assert read_toml(written("a = [1]")) == {"a": [1]}
    with pytest.raises(DataError, match="cannot be read"):
        read_toml(written(content))


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "[" * 5000,
        "a: " + "[" * 70 + "]" * 70,
        b"a: \xff",
        "a: &x [*x]",
        "a: 2001-99-99",
        "a: 1\na: 2",
    ],
)
def test_what_is_not_yaml_is_refused(written, content):
    assert read_yaml(written("a: [1]")) == {"a": [1]}
    with pytest.raises(DataError, match="cannot be read"):
        read_yaml(written(content))
