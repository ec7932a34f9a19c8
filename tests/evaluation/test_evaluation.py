import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import small_config
from test_distributed import in_ranks

from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation import (
    ConfusionMatrix,
    Scores,
    Target,
    TrainedOn,
    confusion_matrix,
    evaluate_run,
    load_target,
    load_validation,
)
from pinmem_core.evaluation.evaluate import evaluate_domain
from pinmem_core.evaluation.metrics import Calibration
from pinmem_core.events import Progress
from pinmem_core.inference import Protocol
from pinmem_core.training import train


class ByColor:
    """Predicts a class and a confidence from the colour of each pixel."""

    protocol = Protocol()

    def __init__(self):
        self.seen = 0

    def predict(self, image):
        self.seen += 1
        return image[..., 0] % 19

    def analyze(self, image, *, confidence):
        assert confidence
        sureness = (image[..., 1] / 255).astype(np.float32)
        return SimpleNamespace(train_ids=self.predict(image), confidence=sureness)


@dataclass
class Street:
    """A sample of noise; tells when it is read."""

    id: str
    labelled: bool = True
    was_read: threading.Event = field(default_factory=threading.Event)

    def read(self):
        rng = np.random.default_rng([*self.id.encode()])
        self.was_read.set()
        image = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        truth = np.where(rng.random((9, 11)) < 0.5, image[..., 0] % 19, 3).astype(np.uint8)
        truth[:2] = 255
        return image, truth if self.labelled else np.full_like(truth, 255)


class Torn(Street):
    def read(self):
        raise DataError(f"{self.id} cannot be read.")


def streets(count=7):
    return Target("street", "val", tuple(Street(f"s{n}") for n in range(count)))


def test_each_image_is_predicted_once_and_keeps_its_own_counts():
    target, predictor, events = streets(), ByColor(), []
    result = evaluate_domain(predictor, target, on_event=events.append, task="scoring")
    assert predictor.seen == len(target.samples)
    assert events == [Progress("scoring", n, 7) for n in range(1, 8)]
    assert (result.name, result.split) == ("street", "val")
    assert [image.id for image in result.images] == [sample.id for sample in target.samples]
    whole, calibration = ConfusionMatrix(), Calibration()
    for sample, found in zip(target.samples, result.images, strict=True):
        image, truth = sample.read()
        matrix = ConfusionMatrix()
        matrix.add(truth, image[..., 0] % 19)
        np.testing.assert_array_equal(found.counts, matrix.counts)
        whole += matrix
        sureness = (image[..., 1] / 255).astype(np.float32)
        calibration += Calibration.of(sureness, truth, image[..., 0] % 19)
    np.testing.assert_array_equal(result.matrix.counts, whole.counts)
    assert result.scores.miou == whole.miou() and result.scores.images == 7
    assert (result.calibration.ece, result.calibration.auroc) == (
        calibration.ece,
        calibration.auroc,
    )
    assert result.calibration.counts.sum() == whole.pixels == 7 * 7 * 11


def test_what_the_protocol_shows_is_what_is_scored():
    predictor = ByColor()
    predictor.protocol = SimpleNamespace(view_of=lambda image, label: (image[:4], label[:4]))
    result = evaluate_domain(predictor, streets(), task="scoring")
    assert result.scores.pixels == 7 * 2 * 11  # of nine rows, the first two are never labelled


def test_scores_alone_are_those_of_the_whole_result():
    target = streets()
    scores = Scores.of(confusion_matrix(ByColor(), target.samples, task="scoring"), 7)
    assert scores == evaluate_domain(ByColor(), target, task="scoring").scores


def test_the_next_images_are_read_while_one_is_predicted():
    target = streets()

    class Patient(ByColor):
        def predict(self, image):
            following = target.samples[self.seen + 1 :][:1]
            assert all(sample.was_read.wait(10) for sample in following)
            return super().predict(image)

    assert confusion_matrix(Patient(), target.samples, task="scoring").pixels == 7 * 7 * 11


