"""Rebuild the tables of docs/benchmarks.md from the JSON files in this folder.

Run `python docs/benchmarks/tables.py`. `tests/gpu/check.py` and `tests/gpu/study.py` write the JSON
files. The newest file with a row determines its values; a row without values says "not measured".
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
GPU = HERE.parents[1] / "tests" / "gpu"
sys.path[:0] = [str(GPU), str(HERE.parents[1])]

from rows import EXPECTED  # noqa: E402
from study_results import as_markdown  # noqa: E402

NOT_MEASURED = "not measured"
_PLACE = re.compile(r"(<!-- (check (\S+)|study) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = Sequence[Mapping[str, Any]]


def read(folder: Path = HERE) -> list[dict[str, Any]]:
    """Return all results of a folder, ordered by date."""
    found = [(path.name, json.loads(path.read_text("utf-8"))) for path in folder.glob("*.json")]
    return [data for _, data in sorted(found, key=lambda f: (f[1]["meta"]["date"], f[0]))]


def filled(page: str, results: Results) -> str:
    """Return the page with new tables."""

    def table(place: re.Match[str]) -> str:
        text = check_table(place[3], results) if place[3] else study_tables(results)
        return f"{place[1]}{text}{place[4]}"

    return _PLACE.sub(table, page)


def check_table(section: str, results: Results) -> str:
    """Return the rows of a section of `check.py`."""
    found = [
        (row, data["meta"])
        for data in results
        for row in data.get("rows", ())
        if row["section"] == section and row["status"] != "skipped"
    ]
    # An error, such as an answer that came too late, does not replace a measurement.
    found.sort(key=lambda pair: pair[0]["status"] != "error")
    newest = {row["name"]: (row, meta) for row, meta in found}
    names = dict.fromkeys([*EXPECTED[section], *newest])
    rows = [_cells(name, *newest[name]) if name in newest else _absent(name) for name in names]
    return _table(["row", "result", "values", "goal", "measured on"], rows)


def study_tables(results: Results) -> str:
    """Return the tables of all files of `study.py`."""
    studies = [as_markdown(data) for data in results if "runs" in data]
    return "\n".join(studies) if studies else f"{NOT_MEASURED.capitalize()}.\n"


def _cells(name: str, row: Mapping[str, Any], meta: Mapping[str, Any]) -> list[str]:
    values = "; ".join(f"{label}: {_shown(value)}" for label, value in row["values"].items())
    noted = "; ".join(filter(None, [values, row["note"]]))
    met = {True: "met", False: "missed", None: NOT_MEASURED}[row["met"]]
    goal = f"{row['goal']}: {met}" if row["goal"] else ""
    where = f"{meta['device']}, torch {meta['torch']}, {meta['date'][:10]}, {meta['commit'][:7]}"
    return [name, row["status"], noted, goal, where]


def _absent(name: str) -> list[str]:
    return [name, NOT_MEASURED, "", "", ""]


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(map(_escaped, row))} |\n" for row in _lines(heads, rows))


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    yield from (heads, ["---"] * len(heads), *rows)


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8"), read()), "utf-8")
