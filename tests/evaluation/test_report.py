import hashlib
import json
import os
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch
from conftest import Result

from pinmem_core.config import ModelConfig
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation import evaluate_run
from pinmem_core.evaluation.compare import SavedReport, compare, find_report
from pinmem_core.evaluation.evaluate import Example, Examples, Gallery, Labelled
from pinmem_core.evaluation.metrics import Calibration, ConfusionMatrix
from pinmem_core.evaluation.plots import plot_cosines, plot_reliability
from pinmem_core.evaluation.report import Pictures, as_html, embedded
from pinmem_core.evaluation.results import (
    DomainResult,
    ImageResult,
    Origin,
    Report,
    image_counts,
)
from pinmem_core.images import write_png
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.plots import DARK, plot_bytes

HOSTILE = 'town:<b onload="x">&'
"""A name as no target has it: nothing in it may become markup."""
VOID = {"meta", "link", "img", "source"}


def _image(name, seed, spoilt=0.3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (20, 30)).astype(np.uint8)
    guess = rng.integers(0, 7, truth.shape)
    matrix = ConfusionMatrix()
    matrix.add(truth, np.where(rng.random(truth.shape) < spoilt, guess, truth).astype(np.uint8))
    return ImageResult(name, matrix.counts, matrix.missed)


def _domain(name, spoilt=0.3, seen=False):
    confidence = np.linspace(0.2, 1, 600, dtype=np.float32)
    truth = (np.arange(600) % 3 > 0).astype(np.uint8)
    images = tuple(_image(f"image_{seed}", seed, spoilt) for seed in range(12))
    calibration = Calibration.of(confidence, truth, np.ones_like(truth))
    return DomainResult(name, "val", images, calibration, seen, 0, (0.2, 0.3), f"d-{name}")


@pytest.fixture(scope="module")
def report():
    origin = Origin(
        checkpoint=Path("runs/some <run>/checkpoint"),
        weights_sha256="ab" * 32,
        name="paper-eval",
        protocol=PROTOCOLS["paper-eval"],
        precision="float32",
        device="cpu (x86_64)",
        date="2026-11-22T23:00:00+00:00",
        versions={"pinmem": "0.1.0"},
    )
    return Report(origin, {name: _domain(name) for name in (HOSTILE, "town:night")})


@pytest.fixture(scope="module")
def page(report):
    noise = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    example = Example("image_1", 0.5, noise, noise, noise)
    examples = {name: Examples((example,), (example,)) for name in report.domains}
    wide = np.full((20, 1500, 3), 200, np.uint8)
    draw = partial(plot_cosines, np.eye(19, dtype=np.float32), "slots")
    return as_html(report, Pictures(examples, {"cosines <of> slots": draw, "a sheet": wide}))


@pytest.fixture
def run(tmp_path):
    """A run that was never trained."""
    torch.manual_seed(0)
    prepare_synthetic(["toy"])
    about = {"training": {"targets": ["toy:blue@all"], "sources": ["toy:red"]}}
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    save_checkpoint(segmenter, tmp_path / "run" / "checkpoint", about)
    return tmp_path / "run"


def _saved(tmp_path, report, name):
    path = tmp_path / name / "report.json"
    path.parent.mkdir()
    path.write_text(report.as_text())
    return SavedReport.read(path)


def test_the_file_for_programs_holds_every_count(report):
    data = json.loads(report.as_text())
    target = data["targets"]["town:night"]
    result = report.domains["town:night"]
    for image, saved in zip(result.images, target["per_image"], strict=True):
        again = image_counts(saved)
        assert again.id == image.id and saved["miou"] == image.matrix.miou()
        assert np.array_equal(again.counts, image.counts)
    assert target["counts"] == result.matrix.counts.tolist()
    assert target["miou"] == result.scores.miou == target["miou_by_set"]["occurring"]
    assert data["protocol"]["fields"]["crop"] == 768
    assert "sliding 768x768" in data["protocol"]["description"]
    mious = [target["miou"] for target in data["targets"].values()]
    assert data["average_miou_by_set"]["unseen"]["occurring"] == pytest.approx(sum(mious) / 2)


