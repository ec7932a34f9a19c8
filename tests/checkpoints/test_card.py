"""The model card tells what the checkpoint and its scores tell, and nothing of this machine."""

import hashlib
import json
import math
import re

import pytest
import yaml
from conftest import small_config
from markdown_it import MarkdownIt

from pinmem_core.checkpoints.checkpoint import write_card
from pinmem_core.checkpoints.model_card import MARK, DomainMetrics, ModelMetrics, model_card
from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.errors import DataError
from pinmem_core.export.files import evidence_of
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.training import train
from pinmem_core.training.fine_tuning import InitialModel
from pinmem_core.training.run_folder import RunFolder

CONFIG = {
    "model": {
        "backbone": "resnet50",
        "decoder": "deeplabv3plus",
        "output_stride": 16,
        "num_classes": 19,
        "feature_dim": 256,
        "memory": {"read": "gumbel"},
    },
    "training": {"method": "pinmem", "sources": ["gtav", "synthia"], "seed": 3},
    "iteration": 30463,
    "pinmem_version": "0.1.0",
}
IOU = {"road": 0.5, "train": None}
METRICS = ModelMetrics(
    "paper-eval: sliding, float32",
    (
        DomainMetrics("cityscapes", False, "val", 500, 0.40921, IOU, (0.39, 0.42)),
        DomainMetrics("bdd100k:day", False, "val", 300, 0.3, IOU, (0.2, 0.4)),
        DomainMetrics("gtav@val", True, "val", 9, 0.7, IOU, (0.6, 0.8)),
        DomainMetrics("camvid", False, "val", 9, float("nan"), IOU, (0.1, 0.2)),
        DomainMetrics("idd", None, "val", 9, 0.5, IOU, (0.4, 0.6)),
    ),
)


def parts(card: str) -> tuple[dict, str]:
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_head_is_what_the_hub_reads():
    head, _ = parts(model_card(CONFIG, METRICS, "ada/streets"))
    assert head["library_name"] == "pinmem" and head["pipeline_tag"] == "image-segmentation"
    assert head["datasets"] == ["gtav", "synthia"] and head["license"] == "other"
    results = head["model-index"][0]["results"]
    names = [result["dataset"]["name"] for result in results]
    assert names == ["cityscapes", "bdd100k:day"]  # those known to be unseen that have a score
    assert results[0]["metrics"][0] == {
        "type": "mean_iou",
        "value": 0.4092,
        "name": "mIoU, protocol paper-eval",
    }
    assert results[1]["dataset"]["type"] == "bdd100k"
    assert results[1]["dataset"]["config"] == "day"


def test_the_text_tells_what_was_done_and_found():
    _, text = parts(model_card(CONFIG, METRICS, "ada/streets"))
    assert 'pinmem_core.load("ada/streets")' in text and "--model ada/streets" in text
    assert "| method | pinmem |" in text and "| memory | 19 slots of 256 |" in text
    assert "| **mIoU** | 40.9 | 30.0 | 70.0 | - | 50.0 |" in text
    assert "| 95 % interval | 39.0 to 42.0 |" in text
    assert "| road | 50.0 |" in text and "| train | - |" in text
    assert "cityscapes (unseen)" in text and "gtav@val (seen)" in text and "idd (unknown)" in text
    assert "No scored image contains train: the quality for these" in text
    assert "Protocol paper-eval: sliding, float32" in text
    assert "- gtav: For research and educational use only" in text  # the terms of its card
    assert "- synthia: As far as known CC BY-NC-SA" in text and "Ros, Sellart" in text
    assert '"seed": 3' in text and "Pin the Memory" in text and "Intended use" in text
    assert text.rstrip().endswith(MARK)


def test_without_scores_it_claims_none():
    head, text = parts(model_card(CONFIG))
    assert "model-index" not in head and "## Scores" not in text
    assert "pinmem trained on gtav, synthia" in text


