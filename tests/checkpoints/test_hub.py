"""The Hub: what is sent comes back the same, and whatever goes wrong ends in a sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from hub_server import TOKEN, Hub, Repo, serving_hub
from huggingface_hub import constants
from markupsafe import escape

import pinmem_core
from pinmem_core.checkpoints.checkpoint import WEIGHTS
from pinmem_core.checkpoints.hub import HubName, checkpoint_of, run_folder
from pinmem_core.config import ModelConfig
from pinmem_core.errors import CheckpointError, ConfigError, DataError, MachineError
from pinmem_core.evaluation import TrainedOn
from pinmem_core.export.push import plan_upload, upload
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint

NAME = "ada/streets"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving_hub() as hub:
        hub.answer(monkeypatch, tmp_path)
        yield hub


OWN = LabelSpace(
    name="orchard", classes={"grass": (9, 99, 9), "trunk": (99, 9, 9), "sky": (9, 9, 99)}
)


def network(space: LabelSpace = CITYSCAPES) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(ModelConfig(backbone="tiny", feature_dim=16, label_space=space)).eval()


@pytest.fixture
def run(tmp_path):
    training = {"method": "pinmem", "sources": ["toy:red", "toy:blue"], "targets": ["toy:blue"]}
    save_checkpoint(network(), tmp_path / "run" / "checkpoint", {"training": training})
    return tmp_path / "run"


def send(run, name=NAME, **options):
    return upload(plan_upload(str(run), name, **options))


def image():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_what_is_sent_comes_back_to_the_last_bit(hub: Hub, run):
    commit = send(run)
    assert commit.startswith(f"{hub.url}/{NAME}/commit/")
    assert {*hub.files(NAME)} == {".gitattributes", "model.safetensors", "config.json", "README.md"}
    ours, theirs = network(), Segmenter.from_pretrained(NAME)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert not theirs.training and theirs.about["training"]["method"] == "pinmem"
    here, there = (pinmem_core.load(name, device="cpu") for name in (str(run), NAME))
    assert np.array_equal(here.predict(image()), there.predict(image()))
    assert torch.equal(here.segmenter.memory.slots, there.segmenter.memory.slots)
    assert NAME in hub.files(NAME)["README.md"].decode()


def test_a_model_with_classes_of_its_own_comes_back_with_them(hub: Hub, tmp_path):
    save_checkpoint(network(OWN), tmp_path / "own", {})
    send(tmp_path / "own")
    here, there = (pinmem_core.load(name, device="cpu") for name in (str(tmp_path / "own"), NAME))
    assert there.segmenter.label_space == OWN
    assert np.array_equal(here.predict(image()), there.predict(image()))
    assert there.segmenter.memory.slots.shape == (3, 16)
    assert "grass" in hub.files(NAME)["README.md"].decode()


def test_a_branch_is_made_and_fetched_by_name(hub, run, tmp_path):
    send(run)
    other = network()
    other.memory.slots.mul_(-1)
    save_checkpoint(other, tmp_path / "other", {})
    send(tmp_path / "other", revision="v2")
    send(tmp_path / "other", f"{NAME}@v2")  # there is one now
    assert torch.equal(Segmenter.from_pretrained(f"{NAME}@v2").memory.slots, other.memory.slots)
    assert torch.equal(Segmenter.from_pretrained(NAME).memory.slots, network().memory.slots)
    by_option = Segmenter.from_pretrained(NAME, revision="v2")
    assert torch.equal(by_option.memory.slots, other.memory.slots)
    commit = hub.repos[NAME].branches["v2"]
    assert checkpoint_of(f"{NAME}@{commit}") == checkpoint_of(f"{NAME}@v2")


def test_the_mixin_saves_and_pushes_what_loads_strictly(hub, tmp_path):
    ours = network()
    ours.save_pretrained(tmp_path / "saved")
    loaded = Segmenter.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(torch.ones(1, 3, 32, 32)), ours(torch.ones(1, 3, 32, 32)))
    ours.push_to_hub(NAME)
    assert hub.files(NAME)["model.safetensors"] == (tmp_path / "saved" / WEIGHTS).read_bytes()
    state = hub.files(NAME)
    state["config.json"] = state["config.json"].replace(b'"feature_dim": 16', b'"feature_dim": 24')
    with pytest.raises(CheckpointError, match="shape"):
        Segmenter.from_pretrained(NAME, force_download=True)


def test_saving_again_keeps_what_was_known_and_a_card_of_ones_own(run, tmp_path):
    loaded = Segmenter.from_pretrained(run)
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine, too")
    loaded.save_pretrained(folder)
    assert load_checkpoint(folder)[1] == load_checkpoint(run / "checkpoint")[1]
    assert (folder / "README.md").read_text() == "mine" and (folder / "notes.txt").exists()


def test_private_is_never_sent_to_a_public_place(hub, run):
    send(run, private=True)
    assert hub.repos[NAME].private
    hub.repos[NAME].private = False
    commits = len(hub.repos[NAME].commits)
    with pytest.raises(ConfigError, match="is public; nothing was sent"):
        send(run, private=True)
    assert len(hub.repos[NAME].commits) == commits


def test_a_damaged_checkpoint_is_not_sent(hub, run):
    (run / "checkpoint" / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        send(run)
    assert not hub.log


def test_a_card_of_ones_own_is_sent_as_it_is(hub, run):
    (run / "checkpoint" / "README.md").write_text("# mine")
    send(run)
    assert hub.files(NAME)["README.md"] == b"# mine"
    (run / "checkpoint" / "README.md").write_text("---\nbroken: [\n---\n")
    with pytest.raises(DataError, match=r"metadata of the README.md; nothing was sent"):
        send(run)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("ada/unknown", DataError, "neither a folder nor a run nor a model"),
        (f"{NAME}@v9", DataError, "has no revision 'v9'"),
        ("ada/gated", DataError, "is gated"),
        ("no/such/folder", DataError, "there is no run"),
        ("ada/..", DataError, "there is no run"),
        (f"{NAME}@a/../../../../x", DataError, "there is no run"),
        ("/ada/streets", DataError, "there is no run"),
    ],
)
def test_what_cannot_be_fetched_ends_in_a_sentence(hub, run, name, error, said):
    send(run)
    hub.repos["ada/gated"] = Repo(gated=True)
    hub.repos["ada/gated"].commit("main", {"config.json": b"{}"})
    with pytest.raises(error, match=said) as raised:
        checkpoint_of(name)
    message = f"{raised.value.message} {raised.value.hint}"
    assert "\n" not in message and TOKEN not in message and raised.value.hint


def test_the_hub_is_asked_for_names_like_its_own_only(hub):
    for name in ("runs/a/b", "./a", "~/a", "a", "a/b c", "-/a", "a/b@", "a--b/c", "a/b.git"):
        with pytest.raises(DataError):
            checkpoint_of(name)
    assert not hub.log


@pytest.mark.parametrize(
    ("status", "said"), [(401, "denies access"), (403, "denies access"), (500, "status 500")]
)
def test_a_hub_that_refuses_is_told(hub, run, status, said):
    hub.status = status
    with pytest.raises(MachineError, match=f"cannot push to {NAME}: .*{said}") as raised:
        send(run)
    assert TOKEN not in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize("token", ["hf_gehe\u00efm", "hf_a hidden", "hf_a\x7fhidden"])
def test_a_token_that_cannot_be_one_is_told_but_not_shown(hub, run, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        MachineError, match=f"cannot push to {NAME}: the token of the login"
    ) as raised:
        send(run)
    assert token not in f"{raised.value.message} {raised.value.hint}" and not hub.log


@pytest.mark.parametrize("files", [{}, {"pytorch_model.bin": b"x"}, {"README.md": b"# x"}])
def test_a_repository_without_a_model_of_pinmem_is_told(hub, files):
    hub.repos["ada/other"] = Repo()
    hub.repos["ada/other"].commit("main", files)
    with pytest.raises(DataError, match=r"ada/other on the Hub is not a model of pinmem") as raised:
        checkpoint_of("ada/other")
    assert "cache" not in raised.value.message


def test_without_a_network_the_cache_is_enough(hub, run, monkeypatch):
    send(run)
    cached = checkpoint_of(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.log)
    assert checkpoint_of(NAME) == cached and len(hub.log) == asked
    with pytest.raises(MachineError, match=r"ada/other.*HF_HUB_OFFLINE is set"):
        checkpoint_of("ada/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.server_close()
    hub.shutdown()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert checkpoint_of(NAME) == cached
    with pytest.raises(MachineError, match=r"ada/other.*cannot be reached"):
        checkpoint_of("ada/other")


def test_folders_come_before_the_hub(hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(network(), tmp_path / "ada" / "streets", {})
    assert checkpoint_of(NAME) == Path(NAME) and not hub.log


def test_reports_on_a_model_of_the_hub_are_kept_outside_of_its_cache(hub, run, home):
    send(run)
    commit = hub.repos[NAME].branches["main"]
    checkpoint = checkpoint_of(NAME)
    assert HubName.of_cached(checkpoint) == HubName(NAME, commit[:7])
    assert run_folder(checkpoint) == home / "hub" / f"ada--streets@{commit[:7]}"
    assert run_folder(run / "checkpoint") == run


def report_on(checkpoint: Path, path: str) -> None:
    """Write a report of `pinmem eval` on a checkpoint that was named by `path`."""
    folder = run_folder(checkpoint) / "eval" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()
    target = {"seen": False, "split": "val", "images": 2, "miou": 0.5, "iou": {}}
    report = {
        "checkpoint": {"path": path, "weights_sha256": digest},
        "protocol": {"name": "fast", "description": "x", "fields": {}},
        "precision": "float32",
        "classes": ["model"],
        "targets": {"toy:blue": target},
    }
    (folder / "report.json").write_text(json.dumps(report))
    head = "<p>The model: a checkpoint of classes.</p>"
    page = f"{head}<dl><dt>checkpoint</dt><dd>{escape(path)}</dd></dl>"
    (folder / "report.html").write_text(page)


@pytest.mark.parametrize("path", ["checkpoint", "model", ".", "/home/ada's/run", "/a&b/<i>", "é"])
def test_only_the_place_of_the_checkpoint_is_struck_out_of_a_report(hub, run, path):
    report_on(run / "checkpoint", path)
    before = json.loads((run / "eval" / "one" / "report.json").read_text())
    send(run)
    sent = hub.files(NAME)
    before["checkpoint"]["path"] = NAME
    assert json.loads(sent["report.json"]) == before
    assert sent["report.html"].decode() == (
        f"<p>The model: a checkpoint of classes.</p><dl><dt>checkpoint</dt><dd>{NAME}</dd></dl>"
    )


def test_a_page_of_another_report_is_not_sent(hub, run):
    report_on(run / "checkpoint", "/home/ada/run")
    page = run / "eval" / "one" / "report.html"
    page.write_text(page.read_text().replace("/home/ada/run", "/home/bob/run"))
    notices = []
    plan = plan_upload(str(run), NAME, on_event=notices.append)
    assert "report.html" not in plan.files and "report.html is left out" in notices[0].message


def test_a_report_on_other_weights_does_not_stay_in_the_repository(hub, run, tmp_path):
    report_on(run / "checkpoint", "x")
    send(run)
    assert {"report.json", "report.html"} <= {*hub.files(NAME)}
    shutil.rmtree(run / "eval")
    send(run)  # the same weights
    assert {"report.json", "report.html"} <= {*hub.files(NAME)}
    other = network()
    other.memory.slots.mul_(-1)
    save_checkpoint(other, tmp_path / "other", {})
    notices = []
    upload(plan_upload(str(tmp_path / "other"), NAME), on_event=notices.append)
    assert not {"report.json", "report.html"} & {*hub.files(NAME)}
    assert [notice.message.split()[0] for notice in notices] == ["report.json", "report.html"]
    send(run, revision="v2")
    assert {*hub.files(NAME, "v2")} == {*hub.files(NAME)}


@pytest.mark.slow
def test_evaluating_and_sending_the_report(hub, tmp_path, monkeypatch):
    """A report goes along, without this machine's paths; its page only where images are drawn."""
    assert Result("data", "prepare", "toy").code == 0
    record = TrainedOn.of_samples(["toy:red"], [["red_00"]]).as_json()
    save_checkpoint(network(), tmp_path / "run" / "checkpoint", {"trained_on": record})
    send(tmp_path / "run")
    done = Result("eval", NAME, "--targets", "toy:blue", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    report = Path(done.json["report"])
    assert "cache" not in report.parts
    assert Result("eval", str(tmp_path / "run"), "--targets", "toy:blue", "-q").code == 0
    compared = Result("eval", "compare", str(tmp_path / "run"), NAME, "--json")
    assert compared.json["targets"]["toy:blue"][1]["difference"] == 0
    send(tmp_path / "run")
    sent = hub.files(NAME)
    assert json.loads(sent["report.json"])["checkpoint"]["path"] == NAME
    assert not any(str(tmp_path).encode() in sent[f] for f in ("report.json", "report.html"))
    monkeypatch.setattr("pinmem_core.export.push.shipped_cards", dict)
    assert "report.html" not in plan_upload(str(tmp_path / "run"), NAME).files
    assert "toy:blue (unseen)" in sent["README.md"].decode()
    assert "model-index" in sent["README.md"].decode()


@pytest.mark.slow
def test_the_variables_of_huggingface_hub_hold(hub, run, tmp_path):
    """In processes of their own: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE."""
    settings = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = """
import sys, conftest
conftest.pytest_configure()
from pinmem_cli.app import main
main()
"""
    here = Path(__file__).parents[1]

    def pinmem(*arguments, **more):
        call = [sys.executable, "-c", script, *arguments]
        env = settings | {"PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        return subprocess.run(call, env=env | more, capture_output=True, text=True, cwd=tmp_path)

    pushed = pinmem("export", "push", str(run), NAME, "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert f"next: pinmem eval {NAME}" in pushed.stderr and "%|" not in pushed.stderr
    (tmp_path / "photo.ppm").write_bytes(b"P6 40 32 255\n" + bytes(40 * 32 * 3))
    predict = ("predict", "photo.ppm", "--model", NAME, "-o", "mask.png", "--device", "cpu")
    assert pinmem(*predict).returncode == 0 and (tmp_path / "mask.png").exists()
    assert (tmp_path / "hf" / "hub" / "models--ada--streets").is_dir()
    asked = len(hub.log)
    offline = pinmem(*predict, "--force", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and len(hub.log) == asked, offline.stderr
    refused = pinmem("export", "push", str(run), NAME, HF_TOKEN="hf_wrong-secret")
    assert refused.returncode == 5 and "hf auth login" in refused.stderr
    assert not any("secret" in text for text in (pushed.stderr, pushed.stdout, refused.stderr))
