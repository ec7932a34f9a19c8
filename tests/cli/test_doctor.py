"""`pinmem doctor` in the situations that bug reports come from."""

import errno
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Result
from hints import ROOT
from http_server import Mood, serving
from packaging.requirements import Requirement

from pinmem_core import doctor
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.doctor import contents, libraries, machine, network
from pinmem_core.errors import MachineError
from pinmem_core.locks import hold_lock

LIGHT = {name: doctor.CHECKS[name] for name in ("system", "folders", "datasets", "runs", "locks")}
"""Checks that import no large library."""


def problems(section: doctor.Section) -> list[str]:
    return [finding.message for finding in section.findings]


@pytest.fixture
def toy(home) -> Path:
    assert Result("data", "prepare", "toy").code == 0
    return home / "datasets" / "toy"


def test_the_libraries_and_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(libraries.LIBRARIES) == {Requirement(text).name for text in project["dependencies"]}
    extras = {
        extra: {Requirement(text).name for text in texts}
        for extra, texts in project["optional-dependencies"].items()
        if extra not in ("docs", "test")
    }
    assert {extra: set(names) for extra, (_, names) in libraries.EXTRAS.items()} == extras


@pytest.mark.slow
def test_all_checks_give_one_report_for_people_and_one_for_scripts(toy):
    shown, data = Result("doctor"), Result("doctor", "--json")
    assert shown.code == data.code == (4 if data.json["findings"] else 0)
    assert set(data.json) == {"schema_version", *doctor.CHECKS, "findings"}
    version = importlib.metadata.version("torch")  # torch.__version__ may name a build, too
    assert data.json["libraries"]["torch"] == version
    assert data.json["extras"]["video"]["state"] in ("installed", "missing", "broken")
    assert data.json["datasets"]["toy"]["state"] == "ready"
    for word in (f"torch {version}", "backbones (backbones of timm)", "cores"):
        assert word in " ".join(shown.out.split())


def test_a_dataset_that_lacks_files_is_a_finding(monkeypatch, toy):
    monkeypatch.setattr(doctor, "CHECKS", {"datasets": contents.check_datasets})
    shown = Result("doctor")
    assert shown.code == 0 and "toy: state ready, samples 20" in shown.out
    assert "nothing wrong" in shown.out and "next: pinmem runs" in shown.err
    sample = PreparedDataset.open("toy").samples[3]
    sample.label.unlink()
    sample.image.unlink()
    section = contents.check_datasets()
    assert section.values["toy"]["state"] == "files missing"
    text = f"the dataset 'toy' lacks 2 files of 20 samples, e.g. {sample.image}."
    assert problems(section) == [text]


def test_a_held_lock_and_a_stale_one_are_listed_and_no_finding(home):
    stale = home / "datasets" / ".toy.lock"
    stale.parent.mkdir(parents=True)
    stale.touch()
    held = home / "runs" / "first" / ".lock"
    with hold_lock(held, "the run"):
        section = contents.check_locks()
    assert section.values == {str(stale): "stale", str(held): "held"} and not section.findings


@pytest.mark.skipif(sys.platform != "linux", reason="/sys is read-only on Linux")
def test_a_folder_that_cannot_be_written_is_a_finding(monkeypatch, tmp_path):
    monkeypatch.setenv("PINMEM_HOME", "/sys/pinmem")
    monkeypatch.setattr(doctor, "CHECKS", {"folders": machine.check_folders})
    shown = Result("doctor")
    assert shown.code == 4
    assert "finding: the folder of home, /sys/pinmem, cannot be written: " in shown.out
    assert "set PINMEM_HOME to another folder" in shown.out
    (tmp_path / "file").touch()
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "file" / "home"))
    assert "Not a directory" in problems(machine.check_folders())[0]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Make space"), (errno.EACCES, "Check who may write there")],
)
def test_the_remedy_for_a_folder_fits_what_keeps_files_out(monkeypatch, number, remedy):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (first, *_) = machine.check_folders().findings
    assert f"{os.strerror(number)}." in first.message
    assert first.fix == f"{remedy}, or set PINMEM_HOME to another folder."