def test_a_dataset_that_is_not_known_here_is_told_so():
    config = CONFIG | {"training": {"sources": ["my-city:day"]}}
    assert "my-city: not a dataset that pinmem ships" in model_card(config)


def test_what_was_converted_is_told():
    told = {"file": "o.pth", "sha256": "ab", "method": "aggregate", "assumed": ["stride 16"]}
    config = CONFIG | {"training": None, "converted": told}
    text = model_card(config)
    assert "| converted from | o.pth |" in text and "| assumed | stride 16 |" in text
    assert "aggregate trained on unknown data" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINMEM_HOME", str(folder / "home"))
        yield train(
            small_config(iterations=1, targets=["toy:blue"], sources=["toy:red"]), folder / "run"
        ).run


def test_a_run_ends_with_a_card_of_its_scores(run):
    head, text = parts((run / "checkpoint" / "README.md").read_text())
    scores = json.loads((run / "scores.json").read_text())
    miou = scores["target"]["toy:blue"]["miou"]
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == round(miou, 4)
    assert "toy:blue (unseen)" in text and "paper-train: whole image" in text
    assert all(f"| {name} |" in text for name in CITYSCAPES.names)
    assert evidence_of(run / "checkpoint").metrics.domains[0].miou == miou


def test_a_card_of_ones_own_is_left_alone(tmp_path, small):
    save_checkpoint(small, tmp_path / "c", {})
    card = tmp_path / "c" / "README.md"
    mine = card.read_text().replace(MARK, "")
    card.write_text(mine)
    write_card(tmp_path / "c", METRICS)
    assert card.read_text() == mine


@pytest.fixture
def small():
    return Segmenter(small_config().model)


def test_a_report_on_other_weights_is_no_evidence(tmp_path, small):
    save_checkpoint(small, tmp_path / "run" / "checkpoint", {})
    other = {"checkpoint": {"weights_sha256": "0" * 64}, "targets": {}}
    folder = tmp_path / "run" / "eval" / "x"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(other))
    assert evidence_of(tmp_path / "run" / "checkpoint") is None
    (folder / "report.json").write_text("{")
    assert evidence_of(tmp_path / "run" / "checkpoint") is None


def _changed(report: dict, *keys: str, value: object) -> dict:
    report = json.loads(json.dumps(report))
    inner = report
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return report


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["checkpoint"], []),
        (["protocol"], "photo"),
        (["targets"], [1]),
        (["targets", "a"], None),
        (["targets", "a", "images"], "many"),
        (["targets", "a", "miou"], math.nan),
        (["targets", "a", "miou"], "good"),
        (["targets", "a", "iou"], [0.5]),
        (["targets", "a", "iou"], {"road": "good"}),
        (["targets", "a", "interval"], 3),
    ],
)
def test_an_odd_report_is_no_evidence_and_no_traceback(tmp_path, small, keys, value):
    checkpoint = tmp_path / "run" / "checkpoint"
    save_checkpoint(small, checkpoint, {})
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    scores = {"seen": False, "split": "val", "images": 3, "miou": 0.5, "iou": {"road": 0.5}}
    report = {
        "checkpoint": {"weights_sha256": digest},
        "protocol": {"name": "photo", "description": "as it is"},
        "precision": "float32",
        "targets": {"a": {**scores, "interval": {"low": 0.4, "high": 0.6}}},
    }
    path = tmp_path / "run" / "eval" / "x" / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(report))
    assert evidence_of(checkpoint).metrics.domains[0].miou == 0.5
    path.write_text(json.dumps(_changed(report, *keys, value=value)))
    assert evidence_of(checkpoint) is None


@pytest.mark.parametrize("scores", [{"protocol": "x"}, {"protocol": ["x"]}, {"target": 1}])
def test_odd_scores_of_a_run_are_no_evidence(tmp_path, small, scores):
    save_checkpoint(small, tmp_path / "run" / "checkpoint", {})
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    assert evidence_of(tmp_path / "run" / "checkpoint") is None


