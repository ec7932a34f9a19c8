"""What is killed, what may not be lost by it, and what has to go on afterwards."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import children

_DRIVES = {"0006R0": 4, "0016E5": 4, "Seq05VD": 2, "0001TP": 2}
_ITERATIONS = 3
"""The fewest that have an old snapshot removed, before and after the run is resumed."""
_SETTINGS = {
    "batch": 2,
    "device": "cpu",
    "log_every": 1,
    "model.backbone": "tiny",
    "model.feature_dim": 16,
    "model.memory.init_batches": 2,
    "augmentation.crop": 64,
    "checkpoint.every": 1,
}
_VOLATILE = {"finished.jsonl"}
"""Files that a command adds a line to."""
_RANDOM = re.compile(r"\.[0-9a-f]{16}(?=\.)")
"""What differs between two temporary names."""
Tree = dict[str, str]


class Place:
    """A folder with a home, raw data and outputs, that goes back to how it was."""

    def __init__(self, root: Path) -> None:
        self.root, self.kept, self.log = root / "place", root / "kept", root / "log.txt"
        self.home, self.raw = self.root / "home", self.root / "raw"
        self.root.mkdir(parents=True)

    def begin(self, *arguments: str, **how: object) -> int:
        """Start a command, and return its process's number."""
        return self.start(children.pinmem(*arguments), **how)

    def start(self, work: Callable[[], object], **how: object) -> int:
        environment = {"PINMEM_HOME": str(self.home), "NO_COLOR": "1", "COLUMNS": "200"}
        environment |= how.pop("environment", {})
        log = how.pop("log", self.log)
        return children.start(work, log, folder=self.root, environment=environment, **how)

    def run(self, *arguments: str, **how: object) -> int:
        """Run a command to its end, and return its exit code."""
        return children.wait(self.begin(*arguments, **how))

    def need(self, *arguments: str) -> None:
        if code := self.run(*arguments):
            raise RuntimeError(f"{' '.join(arguments)} ended with {code}: {self.said()}")

    def said(self) -> str:
        """Return the end of what the last command printed."""
        return " ".join(self.log.read_text(errors="replace").split())[-300:]

    def keep(self) -> None:
        """Remember how everything is now."""
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.copytree(self.root, self.kept, symlinks=True)

    def go_back(self) -> None:
        """Have everything as it was when it was kept."""
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root, symlinks=True)

    def tree(self, part: str = ".") -> Tree:
        """Return the digest of every file under final names; hidden ones are of work under way."""
        return {
            path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.root / part).rglob("*"))
            if path.is_file()
            and path.name not in _VOLATILE
            and not any(name.startswith(".") for name in path.relative_to(self.root).parts)
        }

    def state(self) -> str:
        """Return the digest of everything that is there, whatever temporary names it has."""
        parts = [
            f"{_RANDOM.sub('', path.relative_to(self.root).as_posix())} {_content(path)}"
            for path in self.root.rglob("*")
        ]
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()

    def draw_camvid(self) -> None:
        from conftest import camvid_folder

        camvid_folder(self.raw, _DRIVES)


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"


@dataclass(frozen=True)
class Scene:
    """A command that is killed.

    Attributes:
        name: For the table.
        command: Its arguments.
        make: Makes what is there before.
        first: What is run after the death, before anything is compared: what an access restores is
            not lost. It must succeed where `make` has run it.
        following: Arguments of what must go on after that.
        wrong: Yields what was lost or half written, by the trees before, after an untouched
            command, and now.
        unfinished: Yields what the following command did not bring about.
    """

    name: str
    command: tuple[str, ...]
    make: Callable[[Place], None]
    first: Callable[[Place], Iterator[str]]
    following: Callable[[Place], Sequence[tuple[str, ...]]]
    wrong: Callable[[Place, Tree, Tree], Iterator[str]]
    unfinished: Callable[[Place, Tree], Iterator[str]]


