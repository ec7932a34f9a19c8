"""Kill pinmem at random moments and between renames, and see that nothing is lost by it.

    python tests/torture/run.py --kills 200 --seed 0

Each kill is a SIGKILL of a process that runs one command on a small CamVid of random pictures.
Afterwards what was there before has to be there, old or new but whole; nothing half written may lie
under a final name; and the next command has to bring about what an untouched one does. A death that
leaves the same files as an earlier one is counted, and not judged again. The exit code is 1 where
anything was lost or did not go on.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import children
import processes
from scenes import SCENES, Place, Scene, Tree

_OFTEN = 10
"""Deaths after which the number so far is printed."""


@dataclass
class Row:
    """What became of a scene."""

    name: str
    moments: str
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


class Killer:
    """Kills one scene's command again and again.

    Args:
        scene: The scene.
        root: An empty folder.
        log: A file that is given a line of JSON for each death; None for none.
    """

    def __init__(self, scene: Scene, root: Path, log: Path | None = None) -> None:
        self.scene, self.place, self.log = scene, Place(root), log
        self.judged: dict[str, tuple[list[str], list[str]]] = {}
        scene.make(self.place)
        self.place.keep()
        self.before = self.place.tree()
        self.place.need(*scene.command)  # the first one may be slower
        self.place.go_back()
        begun = time.monotonic()
        self.place.need(*scene.command)
        self.seconds = time.monotonic() - begun
        for complaint in scene.first(self.place):
            raise RuntimeError(complaint)
        self.after: Tree = self.place.tree()
        if self.after == self.before:
            raise RuntimeError(f"{scene.name} changes nothing")

    def at_random(self, kills: int, moments: random.Random) -> Row:
        """Kill at moments over the whole duration of the command."""
        row = Row(self.scene.name, "random")
        while row.kills < kills:
            self.place.go_back()
            child = self.place.begin(*self.scene.command)
            moment = moments.uniform(0, self.seconds)
            try:
                code = children.wait(child, patience=moment)
            except TimeoutError:
                code = -signal.SIGKILL
            if code == -signal.SIGKILL:
                self._judge(row, f"after {moment:.2f} s")
            elif code:
                row.stuck.append(f"ended with {code} by itself: {self.place.said()}")
                return row
        return row

    def before_changes(self, *, exchange: bool, every: int = 1) -> Row:
        """Kill before each rename or removal, until the command ends untouched."""
        row = Row(self.scene.name, "before each change" if exchange else "the same, no exchange")
        number = 1
        while True:
            self.place.go_back()
            death = children.die_before(number, exchange=exchange)
            code = self.place.run(*self.scene.command, before=death)
            if code != -signal.SIGKILL:
                if code:
                    row.stuck.append(f"ended with {code} by itself: {self.place.said()}")
                return row
            self._judge(row, f"before change {number}")
            number += every

    def _judge(self, row: Row, moment: str) -> None:
        """Add what is wrong after a death to a row."""
        begun = time.monotonic()
        row.kills += 1
        state = self.place.state()
        if state not in self.judged:
            self.judged[state] = list(self._lost()), list(self._stuck())
        lost, stuck = ([f"{moment}: {c}" for c in complaints] for complaints in self.judged[state])
        row.lost += lost
        row.stuck += stuck
        if self.log:
            facts = {"command": row.name, "killed": row.moments, "moment": moment}
            facts |= {"lost": lost, "stuck": stuck, "seconds": time.monotonic() - begun}
            with self.log.open("a") as file:
                file.write(json.dumps(facts) + "\n")
        if row.kills % _OFTEN == 0:
            told = f"{row.name}, {row.moments}: {row.kills} kills, {len(self.judged)} states"
            print(told, file=sys.stderr, flush=True)

    def _stuck(self) -> Iterator[str]:
        """Go on, and yield why that fails."""
        for command in self.scene.following(self.place):
            try:
                code = self.place.run(*command)
            except TimeoutError as error:
                yield f"{' '.join(command[:2])}: {error}"
                return
            if code:
                yield f"{' '.join(command[:2])}: {code}: {self.place.said()}"
                return
        yield from self.scene.unfinished(self.place, self.after)

    def _lost(self) -> Iterator[str]:
        yield from self.scene.first(self.place)
        yield from self.scene.wrong(self.place, self.before, self.after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments, over all scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--every", type=int, default=1, help="of the changes to die before; 0: none"
    )
    parser.add_argument("--scenes", default="", help="names, separated by ';'; default: all")
    parser.add_argument(
        "--no-processes", action="store_true", help="leave out the other situations"
    )
    parser.add_argument("--log", type=Path, help="a file for a line of JSON for each death")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="pinmem-torture-"))
    root.chmod(0o755)  # some processes run as another user
    bad = 0
    try:
        children.warm_up()
        scenes = [s for s in SCENES if not options.scenes or s.name in options.scenes.split(";")]
        print("| command | killed | kills | lost | next command failed |")
        print("|---|---|---:|---:|---:|", flush=True)
        for number, scene in enumerate(scenes):
            killer = Killer(scene, root / f"scene{number}", options.log)
            kills = _share(options.kills, scene)
            bad += _report(killer.at_random(kills, random.Random(f"{options.seed} {scene.name}")))
            for exchange in (True, False) if options.every else ():
                bad += _report(killer.before_changes(exchange=exchange, every=options.every))
        if not options.no_processes:
            print("\n| situation | outcome |\n|---|---|", flush=True)
            for name, situation in processes.SITUATIONS.items():
                complaints = processes.outcome(situation, root / name.replace(" ", "-"))
                bad += len(complaints)
                print(f"| {name} | {'; '.join(complaints) or 'as it should be'} |", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(bool(bad))


def _share(kills: int, scene: Scene) -> int:
    """Return how many of all kills fall to a scene, whichever scenes are chosen."""
    number = SCENES.index(scene)
    return kills * (number + 1) // len(SCENES) - kills * number // len(SCENES)


def _report(row: Row) -> int:
    counts = f"{row.kills} | {len(row.lost)} | {len(row.stuck)}"
    print(f"| `{row.name}` | {row.moments} | {counts} |", flush=True)
    for complaint in [*row.lost, *row.stuck]:
        print(f"{row.name}: {complaint}", file=sys.stderr, flush=True)
    return len(row.lost) + len(row.stuck)


if __name__ == "__main__":
    main()