def test_a_configuration_with_a_key_twice_is_damaged(tmp_path):
    run = RunFolder(tmp_path)
    run.begin(small_config(), {})
    assert run.read_config() == small_config()
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"seed": 1,', 1))
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        run.read_config()


def test_a_card_of_ones_own_says_nothing_in_markdown(monkeypatch):
    hostile = "[free](https://evil.example) <img src=x> **bold**"
    layout = {"name": "x", "image": "i/{n}.png", "label": "l/{n}.png", "id": "{n}"}
    own = DatasetCard(
        name="camvid",
        title=hostile,
        terms=hostile,
        terms_url=hostile,
        citation=hostile,
        layouts=(Layout(**layout, label_maps=("trainids",)),),
    )
    monkeypatch.setattr("pinmem_core.checkpoints.model_card.get_card", lambda name: own)
    text = model_card({**CONFIG, "training": {"sources": ["camvid"]}})
    shown = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert shown.count("[free]") == 4
    assert "<img" not in shown and 'evil.example"' not in shown and "<strong>bold" not in shown


def test_metrics_are_json_though_a_value_is_not_finite(tmp_path):
    run = RunFolder(tmp_path)
    run.log(1, {"outer/seg": 0.5, "grad": math.inf, "val/toy": math.nan})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"iteration": 1, "outer/seg": 0.5, "grad": None, "val/toy": None}
    assert run.metrics() == [{"iteration": 1, "outer/seg": 0.5}]


def test_the_place_of_the_first_weights_is_nobodys_business(run, tmp_path):
    from pinmem_core.training.run_folder import RunFolder

    config = small_config(init_weights="/home/ada/secret/w.safetensors")
    RunFolder(tmp_path).save_checkpoint(1, config, Segmenter(config.model))
    for name in ("config.json", "README.md"):
        text = (tmp_path / "checkpoint" / name).read_text()
        assert "w.safetensors" in text and "/ada" not in text and "secret" not in text


def test_the_licence_of_pretrained_weights_is_recorded_and_handed_on(tmp_path):
    config = small_config(init_weights="lvd142m")
    run = RunFolder(tmp_path / "first")
    run.weights_licence = "apache-2.0"
    run.save_checkpoint(1, config, Segmenter(config.model))
    further = RunFolder(tmp_path / "second")
    further.start = InitialModel.read(str(tmp_path / "first"))
    further.save_checkpoint(1, small_config(init_from="first"), Segmenter(config.model))
    for folder in (run.path, further.path):
        card = (folder / "checkpoint" / "README.md").read_text()
        assert "| licence of pretrained weights | apache-2.0 |" in card
        assert "from pretrained weights with the licence apache-2.0." in card


def test_text_of_a_foreign_checkpoint_is_shown_and_does_nothing():
    hostile = "[pinmem](https://evil.example) ![x](https://evil.example/x.png) <img src=x>"
    hostile += " www.evil.example **bold** `code` | cell |\n# Heading\n<!-- hidden"
    training = {"method": hostile, "sources": [hostile], "init_weights": hostile}
    config = {**CONFIG, "training": training, "stored": hostile, "pinmem_version": hostile}
    domain = DomainMetrics(hostile, False, "val", 9, 0.5, {hostile: 0.5}, None)
    card = model_card(config, ModelMetrics(hostile, (domain,)))
    _, text = parts(card)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert not {t.type for t in inline} & {"link_open", "image", "html_inline", "code_inline"}
    html = [token.content.strip() for token in tokens if token.type == "html_block"]
    assert html == [MARK]
    lines = text.splitlines()
    assert not [line for line in lines if line.startswith("# Heading")]
    assert not re.search(r"(?<!\\)://evil|(?<!\\)www\.evil", text.partition("```json")[0])