def old_or_new(place: Place, before: Tree, after: Tree) -> Iterator[str]:
    """Yield every file that is neither as it was before nor as the command makes it."""
    now = place.tree()
    for path, digest in before.items():
        if path not in now:
            if path in after:
                yield f"{path} is gone"
        elif now[path] not in (digest, after.get(path)):
            yield f"{path} is neither the old nor the new"
    for path in now.keys() - before.keys():
        if now[path] != after.get(path):
            yield f"{path} is half written"


def same_end(place: Place, after: Tree) -> Iterator[str]:
    """Yield every file that differs from what an untouched command leaves."""
    now = place.tree()
    for path in sorted(now.keys() | after.keys()):
        if now.get(path) != after.get(path):
            yield f"{path} is not what an untouched command leaves"


def _nothing(*_: object) -> Iterator[str]:
    return iter(())


# prepare

PREPARE = ("data", "prepare", "camvid", "--from", "raw", "-q")
AGAIN = (*PREPARE, "--reencode", "jpeg", "--height", "20", "--hash-images")


def _verified(place: Place) -> Iterator[str]:
    if place.run("data", "verify", "camvid"):
        yield f"the data set does not verify: {place.said()}"


def _verified_if_there(place: Place) -> Iterator[str]:
    if (place.home / "datasets" / "camvid").exists():
        yield from _verified(place)


def make_prepared(place: Place) -> None:
    place.draw_camvid()
    place.need(*PREPARE)


def _whole_set(place: Place, before: Tree, after: Tree) -> Iterator[str]:
    """Yield what is neither; a data set is all old or all new."""
    yield from old_or_new(place, before, after)
    part = "home/datasets/"
    now = {p: d for p, d in place.tree().items() if p.startswith(part)}
    sets = [{p: d for p, d in tree.items() if p.startswith(part)} for tree in (before, after)]
    if now not in sets:
        yield "the data set is neither the old nor the new one"


# train

TRAIN = (
    *(
        "train",
        "--recipe",
        "demo",
        "--sources",
        "camvid:0006R0,camvid:0016E5",
        "--targets",
        "camvid:0001TP",
    ),
    *("--iterations", str(_ITERATIONS), "--output", "run", "-q"),
    *(part for name, value in _SETTINGS.items() for part in ("--set", f"{name}={value}")),
)
RESUME = ("train", "--resume", "run", "-q")


def make_stopped_run(place: Place) -> None:
    """Make a run that died after its last save but one."""
    make_prepared(place)
    config = place.root / "run" / "checkpoint" / "config.json"

    def saved() -> bool:
        try:
            return json.loads(config.read_text())["iteration"] == _ITERATIONS - 1
        except (OSError, ValueError):  # it is being replaced
            return False

    children.kill_when(place.begin(*TRAIN), saved)


def _state_of_run(place: Place) -> Callable[[], object]:
    """Return what prints which snapshot and checkpoint of the run are whole."""

    def work() -> None:
        from pinmem_core.files import restore_folder
        from pinmem_core.models import load_checkpoint
        from pinmem_core.training.snapshots import newest_snapshot

        damaged: list[str] = []
        run = place.root / "run"
        newest = newest_snapshot(run, lambda event: damaged.append(str(event)))
        checkpoint = restore_folder(run / "checkpoint")
        done = load_checkpoint(checkpoint)[1]["iteration"] if checkpoint.exists() else None
        iteration = newest.meta.iteration if newest else None
        state = {"snapshot": iteration, "checkpoint": done, "damaged": damaged}
        (place.root / "state.json").write_text(json.dumps(state))

    return work


def run_is_whole(place: Place) -> Iterator[str]:
    had = _ITERATIONS - 1 if (place.kept / "run").exists() else 0
    if children.wait(place.start(_state_of_run(place))):
        yield f"the run cannot be read: {place.said()}"
        return
    path = place.root / "state.json"
    state = json.loads(path.read_text())
    path.unlink()
    yield from state["damaged"]
    for kind in ("snapshot", "checkpoint"):
        if (state[kind] or 0) < had:
            yield f"the {kind} of iteration {had} is lost"