def test_checks_create_no_folder(home):
    diagnosis = doctor.diagnose(LIGHT)
    assert diagnosis.sections["folders"]["home"]["writable"] and not home.exists()


def test_a_full_disk_is_a_finding(monkeypatch):
    full = SimpleNamespace(total=10**10, used=10**10, free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    (first, *_) = problems(machine.check_folders())
    assert first.startswith("only 5 MB are free on the disk of ")


def test_a_broken_extra_is_a_finding_and_a_missing_one_is_not(monkeypatch, tmp_path):
    (tmp_path / "broken_av.py").write_text("raise OSError('libavcodec.so.61: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        libraries, "EXTRAS", {"video": ("videos", ["broken-av"]), "wandb": ("logs", ["not-there"])}
    )
    section = libraries.check_extras()
    assert [extra["state"] for extra in section.values.values()] == ["broken", "missing"]
    assert problems(section) == [
        "broken-av, of the extra 'video', cannot be imported: libavcodec.so.61: no such file."
    ]
    monkeypatch.setattr(doctor, "CHECKS", {"extras": libraries.check_extras})
    shown = Result("doctor")
    assert shown.code == 4 and "wandb (logs): missing, pip install 'pinmem[wandb]'" in shown.out


def test_an_old_library_is_a_finding(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.1")
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _: ["numpy>=2", "scipy>=1; extra=='x'"]
    )
    monkeypatch.setattr(libraries, "LIBRARIES", ["numpy"])
    (finding,) = libraries.check_libraries().findings
    assert finding.message == "pinmem needs numpy>=2, not 0.1."
    assert finding.fix == "pip install 'numpy>=2'"


def test_a_missing_torch_is_one_finding_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(libraries, "LIBRARIES", ["torch"])
    checks = {"libraries": libraries.check_libraries, "devices": machine.check_devices}
    diagnosis = doctor.diagnose(checks)
    assert [finding.message for finding in diagnosis.findings] == ["torch is missing."]


@pytest.fixture
def nvidia(monkeypatch, tmp_path):
    """A machine whose driver answers, whatever torch thinks of it."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 470.10\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.skipif(os.name == "nt", reason="the driver is a shell script")
@pytest.mark.parametrize(
    ("cuda", "message"),
    [(None, " has no CUDA."), ("13.0", "CUDA 13.0 cannot use the GPU with driver 470.10.")],
)
def test_a_driver_that_torch_does_not_fit_is_a_finding(monkeypatch, nvidia, cuda, message):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    section = machine.check_devices()
    assert section.values["nvidia_driver"] == "470.10"
    assert problems(section)[0].endswith(message)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.check_devices().findings


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU works")
def test_a_gpu_that_cannot_compute_is_a_finding(monkeypatch):
    old = SimpleNamespace(name="Tesla K80", major=3, minor=7, total_memory=12 * 10**9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: old)
    section = machine.check_devices()
    assert section.values["gpus"][0]["compute_capability"] == "3.7"
    assert "cannot compute on GPU 0 (compute capability 3.7): " in problems(section)[0]


def test_a_damaged_dataset_card_or_run_is_a_finding(home):
    files = {"datasets/toy/dataset.json": "{", "datasets/mine/card.yaml": "name: ["}
    for name, text in {**files, "runs/first/config.json": "{"}.items():
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text(text)
    diagnosis = doctor.diagnose({"datasets": contents.check_datasets, "runs": contents.check_runs})
    mine, damaged, lost = (finding.message for finding in diagnosis.findings)
    assert "card.yaml" in mine and "is damaged: " in damaged and lost.endswith("first is damaged.")
    assert diagnosis.sections["runs"] == {"damaged": 1}


def test_without_network_each_site_that_cannot_be_used_is_a_finding():
    with socket.socket() as closed, serving() as site:
        closed.bind(("127.0.0.1", 0))
        site.always |= {"/busy": Mood(status=503), "/a.zip": Mood(status=403)}
        address = f"http://127.0.0.1:{site.server_port}"
        section = doctor.check_network(
            {
                "login": f"{address}/a.zip",
                "moved": f"{address}/b.zip",
                "busy": f"{address}/busy",
                "closed": f"http://user:hunter2@127.0.0.1:{closed.getsockname()[1]}/",
            }
        )
    assert section.values == {
        "login": "ok",
        "moved": "HTTP status 404",
        "busy": "HTTP status 503",
        "closed": "no connection",
    }
    assert len(section.findings) == 3 and "127.0.0.1" not in str(section)


def test_the_sites_are_asked_on_request_only(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(network, "network_sites", lambda: {"gtav": "http://127.0.0.1:9/"})
    assert "network" not in Result("doctor", "--json").json
    asked = Result("doctor", "--json", "--network")
    assert asked.code == 4 and asked.json["network"] == {"gtav": "no connection"}


def test_the_sites_are_the_hub_the_weights_and_those_of_the_cards():
    sites = network.network_sites()
    assert {"the Hub", "torchvision's weights", "gtav", "camvid"} <= sites.keys()
    assert all(address.startswith("http") for address in sites.values())


SECRETS = {
    "HF_TOKEN": "hf_AbCdEf",
    "WANDB_API_KEY": "0123456789abcdef",
    "CITYSCAPES_PASSWORD": "open-sesame",
    "CITYSCAPES_USERNAME": "ada@example.org",
    "HTTPS_PROXY": "http://ada:hunter2@proxy.corp.example:3128",
    "HF_ENDPOINT": "https://mirror.corp.example",
    "MLFLOW_TRACKING_URI": "https://ada:hunter2@logs.corp.example",
    "PINMEM_TOKEN": "s3cr3t-value",
}


def test_no_secret_of_the_environment_is_shown(monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "PINMEM_BASE", "https://ada:hunter2@weights.example/a.safetensors?sig=s3cr3t"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "ada" / "pinmem"))
    monkeypatch.setattr(network, "network_sites", lambda: {"gtav": "https://gtav.example.invalid/"})
    checks = LIGHT | {"settings": contents.check_settings}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    for flags in ((), ("--json",)):
        shown = Result("doctor", "--network", *flags)
        text = shown.out + shown.err
        for secret in (*SECRETS.values(), "hunter2", "s3cr3t", "corp.example", str(tmp_path)):
            assert secret not in text
        assert "HF_TOKEN" in text and "~/pinmem" in text
    assert json.loads(shown.out)["settings"]["login to the Hub"] == "yes"


def test_names_of_user_and_machine_in_paths_are_replaced(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr("platform.node", lambda: "box7")
    assert doctor.anonymous({"/mnt/box7/ada/x": ["/adam/ada", 3]}) == {
        "/mnt/HOST/USER/x": ["/adam/USER", 3]
    }


def test_a_misspelt_variable_is_a_finding(monkeypatch):
    monkeypatch.setenv("PINMEM_HOEM", "/data")
    (finding,) = contents.check_settings().findings
    assert finding.message == "pinmem does not know the variable PINMEM_HOEM."
    assert finding.fix == "Did you mean PINMEM_HOME?"


def test_a_check_that_fails_is_a_finding_and_stops_no_other():
    def no_home() -> doctor.Section:
        raise MachineError("this user has no home folder.", "Set PINMEM_HOME to a folder.")

    diagnosis = doctor.diagnose({"a": lambda: 1 / 0, "b": no_home, "c": no_home, **LIGHT})
    first, second = diagnosis.findings
    assert first.message == "the check 'a' failed: division by zero."
    assert second.fix == "Set PINMEM_HOME to a folder."
    assert diagnosis.sections["a"] is None and diagnosis.sections["locks"] == {}
