"""What reaches a terminal, a file or a pipe, whatever names and answers hold."""

import errno
import json
import os
import subprocess
import sys

import pytest
from conftest import Result
from rich.console import Console

import pinmem_cli.app
from pinmem_cli.output import Output, exit_code, fields, say, show_error, table, unforeseen
from pinmem_cli.progress import EventView
from pinmem_cli.streams import printable
from pinmem_core.errors import DataError
from pinmem_core.events import Metrics, Notice, Progress, Speed

HOSTILE = "a\x1b[2J\x07b\nc\rd\x9b31me\u202ef\u2028g\udce9h\tx:car:y[red]z"
SHOWN = r"a\x1b[2J\x07b\nc\rd\x9b31me\u202ef\u2028g\xe9h\tx:car:y[red]z"


def run(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command in which `pinmem` is this one."""
    line = f'pinmem() {{ "{sys.executable}" -m pinmem_cli "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, env={**os.environ, **environment}
    )


def test_printable_text_is_one_line_that_no_terminal_obeys():
    assert printable(HOSTILE) == SHOWN
    assert printable("Zürich 日本 ✓ e\u0301") == "Zürich 日本 ✓ e\u0301"


def test_every_way_to_a_terminal_escapes_what_comes_from_outside(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = table("name", "figure", text=["figure"])
    rows.add_row(HOSTILE, HOSTILE)
    Output().result({}, HOSTILE, rows, fields([(HOSTILE, [HOSTILE, "second line"])]))
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 5 and "\x1b" not in out
    assert len(out.splitlines()) == 5  # the text, the table with its head, two fields' lines

    Output().note(HOSTILE)
    Output().next_step(HOSTILE)
    say(HOSTILE)
    show_error(DataError(HOSTILE, f"{HOSTILE[:3]}\nsecond step"))
    with Output().listening() as tell:
        tell(Notice(HOSTILE, warning=True))
        tell(Metrics(1, {"total": 1.0, "val/\x1b]0;": 0.5}))
    err = capsys.readouterr().err
    assert err.count(SHOWN) == 5 and "\x1b" not in err
    assert "second step" in err.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--{HOSTILE}"],
        ["train", f"--{HOSTILE}"],
        ["train", f"-{HOSTILE}"],
        ["train", "--seed", HOSTILE],
        [HOSTILE],
        ["data", HOSTILE],
        ["data", "info", "camvid", HOSTILE],
        ["eval", "run", "--protocol", HOSTILE],
        ["eval", "run", f"--https://me:secret@a.org/{HOSTILE}"],
    ],
)
def test_errors_of_usage_escape_the_arguments_that_they_repeat(arguments):
    result = Result(*arguments)
    shown = result.out + result.err
    assert result.code in (2, 3) and shown
    assert not set("\x1b\x07\x9b\r\u202e\u2028") & set(shown)
    assert "secret" not in shown


def test_bars_escape_the_names_of_tasks():
    console = Console(force_terminal=True, width=80)
    with console.capture() as captured, EventView(console) as view:
        view.show(Progress("checking \x1b]0;owned\x07.zip", 1, 2))
    assert "\x1b]0" not in captured.get() and r"\x1b]0;owned" in captured.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_show_how_much_is_done_and_left_at_every_width(width):
    console = Console(force_terminal=True, width=width, no_color=True)
    with console.capture() as captured, EventView(console) as view:
        view.show(Speed(3.1, 512_000_000))
        for done in (1_000_000_000, 1_200_000_000):
            view.show(Progress(f"checking {'long_name_' * 6}.zip", done, 11_592_327_197, "bytes"))
            view.show(Progress("training", 300, 1000))
            view.show(Metrics(300, {"total": 1.2, "val/camvid:0001TP@val": 0.5}))
    shown = captured.get()
    assert "1.2 GB/11.6 GB" in shown and "300/1000" in shown
    assert shown.count("-:--:--") + shown.count("0:00:0") >= 2


def test_a_validation_is_one_line_without_each_class(capsys):
    with Output().listening() as tell:
        tell(Metrics(2, {"val/camvid@val": 0.5, "iou/camvid@val/road": 0.75}))
    assert capsys.readouterr().err == "iteration 2  val/camvid@val 0.500\n"


def test_tables_in_a_pipe_have_no_trailing_blanks(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    Output().result({}, fields([("a", "short"), ("b", "long " * 40)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a  short" and all(line == line.rstrip() for line in lines)


def test_json_is_json_whatever_the_figures_are(capsys):
    Output(as_json=True).result({"a": float("nan"), "b": [float("inf"), (1.5, HOSTILE)]})
    text = capsys.readouterr().out
    assert text.isascii()
    answer = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert answer == {"schema_version": 1, "a": None, "b": [None, [1.5, HOSTILE]]}


@pytest.mark.parametrize(
    "encoding",
    [
        "ascii",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp1252", "latin-1:strict")),
    ],
)
def test_an_encoding_that_lacks_a_character_ends_no_command(encoding):
    done = run("pinmem data info kitti && pinmem data prepare 日本✓", PYTHONIOENCODING=encoding)
    assert done.returncode == 2 and b"KITTI" in done.stdout
    assert rb"\u65e5\u672c\u2713" in done.stderr and b"UnicodeEncodeError" not in done.stderr


def test_closed_streams_end_no_command_and_reach_no_file(tmp_path):
    done = run("pinmem data list --json <&- >&- 2>&-")
    assert done.returncode == 0 and done.stdout == done.stderr == b""
    probe = (
        "import os, sys; from pinmem_cli.streams import repair_streams; repair_streams()\n"
        f"file = open({str(tmp_path / 'mask.png')!r}, 'wb'); os.write(1, b'x'); os.write(2, b'x')\n"
        "assert sys.stdin.read() == ''; print('y'); print('y', file=sys.stderr)\n"
    )
    done = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, probe])
    assert done.returncode == 0 and (tmp_path / "mask.png").read_bytes() == b""


def test_a_card_that_needs_an_account_asks_nobody_where_stdin_is_closed(tmp_path):
    done = run("pinmem data download cityscapes --accept-terms <&-", HOME=str(tmp_path))
    assert done.returncode == 2 and b"accounts only" in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.ENOENT, 3, "Check the path"),
        (errno.EISDIR, 3, "Check the path"),
        (errno.ENOSPC, 5, "make room"),
        (errno.EDQUOT, 5, "make room"),
        (errno.EACCES, 5, "Check who may"),
        (errno.EIO, 5, "--debug"),
    ],
)
def test_what_the_system_refuses_is_told_by_its_cause(number, code, said):
    error = unforeseen(OSError(number, os.strerror(number), "/some/file"))
    assert exit_code(error) == code and said in (error.hint or "")
    assert error.message == f"/some/file: {os.strerror(number)}."
    assert ("disk" in f"{error.message} {error.hint}") == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("Importing the numpy C-extensions failed.\nx.so: failed to map segment from"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["Python", "loader", "numpy", "torch", "system"],
)
def test_want_of_memory_is_told(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(pinmem_cli.app, "app", fail)
    monkeypatch.setattr(sys, "argv", ["pinmem"])
    with pytest.raises(SystemExit) as stopped:
        pinmem_cli.app.main()
    assert stopped.value.code == 5 and "not enough memory" in capsys.readouterr().err
