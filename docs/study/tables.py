"""Rebuild the tables of docs/study.md from the JSON files in this folder.

Run `python docs/study/tables.py`. A table stands between `<!-- variants NAME -->`, or
`<!-- classes NAME -->`, and `<!-- end -->`; its values are those of NAME.json.
"""

import json
import re
from pathlib import Path

from pinmem_core.study.table import StudyTable
from pinmem_core.study.writers import classes_as_markdown, variants_as_markdown

HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
_PLACE = re.compile(r"(<!-- (variants|classes) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return the page with its tables made anew."""
    return _PLACE.sub(lambda found: f"{found[1]}{_table(found[2], found[3])}{found[4]}", page)


def _table(kind: str, name: str) -> str:
    study = StudyTable.model_validate(
        json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    )
    if kind == "variants":
        return variants_as_markdown(study)
    (target,) = next(iter(study.rows.values())).targets
    return classes_as_markdown(study, target)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