def test_few_images_are_held_at_a_time():
    target = streets(20)

    class Curious(ByColor):
        def predict(self, image):
            ahead = target.samples[self.seen + 6 :]
            assert not any(sample.was_read.is_set() for sample in ahead)
            return super().predict(image)

    confusion_matrix(Curious(), target.samples, task="scoring")


def _facts(result):
    calibration = result.calibration
    return {
        "ids": [image.id for image in result.images],
        "counts": [image.counts.tolist() for image in result.images],
        "scores": result.scores,
        "calibration": (calibration.ece, calibration.auroc, calibration.counts.tolist()),
    }


def _on_a_rank(rank):
    predictor = ByColor()
    domain = evaluate_domain(predictor, streets(), task="scoring")
    share = predictor.seen
    matrix = confusion_matrix(predictor, streets().samples, task="scoring")
    return _facts(domain), Scores.of(matrix, 7), share


def test_ranks_share_the_images_and_all_get_the_result_of_one(tmp_path):
    first, second = in_ranks(_on_a_rank, folder=tmp_path)
    alone = evaluate_domain(ByColor(), streets(), task="scoring")
    assert first[0] == second[0] == _facts(alone)
    assert first[1] == second[1] == alone.scores
    assert (first[2], second[2]) == (4, 3)


def test_a_file_that_cannot_be_read_is_named_and_no_thread_stays_behind():
    before = threading.active_count()
    samples = (Street("s0"), Torn("s1"), *streets(9).samples)
    with pytest.raises(DataError, match="s1 cannot be read"):
        confusion_matrix(ByColor(), samples, task="scoring")
    assert threading.active_count() == before


def test_a_target_without_labels_is_said_and_has_no_score():
    target = Target("city@test", "test", (Street("a", labelled=False),))
    with pytest.raises(DataError, match="no pixel is labelled in the 1 images of city@test"):
        evaluate_domain(ByColor(), target, task="scoring")
    assert confusion_matrix(ByColor(), target.samples, task="scoring").pixels == 0


def test_images_without_labels_among_others_change_nothing():
    target = streets(3)
    more = Target("street", "val", (*target.samples, Street("a", labelled=False)))
    few, many = (evaluate_domain(ByColor(), t, task="scoring") for t in (target, more))
    assert few.scores.iou == many.scores.iou and many.scores.images == 4
    assert few.calibration.ece == many.calibration.ece


def test_a_seen_domain_is_scored_on_its_validation_split_only(tmp_path):
    prepare_synthetic(["toy"])
    trained_on = TrainedOn(("toy:red",))
    assert load_target("toy:red", trained_on).split == "val"
    assert load_target("toy:red@all", trained_on).split == "all"
    assert len(load_target("toy:red@all", max_images=3).samples) == 3


def test_a_source_that_trains_on_its_validation_images_is_told(tmp_path):
    prepare_synthetic(["toy"])
    events = []
    (target,) = load_validation(["toy:red@all"], None, events.append)
    assert target.name == "toy:red@val" and {s.split for s in target.samples} == {"val"}
    assert "trains on its own validation images" in events[0].message


def test_evaluating_a_run_repeats_the_scores_that_training_ended_with(tmp_path):
    result = train(small_config(targets=["toy:blue@all"]), tmp_path / "run")
    report = evaluate_run(str(result.run), device="cpu")
    assert report.scores == result.scores["target"]
    assert report.splits == {"toy:blue@all": "all"}
    assert "whole image" in report.protocol
    source = evaluate_run(str(result.checkpoint), ["toy:red"], device="cpu")
    assert source.scores["toy:red"] == result.scores["source"]["toy:red@val"]


def test_what_cannot_be_evaluated_is_said(tmp_path):
    result = train(small_config(), tmp_path / "run")
    with pytest.raises(ConfigError, match="no target"):
        evaluate_run(str(result.run))
    with pytest.raises(ConfigError, match="unknown protocol"):
        evaluate_run(str(result.run), ["toy"], protocol="paper-evil")
