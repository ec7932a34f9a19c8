"""The Dockerfile names files and extras that exist; no test builds it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_dockerfile_names_files_and_extras_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    assert {"pyproject.toml", "pinmem_core", "pinmem_cli"} <= {*copied}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"'\.\[(.+)\]'", text)
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}
    assert {project["readme"], *project["license-files"]} <= {*copied}
