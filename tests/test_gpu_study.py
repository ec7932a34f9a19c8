"""The programs for a GPU machine, with tiny sizes on the CPU, so that they stay able to run."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pinmem_core.errors import MachineError

GPU = Path(__file__).parent / "gpu"


def started(script: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(GPU / script), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PINMEM_COMMIT": "abc1234"},
    )


def study(folder: Path, *options: str) -> subprocess.Popen:
    tiny = ["--device", "cpu", "--tiny", "--seeds", "1", "--folder", str(folder)]
    return started("study.py", *tiny, *options)


def wait_until_trained(folder: Path, process: subprocess.Popen, iterations: int) -> None:
    until = time.monotonic() + 240
    while not any(
        len(journal.read_text().splitlines()) >= iterations
        for journal in (folder / "journal").glob("*.jsonl")
    ):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.1)


@pytest.mark.exhaustive
def test_the_check_runs_to_its_end(tmp_path):
    output = tmp_path / "check.json"
    reference = ["--reference", str(tmp_path)]
    tiny = ["--device", "cpu", "--tiny", "--no-compile", "--output", str(output), *reference]
    process = started("check.py", *tiny)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    rows = json.loads(output.read_text())["rows"]
    assert {row["status"] for row in rows} <= {"ok", "skipped"}
    measured = {row["section"] for row in rows if row["status"] == "ok"}
    assert measured == {"right", "fast", "fed", "evaluation", "tuning"}
    assert "| fast | naive float32 | ok |" in out


@pytest.mark.parametrize(
    ("capability", "free", "reason"),
    [((7, 5), 80, "too old to compute in bf16"), ((9, 0), 2, "has 2.0 GB free, and 48.0 GB are")],
)
def test_a_gpu_that_cannot_measure_is_refused(monkeypatch, capability, free, reason):
    monkeypatch.syspath_prepend(str(GPU))
    device = importlib.import_module("device")
    monkeypatch.setattr(device, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 10**9, 80 * 10**9))
    zeros = torch.zeros(1)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros)
    with pytest.raises(MachineError, match=reason):
        device.require("cuda", 48 * 10**9)


@pytest.mark.slow
def test_a_study_that_is_cut_off_keeps_its_results_and_goes_on(tmp_path):
    options = ["--variants", "pinmem-plus", "--iterations", "30", "--minutes", "5"]
    first = study(tmp_path, *options)
    wait_until_trained(tmp_path, first, 5)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    found = json.loads((tmp_path / "results.json").read_text())
    (run,) = found["runs"]
    assert not run["finished"] and 5 <= run["iterations"] < 30 and found["table"] is None
    assert "camvid:0001TP" in run["miou"], "a run without time to end is scored as it is"
    assert f"{run['iterations']} of 30" in out

    second = study(tmp_path, *options)
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    found = json.loads((tmp_path / "results.json").read_text())
    (ended,) = found["runs"]
    assert ended["finished"] and ended["iterations"] == 30 and ended["error"] is None
    assert ended["iterations_per_second"] > 0
    assert len(found["calls"]) == 2 and found["calls"][1]["iterations"] < 30
    assert found["meta"]["commit"] == "abc1234" and found["meta"]["device"].startswith("CPU")
    assert list(found["table"]["variants"]) == ["pinmem-plus"]
    assert "| `pinmem-plus`, seed 0 | 30 of 30 |" in out


@pytest.mark.slow
def test_a_study_on_an_absent_gpu_ends_with_one_sentence(tmp_path):
    absent = started("study.py", "--device", "cuda:63", "--folder", str(tmp_path / "study"))
    out, err = absent.communicate(timeout=120)
    assert absent.returncode == 5 and not out
    assert err.startswith("error: this machine has no device 'cuda:63'.")
    assert not (tmp_path / "study").exists()


def test_what_a_gpu_machine_needs_is_collected_and_counted(tmp_path):
    camvid, weights = tmp_path / "camvid", tmp_path / "weights.safetensors"
    for part in ("images", "labels", "other"):
        (camvid / part).mkdir(parents=True)
        (camvid / part / "0001TP_1").write_bytes(bytes(1 << 20))
    weights.write_bytes(bytes(3 << 20))
    figures = tmp_path / "figures"
    figures.write_bytes(bytes(1 << 20))
    folder = tmp_path / "out"
    options = ["-o", str(folder), "--without-wheels", "--camvid", str(camvid)]
    options += ["--weights", str(weights), "--reference", str(figures)]

    collecting = started("collect.py", *options)
    out, err = collecting.communicate(timeout=60)
    assert collecting.returncode == 0, err
    lines = {line[:32].strip(): line[32:].split() for line in out.splitlines()}
    assert lines["data"] == ["5.0", "MiB"] and lines["reference"] == ["1.0", "MiB"]
    both = float(lines["checkout"][0]) + 6
    assert float(lines["for both in one call"][0]) == pytest.approx(both, abs=0.11)
    assert {path.name for path in (folder / "data").rglob("*")} == {
        "camvid", "images", "labels", "0001TP_1", "weights.safetensors",
    }  # fmt: skip

    weights.write_bytes(bytes(60 << 20))
    collecting = started("collect.py", *options)
    out, _ = collecting.communicate(timeout=60)
    assert collecting.returncode == 1
    assert "for study.py: data alone" in out and "too much" in out