def test_pixels_that_were_predicted_as_no_class_are_kept(report):
    missed = np.zeros(19, np.int64)
    missed[3] = 7
    image = ImageResult("x", np.eye(19, dtype=np.int64), missed)
    domain = report.domains["town:night"]
    domain = replace(domain, images=(image,))
    (saved,) = domain.as_json()["per_image"]
    assert image_counts(saved).missed[3] == 7 and image_counts(saved).missed.sum() == 7


def test_the_file_for_programs_can_be_read_by_people(report):
    lines = report.as_text().splitlines()
    assert sum('"cells": [' in line and line.endswith("],") for line in lines) == 24
    assert max(map(len, lines)) < 2000 and len(lines) < 900


class _Checker(HTMLParser):
    """Fails where tags are not nested; gathers what the tests look at."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_well_formed_and_needs_nothing_from_outside(page):
    checked = _Checker(page)
    assert not re.search(r"https?:|//\w|url\(|@import|<script", page)
    images = checked.of("img")
    assert len(images) == 2 * 2 * 3 + 2 + 2 and len(checked.of("source")) == 2 + 1
    assert all(source["srcset"].startswith("data:image/svg") for source in checked.of("source"))
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in images)
    assert "default-src 'none'" in page
    assert not checked.of("b") and "some &lt;run&gt;" in page


def test_the_page_can_be_walked_by_heading_and_link(page):
    checked = _Checker(page)
    headings = [tag for tag, _ in checked.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1
    assert all(int(b[1]) - int(a[1]) <= 1 for a, b in pairwise(headings))
    anchors = {attributes.get("id") for _, attributes in checked.tags}
    assert {a["href"].removeprefix("#") for a in checked.of("a")} <= anchors
    assert all("scope" in head for head in checked.of("th"))


def test_the_page_says_the_figures_and_what_made_them(page, report):
    for domain in report.domains.values():
        scores = domain.scores
        assert f">{100 * scores.miou:.1f}<" in page and f"{scores.pixels:,}" in page
        assert f"{100 * scores.iou['road']:.1f}" in page
    assert "20.0 to 30.0" in page and "ab" * 32 in page
    assert report.origin.protocol_text in page and "d-town:night" in page


def test_the_page_has_landmarks(page):
    tags = [tag for tag, _ in _Checker(page).tags]
    assert [tags.count(tag) for tag in ("header", "nav", "main")] == [1, 1, 1]
    assert tags.index("header") < tags.index("nav") < tags.index("main") < tags.index("section")


def test_a_confusion_matrix_shows_shares_of_the_true_class(report):
    matrix = ConfusionMatrix()
    matrix.add(np.array([[0, 0, 0, 10]], np.uint8), np.array([[0, 0, 13, 10]], np.uint8))
    domain = report.domains["town:night"]
    domain = replace(domain, images=(ImageResult("x", matrix.counts, matrix.missed),))
    page = as_html(Report(report.origin, {"town:night": domain}))
    assert 'title="road predicted as car: 33.33%, 1 pixels">33<' in page
    assert 'title="sky predicted as sky: 100.00%, 1 pixels">100<' in page
    shown = page[page.index('<div class="confusion">') :].partition("</table>")[0]
    assert shown.count("<tr>") == 3 and shown.count("<td") == 2 * 3


def test_a_reliability_diagram_is_as_high_as_the_accuracy():
    confidence = np.full((1, 8), 0.95, np.float32)
    truth = np.array([[0, 0, 0, 1, 1, 1, 1, 1]], np.uint8)
    counted = Calibration.of(confidence, truth, np.zeros_like(truth))
    of = counted.mean_confidence, counted.accuracy, counted.counts
    light, dark = plot_reliability(*of), plot_reliability(*of, theme=DARK)
    upper, lower = light.axes
    (bar,), (share,) = upper.patches, lower.patches
    assert bar.get_height() == pytest.approx(3 / 8) and share.get_height() == 1
    assert bar.get_x() > 14 / 15 and bar.get_x() + bar.get_width() < 1
    ((start, end),) = upper.collections[0].get_segments()
    assert start[1] == end[1] == pytest.approx(0.95) and start[0] == pytest.approx(14 / 15)
    assert light.patch.get_alpha() == 0 and plot_bytes(light, "svg") != plot_bytes(dark, "svg")


def test_photos_become_jpeg_and_drawings_png():
    flat = np.zeros((64, 60, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert embedded(flat).uri.startswith("data:image/png;base64,")
    assert embedded(flat)[1:] == (60, 64)
    assert embedded(noise).uri.startswith("data:image/jpeg;base64,")


def _shown(rights, count, named=()):
    """Return a gallery of images of ten pixels; of each, the first ones are predicted right."""
    gallery = Gallery(count, named)
    for number, right in enumerate(rights):
        label = np.full((2, 5), 255, np.uint8)
        if right is not None:
            label = (np.arange(10).reshape(2, 5) >= right).astype(np.uint8)
        matrix, road = ConfusionMatrix(), np.zeros_like(label)
        matrix.add(label, road)
        sample = Labelled(str(number), np.zeros((2, 5, 3), np.uint8), label)
        gallery.add(sample, road, matrix.miou())
    return gallery


def test_examples_are_the_worst_and_best_of_those_with_labels():
    rights = (2, 9, 5, 0, 7, None)
    found = _shown(rights, 2).examples()
    assert [e.id for e in found.worst] == ["3", "0"] and [e.id for e in found.best] == ["1", "4"]
    assert found.best[0].miou == pytest.approx(0.9 / 2)
    few = _shown(rights, 3).examples()
    assert [e.id for e in few.worst] == ["3", "0", "2"] and [e.id for e in few.best] == ["1", "4"]
    road, sidewalk = found.worst[1].truth[0, 0], found.worst[1].truth[1, 4]
    assert np.array_equal(found.worst[1].prediction[1, 4], road) and not np.array_equal(
        road, sidewalk
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_examples_are_those_of_the_whole_list_whatever_its_order(count):
    for seed in range(20):
        rights = np.random.default_rng(seed).integers(0, 6, size=seed // 2).tolist()
        ranked = sorted(range(len(rights)), key=lambda i: rights[i])
        found = _shown(rights, count).examples()
        assert [e.id for e in found.worst] == [str(i) for i in ranked[:count]]
        assert [e.id for e in found.best] == [str(i) for i in ranked[count:][::-1][:count]]


def test_predictions_are_kept_of_named_images_alone():
    assert set(_shown((2, 9, None), 1, named=["1", "2"]).predictions) == {"1", "2"}


@pytest.mark.slow
@pytest.mark.parametrize("shown", [True, False])
def test_a_report_predicts_no_image_twice(run, tmp_path, monkeypatch, shown):
    predicted, analyze = [], Predictor.analyze
    monkeypatch.setattr(
        Predictor, "analyze", lambda self, *a, **k: predicted.append(1) or analyze(self, *a, **k)
    )
    out = tmp_path / "out"
    evaluate_run(str(run), ["toy:blue@all"], device="cpu", output=out, pictures=shown)
    assert len(predicted) == 10
    page = (out / "report.html").read_text()
    assert _Checker(page) and ('class="trio"' in page) == ("Worst images" in page) == shown
    assert ('id="memory"' in page) == shown


def test_a_report_without_pictures_is_asked_for_by_an_option(run, tmp_path):
    done = Result("eval", str(run), "--no-pictures", "-o", str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert done.code == 0 and 'class="trio"' not in page and 'id="memory"' not in page


def test_reports_are_compared_with_the_first(tmp_path, report):
    better = Report(report.origin, {name: _domain(name, 0.1) for name in report.domains})
    saved = [_saved(tmp_path, r, n) for r, n in ((report, "a"), (better, "b"))]
    compared = compare(saved)
    first, second = compared.targets["town:night"]
    assert first.difference == 0 and first.interval == (0, 0)
    assert second.difference == pytest.approx(second.miou - first.miou)
    assert 0 < second.interval[0] < second.difference < second.interval[1]
    assert second.class_differences["road"] == pytest.approx(second.iou["road"] - first.iou["road"])
    assert second.class_differences["train"] is None
    (average,) = compared.averages.values()
    assert average[1] - average[0] == pytest.approx(second.difference)


def test_a_comparison_is_also_a_page_like_that_of_a_report(tmp_path, report):
    better = Report(report.origin, {name: _domain(name, 0.1) for name in report.domains})
    for one, name in ((report, "a"), (better, "b"), (report, "c")):
        _saved(tmp_path, one, name)
    names = [str(tmp_path / name) for name in "abc"]
    done = Result("eval", "compare", *names, "--html", str(tmp_path / "page.html"), "--json")
    assert done.code == 0 and done.json["html"] == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    checked = _Checker(page)
    assert not re.search(r"https?:|//\w|url\(|@import|<script", page)
    assert checked.of("main") and not checked.of("b") and "some &lt;run&gt;" in page
    headings = [tag for tag, _ in checked.tags if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1", "h2", *["h2"] * len(report.domains), "h2"]
    (image,) = checked.of("img")
    assert image["src"].startswith("data:image/svg") and image["alt"]
    (dark,) = checked.of("source")
    assert dark["srcset"].startswith("data:image/svg") and dark["srcset"] != image["src"]
    anchors = {attributes.get("id") for _, attributes in checked.tags}
    assert {a["href"].removeprefix("#") for a in checked.of("a")} <= anchors
    scores = compare([SavedReport.read(tmp_path / n / "report.json") for n in "abc"])
    _, second, third = scores.targets["town:night"]
    assert f"<td>{100 * second.difference:+.1f}</td>" in page
    assert second.separated and not third.separated


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("the protocol differs", lambda d: d["protocol"].update(name="fast")),
        ("the set of classes differs", lambda d: d["classes"].pop()),
        ("the set of targets, by town:night, differs", lambda d: d["targets"].pop("town:night")),
        ("split of town:night", lambda d: d["targets"]["town:night"].update(split="all")),
        ("data of town:night", lambda d: d["targets"]["town:night"].update(dataset_digest="x")),
    ],
)
def test_reports_of_other_things_are_not_compared(tmp_path, report, what, change):
    first = _saved(tmp_path, report, "a")
    data = report.as_json()
    change(data)
    (tmp_path / "b.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=what):
        compare([first, SavedReport.read(tmp_path / "b.json")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "no report"),
        ("[1]", "no report"),
        ("\xff", "no report"),
        ('{"schema_version": 99}', "another version"),
        ('{"schema_version": 1, "targets": {}}', "damaged"),
    ],
)
def test_what_is_no_report_is_said(tmp_path, text, said):
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        SavedReport.read(path)


def test_a_report_is_found_by_file_folder_or_run(tmp_path):
    with pytest.raises(DataError, match="no run"):
        find_report(str(tmp_path / "nowhere"))
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(DataError, match="holds no report"):
        find_report(str(tmp_path))
    for age, name in ((5, "zzz"), (1, "new")):
        file = tmp_path / "eval" / name / "report.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        os.utime(file, (1e9 - age, 1e9 - age))
    for text in (tmp_path, tmp_path / "checkpoint", file.parent, file):
        assert find_report(str(text)) == file


def test_evaluating_a_run_writes_its_report(run, tmp_path):
    out = tmp_path / "out"
    report = evaluate_run(str(run), ["toy:blue@all", "toy:red"], device="cpu", output=out)
    data = json.loads((out / "report.json").read_text())
    weights = run / "checkpoint" / "model.safetensors"
    assert data["checkpoint"]["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert data["model"] == "run" and data["device"].startswith("cpu (")
    assert set(data["versions"]) == {"pinmem", "Python", "torch", "numpy"}
    assert list(data["targets"]) == ["toy:blue@all", "toy:red"]
    blue = data["targets"]["toy:blue@all"]
    assert blue["miou"] == report.scores["toy:blue@all"].miou
    assert [image["id"] for image in blue["per_image"]] == [f"blue_{n:02}" for n in range(10)]
    low, high = blue["interval"]["low"], blue["interval"]["high"]
    assert low < blue["miou"] < high
    page = (out / "report.html").read_text()
    assert _Checker(page) and "Worst images" in page and len(page) < 5e6
    with pytest.raises(ConfigError, match="exists already"):
        evaluate_run(str(run), device="cpu", output=out)


def test_an_evaluation_that_fails_leaves_no_folder(run, tmp_path, home):
    (label,) = (home / "datasets" / "toy" / "labels").rglob("blue_05.png")
    write_png(label, np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="3x3"):
        evaluate_run(str(run), device="cpu", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.slow
def test_the_command_scores_compares_and_says_where_the_report_is(run, tmp_path):
    done = Result("eval", str(run), "--targets", "toy:blue,toy:red", "--device", "cpu")
    (folder,) = (run / "eval").iterdir()
    assert done.code == 0 and folder.name.startswith("paper-train-")
    assert f"report: {folder}/report.html" in done.out and "mIoU-16" in done.out
    named = Result(
        "eval", str(run), "-o", str(tmp_path / "b"), "--protocol", "paper-pool+flip=no", "--json"
    ).json
    assert named["report"] == str(tmp_path / "b")
    assert "no flip, mean of probabilities" in named["protocol"]
    assert set(named["targets"]) == {"toy:blue@all"}
    assert {"miou", "interval", "calibration", "split"} <= set(named["targets"]["toy:blue@all"])

    both = Result("eval", "compare", str(run), str(folder), "--json").json
    assert both["targets"]["toy:red"][1]["difference"] == 0
    assert [r["path"] for r in both["reports"]] == [str(folder / "report.json")] * 2
    told = Result("eval", "compare", str(run), str(folder))
    assert told.code == 0 and "+0.0..+0.0" in told.out
    refused = Result("eval", "compare", str(run), str(tmp_path / "b"))
    assert refused.code == 2 and "the protocol differs" in refused.err
    assert Result("eval", "compare", str(run)).code == 2


def test_compare_is_a_command_of_its_own_and_a_run_may_have_its_name(run, tmp_path, monkeypatch):
    assert "{reports}" in Result("eval", "compare", "--help").out
    assert "eval compare" in Result("eval", "--help").out
    monkeypatch.chdir(tmp_path)
    run.rename("compare")
    done = Result("eval", "./compare", "--device", "cpu", "--no-pictures", "--json")
    assert done.code == 0 and done.json["checkpoint"] == "compare/checkpoint"


@pytest.mark.skipif(not chromium.FOUND, reason="there is no Chromium")
@pytest.mark.parametrize(("kind", "pictures"), [("report", 16), ("comparison", 1)])
def test_a_browser_without_network_shows_every_picture(page, report, tmp_path, kind, pictures):
    path = tmp_path / "page.html"
    again = _saved(tmp_path, report, "again")
    path.write_text(page if kind == "report" else compare([again, again]).as_html())
    with chromium.Page(tmp_path / "profile") as tab:
        for width in (1280, 400):
            for scheme in ("light", "dark"):
                tab.open(path, width, scheme)
                shown = tab.value(
                    "Promise.all([...document.images].map(i => i.decode()))"
                    ".then(() => [...document.images].map(i => i.naturalWidth))"
                )
                assert len(shown) == pictures and min(shown) > 0
                assert tab.value("document.documentElement.scrollWidth") <= width
                paper = tab.value("getComputedStyle(document.body).backgroundColor")
                assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")
                labels = "[...document.querySelectorAll('[role=region]')].map(r => r.ariaLabel)"
                assert len(set(tab.value(labels))) == tab.value(f"{labels}.length")
                assert tab.accessibility_findings() == []
        assert tab.complaints == []
        assert set(tab.requests) == {path.as_uri()}
