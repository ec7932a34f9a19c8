"""Collects what a bare GPU machine lacks into one folder that git ignores, and says how much it is.

Run `python tests/gpu/collect.py --camvid FOLDER --weights FILE --reference FOLDER/NAME...`, on a
machine with network; tests/gpu/README.md says how the folder is used. It gets

    wheels/      packages that a machine with Python 3.12 and torch 2.11 does not have
    data/        camvid/ and the weights
    reference/   files of the original's figures

Nothing of it may be committed.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = (
    *("pydantic", "platformdirs", "typer", "annotated-doc", "shellingham", "rich"),
    *("isal", "regex", "rarfile", "matplotlib", "timm"),
    *("contourpy", "cycler", "kiwisolver", "packaging", "pyparsing", "python-dateutil", "six"),
)
"""By name; the dependencies of the first are downloaded, too. Fonttools, which matplotlib needs for
PDF files only, is left out; the machine has the rest."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
WHEELS_LIMIT, LIMIT = 20 << 20, 64 << 20
"""Bytes of the wheels, and of all that travels in one call: the checkout and what goes with it."""


def download_wheels(folder: Path) -> None:
    """Fetch the wheels for Python 3.12 on x86-64 Linux, whatever this machine is."""
    tags = [f"--platform={platform}" for platform in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", *tags]
    pip += ["--python-version=3.12", "--implementation=cp", "--dest", str(folder)]
    subprocess.run([*pip, WHEELS[0]], check=True)
    subprocess.run([*pip, "--no-deps", *WHEELS[1:]], check=True)


def fill(folder: Path, sources: Sequence[Path]) -> None:
    """Have `folder` hold copies of `sources`, files or folders, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, folder / source.name, copy_function=shutil.copyfile)
            (folder / source.name).chmod(0o755)
        else:
            shutil.copyfile(source, folder / source.name)


def tracked_bytes(root: Path) -> int:
    """Return the size of what git would carry: tracked files, and new ones it does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=True)
    names = filter(None, listed.stdout.decode().split("\0"))
    return sum((root / name).stat().st_size for name in names if (root / name).is_file())


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def account(folder: Path, root: Path = ROOT) -> Iterator[tuple[str, int, int | None]]:
    """Yield the name, the bytes and the bytes allowed of the parts and of their sums."""
    parts = {name: folder_bytes(folder / name) for name in ("wheels", "data", "reference")}
    tree = tracked_bytes(root)
    yield "checkout", tree, None
    yield "wheels", parts["wheels"], WHEELS_LIMIT
    yield "data", parts["data"], None
    yield "reference", parts["reference"], None
    yield "for check.py: without data", tree + parts["wheels"] + parts["reference"], LIMIT
    yield "for study.py: data alone", tree + parts["data"], LIMIT
    yield "for both in one call", tree + sum(parts.values()), LIMIT


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("-o", "--output", type=Path, default=ROOT / ".gpu", help="the folder to fill")
    add("--camvid", type=Path, help="CamVid at 480x360: folders images and labels")
    add("--weights", type=Path, help="ImageNet weights of MobileNetV2")
    add("--reference", type=Path, nargs="*", default=[], help="files of the original's figures")
    add("--without-wheels", action="store_true", help="leave the wheels as they are")
    return parser.parse_args(arguments)


def main() -> int:
    """Collect, and print the account; return 1 where a program's needs do not fit into a call."""
    options = parse()
    missing = [path for path in (options.camvid, options.weights, *options.reference) if path]
    for path in missing:
        if not path.exists():
            print(f"error: {path} does not exist", file=sys.stderr)
            return 3
    if not options.without_wheels:
        fill(options.output / "wheels", [])
        download_wheels(options.output / "wheels")
    fill(options.output / "data", [options.weights] if options.weights else [])
    if options.camvid:
        for part in ("images", "labels"):
            destination = options.output / "data" / "camvid" / part
            shutil.copytree(options.camvid / part, destination, copy_function=shutil.copyfile)
    fill(options.output / "reference", options.reference)
    fits = True
    for what, size, limit in account(options.output):
        bad = limit is not None and size > limit
        fits = fits and not (bad and "both" not in what)
        allowed = "" if limit is None else f" of {limit / 2**20:.0f}"
        print(f"{what:32} {size / 2**20:6.1f}{allowed} MiB{': too much' if bad else ''}")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
