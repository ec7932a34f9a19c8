"""Completion as the shells ask for it, and output that goes into a pipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pinmem_cli.app import app


@pytest.fixture
def pinmem(tmp_path, home, monkeypatch) -> Path:
    """A program `pinmem` on PATH that never imports torch, a run, and a dataset of the user."""
    program = tmp_path / "bin" / "pinmem"
    program.parent.mkdir()
    code = (
        "from pinmem_cli.app import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    )
    program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("runs/first/config.json", "datasets/mycity/card.yaml"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("{}")
    return program


def complete(line: str) -> list[str]:
    words = line.split(" ")
    env = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    shown = CliRunner().invoke(
        app, [], prog_name="pinmem", env={"_PINMEM_COMPLETE": "complete_bash", **env}
    )
    return shown.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("pinmem tr", ["train"]),
        ("pinmem train --method ml", ["mldg"]),
        ("pinmem train --sources gtav,my", ["gtav,mycity"]),
        ("pinmem train --recipe cam", ["camvid", "camvid-dinov2"]),
        ("pinmem train --resume f", ["first"]),
        ("pinmem train --logger tensorboard,w", ["tensorboard,wandb"]),
        ("pinmem train --device c", ["cpu", "cuda"]),
        ("pinmem train --backbones mob", ["mobilenet_v2"]),
        ("pinmem train --set optim.sch", ["optim.schedule="]),
        ("pinmem train --set model.decoder=li", ["model.decoder=linear"]),
        ("pinmem train --allow", ["--allow-seen-targets"]),
        ("pinmem predict --format ov", ["overlay"]),
        ("pinmem predict --model st", ["starter"]),
        ("pinmem eval fi", ["first"]),
        ("pinmem eval compare fi", ["first"]),
        ("pinmem eval first --classes idd-l", ["idd-level1"]),
        ("pinmem data preview my", ["mycity"]),
        ("pinmem export onnx fi", ["first"]),
    ],
)
def test_each_name_is_completed(pinmem, line, names):
    assert complete(line) == names


SCRIPTS = {
    "bash": """source <(_PINMEM_COMPLETE=source_bash pinmem)
COMP_WORDS=(pinmem train --method m); COMP_CWORD=3; _pinmem_completion pinmem
echo "${COMPREPLY[@]}" """,
    "zsh": """compdef() { }; _arguments() { print -r -- "$2$1" }
eval "$(_PINMEM_COMPLETE=source_zsh pinmem)"
words=(pinmem train --method m); CURRENT=4; _pinmem_completion""",
    "fish": """_PINMEM_COMPLETE=source_fish pinmem | source
complete -C 'pinmem train --method m'""",
    "pwsh": """iex ((pinmem | Out-String)); $env:_PINMEM_COMPLETE = ''
(TabExpansion2 'pinmem train --method m' 24).CompletionMatches.CompletionText""",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_real_shell_completes_without_torch(pinmem, monkeypatch, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    if shell == "pwsh":
        monkeypatch.setenv("_PINMEM_COMPLETE", "source_pwsh")
    options = {"zsh": ["-f"], "bash": ["--norc"]}.get(shell, [])
    done = subprocess.run(
        [shell, *options, "-c", SCRIPTS[shell]], capture_output=True, text=True, timeout=120
    )
    assert "mixstyle" in done.stdout and "mldg" in done.stdout, done.stderr
    assert "pinmem" not in done.stdout and not done.stderr


@pytest.mark.slow
def test_powershell_is_answered_as_its_script_asks(pinmem):
    env = {
        "_PINMEM_COMPLETE": "complete_powershell",
        "_TYPER_COMPLETE_ARGS": "pinmem train --method ml",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "ml",
    }
    done = subprocess.run([pinmem], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.stdout.split(":::")[0].strip() == "mldg" and not done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "data list", "data info gtav", "train --list"])
def test_a_reader_that_stops_early_sees_no_traceback_and_no_escape_codes(command):
    code = "from pinmem_cli.app import main; main()"
    run = subprocess.Popen(
        [sys.executable, "-c", code, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"},
    )
    run.stdout.close()  # as `head` does
    said = run.stderr.read().decode()
    assert run.wait() in (0, 1) and "Traceback" not in said and "error" not in said.lower()
    assert "\x1b" not in said


@pytest.mark.parametrize("command", ["--help", "train --help", "data list", "runs"])
def test_output_in_a_pipe_has_no_escape_codes(command, monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    shown = CliRunner().invoke(app, command.split())
    assert shown.exit_code == 0 and "\x1b" not in shown.output


def test_help_groups_commands_and_options():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).stdout
    titles = [line.split()[1:-1] for line in shown.splitlines() if line.startswith("╭")]
    panels = {" ".join(word for word in title if word.isalpha()) for title in titles}
    assert panels == {"Options", "Data", "Train and score", "Use a model", "This machine"}