def _data_untouched(place: Place, before: Tree, after: Tree) -> Iterator[str]:
    now = place.tree()
    for path, digest in before.items():
        if path.startswith(("raw/", "home/")) and now.get(path) != digest:
            yield f"{path} is changed"


def _go_on(place: Place) -> Sequence[tuple[str, ...]]:
    run = place.root / "run"
    if (run / "scores.json").exists():
        return []
    return [RESUME if (run / "config.json").exists() else TRAIN]


def _same_run(place: Place, after: Tree) -> Iterator[str]:
    now = place.tree("run")
    if now.get("run/checkpoint/model.safetensors") != after["run/checkpoint/model.safetensors"]:
        yield "the weights are not those of a run that never died"
    if "run/scores.json" not in now:
        yield "the run has not ended"
    lines = (place.root / "run" / "metrics.jsonl").read_text().splitlines()
    if [json.loads(line)["iteration"] for line in lines] != list(range(1, _ITERATIONS + 1)):
        yield "the metrics lack iterations, or have them twice"


# predict, pack, export

_MASKS = ("--model", "model", "--format", "trainid", "-q")
PREDICT = ("predict", "raw/images/*", "-o", "masks", *_MASKS, "--protocol", "photo", "--force")
PACK = ("data", "pack", "camvid", "-o", "camvid.tar", "--force", "-q")
PACK_APART = (*PACK[:4], "packs/camvid.tar", *PACK[5:])
_EXPORT = ("export", "weights", "run", "--precision", "fp16", "-o", "files", "--force", "-q")


def make_model(place: Place) -> None:
    """Save a small network of random weights."""

    def work() -> None:
        import torch
        from conftest import small_config

        from pinmem_core.models import Segmenter, save_checkpoint

        torch.manual_seed(0)
        save_checkpoint(Segmenter(small_config().model), place.root / "model", {})

    if children.wait(place.start(work)):
        raise RuntimeError(f"no network could be saved: {place.said()}")


def _some_masks(place: Place) -> None:
    """Draw images, half of which have masks of another protocol."""
    place.draw_camvid()
    make_model(place)
    half = sorted(str(path) for path in (place.raw / "images").glob("0006*"))[::2]
    place.need("predict", *half, "-o", "masks", *_MASKS, "--protocol", "fast")


def _packed(place: Place) -> None:
    make_prepared(place)
    place.need(*PACK, "--reencode", "jpeg")


def _exported(place: Place) -> None:
    make_prepared(place)
    place.need(*TRAIN)
    place.need(*(part for part in _EXPORT if part != "--fp16"))


def _pack_opens(place: Place) -> Sequence[tuple[str, ...]]:
    return [PACK, (*PREPARE[:4], "camvid.tar", "-q"), ("data", "verify", "camvid")]


def _repeat(command: tuple[str, ...]) -> Callable[[Place], Sequence[tuple[str, ...]]]:
    return lambda place: [command]


SCENES = (
    Scene(
        *("prepare", PREPARE, Place.draw_camvid, _verified_if_there, _repeat(PREPARE)),
        *(_whole_set, same_end),
    ),
    Scene(
        *("prepare, anew", AGAIN, make_prepared, _verified, _repeat(AGAIN)),
        *(_whole_set, same_end),
    ),
    Scene(
        *("train", TRAIN, make_prepared, run_is_whole, _go_on),
        *(_data_untouched, _same_run),
    ),
    Scene(
        *("train --resume", RESUME, make_stopped_run, run_is_whole, _go_on),
        *(_data_untouched, _same_run),
    ),
    Scene(
        *("predict", PREDICT, _some_masks, _nothing, _repeat(PREDICT)),
        *(old_or_new, same_end),
    ),
    Scene("pack", PACK, _packed, _nothing, _pack_opens, old_or_new, _nothing),
    Scene(
        *("export", _EXPORT, _exported, _nothing, _repeat(_EXPORT)),
        *(old_or_new, same_end),
    ),
)
