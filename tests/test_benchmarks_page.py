"""docs/benchmarks.md shows what the committed results say, and what was not measured."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "docs" / "benchmarks"
META = {"device": "A GPU", "torch": "2.11.0", "commit": "abc1234567"}


@pytest.fixture(scope="module")
def tables():
    return runpy.run_path(str(BENCHMARKS / "tables.py"))


def row(name, **facts):
    blank = {"status": "ok", "values": {}, "goal": None, "met": None, "note": "", "seconds": 1.0}
    return {"section": "fast", "name": name, **blank, **facts}


def test_the_page_says_what_the_results_say(tables):
    page = tables["PAGE"].read_text("utf-8")
    assert tables["filled"](page, tables["read"]()) == page, "run docs/benchmarks/tables.py"
    for section in tables["EXPECTED"]:
        assert f"<!-- check {section} -->" in page


def test_the_newest_measurement_of_a_row_is_shown(tables, tmp_path):
    first, second, third, *others = tables["EXPECTED"]["fast"]
    older = [row(first, values={"images/s": 1234.5}), row(second, values={"images/s": 5.0})]
    older.append(row(third, values={"images/s": 7.0}))
    newer = [
        row(first, values={"images/s": 2468.1}, goal=">= 8x", met=False, note="a | b"),
        row(second, status="skipped", note="no time left"),
        row("unforeseen", status="error"),
        row(third, status="error", note="no answer"),
    ]
    for name, date, rows in (("a", "2026-11-27", newer), ("b", "2026-11-26", older)):
        data = {"meta": META | {"date": date}, "rows": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    lines = tables["check_table"]("fast", tables["read"](tmp_path)).splitlines()
    assert lines[2] == (
        f"| {first} | ok | images/s: 2,468; a \\| b | >= 8x: missed | "
        "A GPU, torch 2.11.0, 2026-11-27, abc1234 |"
    )
    assert (
        lines[3] == f"| {second} | ok | images/s: 5 |  | A GPU, torch 2.11.0, 2026-11-26, abc1234 |"
    )
    assert lines[4].startswith(f"| {third} | ok | images/s: 7 |")
    assert lines[5:-1] == [f"| {name} | not measured |  |  |  |" for name in others]
    assert lines[-1].startswith("| unforeseen | error |")


def test_the_newest_study_is_shown_and_none_is_not_measured(tables):
    assert tables["study_tables"]([]) == "Not measured.\n"
    run = {
        "variant": "pinmem",
        "seed": 0,
        "finished": False,
        "iterations": 900,
        "of": 1500,
        "iterations_per_second": 7.25,
        "peak_memory_bytes": 2_500_000_000,
        "miou": {"camvid:0001TP": 0.385},
        "error": None,
    }
    call = {"date": "", "seconds": 270.0, "processes": 4, "iterations": 900}
    data = {
        "meta": META | {"title": "CamVid", "date": "2026-11-27T10:00:00+00:00"},
        "calls": [{**call, "images_per_second": 87.0}],
        "runs": [run],
        "table": None,
    }
    other = data | {"meta": data["meta"] | {"title": "Another study"}, "runs": []}
    shown = tables["study_tables"]([other, data])
    assert "Another study. A GPU" in shown
    assert "CamVid. A GPU, torch 2.11.0, 2026-11-27, commit abc1234567." in shown
    assert "| 4.5 min | 4 | 900 | 87.0 |" in shown
    assert "| `pinmem`, seed 0 | 900 of 1500 | 7.25 | 2.50 GB | 38.5 |" in shown
