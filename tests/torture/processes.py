"""Situations of processes: equal numbers, two homes, no locks, small disks, homes that are missing.

Each is a function of a place that yields what went wrong.
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import children
import scenes
from scenes import Place

_MB, _BLOCK = 1024 * 1024, 4096
Situation = Callable[[Place], Iterator[str]]


def outcome(situation: Situation, root: Path) -> list[str]:
    """Return what goes wrong in a situation."""
    try:
        return list(situation(Place(root)))
    except (RuntimeError, TimeoutError) as error:
        return [str(error)]


def equal_numbers(place: Place) -> Iterator[str]:
    """Three containers predict into one folder; their processes all have the number 7."""
    place.draw_camvid()
    drives = ("0006R0", "0016E5", "0001TP")
    commands = [
        ("predict", f"raw/images/{d}*", "-o", "masks", "--format", "trainid", "-q") for d in drives
    ]
    for command in commands:
        place.need(*command)
    wanted = place.tree("masks")
    shutil.rmtree(place.root / "masks")

    def be_seven() -> None:
        os.getpid = lambda: 7

    logs = [place.log.with_name(f"log{number}.txt") for number in range(3)]
    begun = [
        place.begin(*command, before=be_seven, log=log)
        for command, log in zip(commands, logs, strict=True)
    ]
    for child, log in zip(begun, logs, strict=True):
        if code := children.wait(child):
            yield f"one ended with {code}: {log.read_text()[-200:]}"
    if place.tree("masks") != wanted:
        yield "the masks are not those of one process after the other"


def two_homes(place: Place) -> Iterator[str]:
    """Two processes with homes of their own resume one run: one is refused."""
    scenes.make_stopped_run(place)
    other = place.root / "other"
    shutil.copytree(place.home, other)
    first = place.begin(*scenes.RESUME, log=place.log.with_name("first.txt"))
    lock = place.root / "run" / ".lock"
    deadline = time.monotonic() + children.PATIENCE
    while not _is_locked(lock) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(first, signal.SIGSTOP)
    code = place.run(*scenes.RESUME, environment={"PINMEM_HOME": str(other)})
    os.kill(first, signal.SIGCONT)
    if code != 5 or "another pinmem process" not in place.said():
        yield f"the second ended with {code}: {place.said()}"
    if code := children.wait(first):
        yield f"the first ended with {code}"


def _is_locked(path: Path) -> bool:
    try:
        return f":{path.stat().st_ino} " in Path("/proc/locks").read_text()
    except FileNotFoundError:
        return False


def no_locks(place: Place) -> Iterator[str]:
    """The file system has no locks: a warning, and it goes on."""

    def without() -> None:
        import fcntl

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        fcntl.flock = refuse

    place.draw_camvid()
    for command in (scenes.PREPARE, scenes.TRAIN):
        loud = (part for part in command if part != "-q")
        code = place.run(*loud, before=without)
        if code or "has no locks" not in " ".join(place.log.read_text().split()):
            yield f"{' '.join(command[:2])} ended with {code}: {place.said()}"


def small_disk(place: Place) -> Iterator[str]:
    """The disk is too small at first: exit code 5, nothing lost, and the next command goes on."""
    make, command = scenes.make_stopped_run, scenes.RESUME
    make(place)
    scenes.make_model(place)
    yield from _on_small_disk(place, "run", command, scenes.run_is_whole)
    for part, command in (("masks", scenes.PREDICT), ("packs", scenes.PACK_APART)):
        shutil.rmtree(place.root / part, ignore_errors=True)
        (place.root / part).mkdir()
        yield from _on_small_disk(place, part, command, lambda _: iter(()))


def _on_small_disk(
    place: Place, part: str, command: tuple[str, ...], lost: Callable[[Place], Iterator[str]]
) -> Iterator[str]:
    folder = place.root / part
    used = sum(_BLOCK * (2 + path.stat().st_size // _BLOCK) for path in folder.rglob("*"))
    place.keep()
    name = " ".join(command[:2])
    failed = 0
    for room in (_BLOCK, _MB // 8, _MB, 8 * _MB):
        with_disk = _small_file_system(folder, used + room)
        how = {} if with_disk else {"before": lambda room=room: _limit_files(room)}
        try:
            if with_disk:
                shutil.copytree(place.kept / part, folder, dirs_exist_ok=True)
            code = place.run(*command, **how)
            failed += code != 0
            if code not in (0, 5):
                yield f"{name} ended with {code}: {place.said()}"
            yield from (f"{name}, {room} bytes left: {complaint}" for complaint in lost(place))
            if with_disk:
                subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
            if code and (code := place.run(*command)):
                yield f"{name} does not go on: {code}: {place.said()}"
        finally:
            if with_disk:
                subprocess.run(["umount", folder], check=True)
        place.go_back()
    if not failed:
        yield f"{name} never met a full disk"


def _small_file_system(folder: Path, size: int) -> bool:
    """Mount a file system of `size` bytes; return False where this process may not."""
    call = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(call, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def no_home(place: Place) -> Iterator[str]:
    """No HOME, no PINMEM_HOME, and a user that the system does not know."""
    place.draw_camvid()
    nothing = dict.fromkeys(("PINMEM_HOME", "HOME", "XDG_DATA_HOME"))
    image = next((place.raw / "images").iterdir())
    for command in (("predict", str(image), "-o", "mask.png"), ("data", "list"), scenes.PREPARE):
        code = place.run(*command, environment=nothing, before=_be_unknown)
        if code not in (0, 5) or (command[0] == "predict" and code):
            yield f"{' '.join(command[:2])} ended with {code}: {place.said()}"
    if (place.root / "~").exists():
        yield "a folder called '~' was made"


def _be_unknown() -> None:
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    pwd.getpwuid = unknown


def read_only_home(place: Place) -> Iterator[str]:
    """The home can be read only: what writes elsewhere works, what writes there says so."""
    scenes.make_prepared(place)
    with _read_only(place.home):
        for command, right in (
            (("data", "verify", "camvid"), 0),
            (("data", "info", "camvid"), 0),
            (scenes.TRAIN, 0),
            (scenes.PACK, 0),
            (scenes.AGAIN, 5),
        ):
            code = place.run(*command)
            if code != right:
                yield f"{' '.join(command[:2])} ended with {code}: {place.said()}"


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Have a folder that cannot be written to, by the superuser neither."""
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    else:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)
        else:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)


SITUATIONS: dict[str, Situation] = {
    "equal process numbers": equal_numbers,
    "two homes": two_homes,
    "no locks": no_locks,
    "small disk": small_disk,
    "no home": no_home,
    "read-only home": read_only_home,
}
