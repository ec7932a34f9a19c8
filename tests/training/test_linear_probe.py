"""New classifier rows before fine-tuning, and the mean of initial and trained weights after it."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import small_config
from safetensors.torch import load_file
from scipy.optimize import minimize
from scipy.special import log_softmax
from test_run_resuming import StopAfter

from pinmem_core.config import ModelConfig
from pinmem_core.data.batches import load_domains
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, StoppedRunError
from pinmem_core.events import Progress, ignore
from pinmem_core.methods.losses import balanced_cross_entropy
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.training import resume, train
from pinmem_core.training.linear_probe import fit_new_rows, fit_rows
from pinmem_core.training.setup import initial_segmenter, resolve
from pinmem_core.training.step import TrainStep


@pytest.fixture
def model(tmp_path):
    """A checkpoint that lacks the last 16 of the 19 classes."""
    settings = small_config().model.model_dump() | {"num_classes": 3}
    settings.pop("label_space", None)
    config = ModelConfig.model_validate(settings)
    torch.manual_seed(123)
    save_checkpoint(Segmenter(config), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_rows_are_those_that_scipy_finds_for_the_documented_objective(balance):
    rng = np.random.default_rng(0)
    features, fixed = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    labels = rng.choice(4, size=60, p=[0.4, 0.3, 0.2, 0.1])
    weights = np.bincount(labels, minlength=4) ** -balance

    def objective(flat):
        rows = flat.reshape(2, 5)
        logits = np.concatenate([fixed, features @ rows[:, :4].T + rows[:, 4]], axis=1)
        terms = -log_softmax(logits, axis=1)[np.arange(60), labels] * weights[labels]
        return terms.sum() / weights[labels].sum() + 0.001 * (rows[:, :4] ** 2).sum()

    expected = minimize(objective, np.zeros(10), tol=1e-10).x.reshape(2, 5)
    rows = fit_rows(
        torch.tensor(features), torch.tensor(labels), torch.tensor(fixed), balance
    ).numpy()
    np.testing.assert_allclose(rows, expected, atol=2e-3)
    assert objective(rows.ravel()) <= objective(expected.ravel()) + 1e-7


def test_the_new_rows_are_fitted_to_the_sources_and_the_others_stay(model):
    prepare_synthetic(["toy"])
    config = resolve(small_config(init_from=str(model), loss__balance=0.5))
    segmenter = initial_segmenter(config)
    domains = load_domains(config.sources, pseudo_domains=2, seed=0)
    whole = partial(DomainLoader.of, domains, config)

    def load(iterations):
        for batch in whole(iterations):
            batch.labels[batch.labels == 5] = 255
            yield batch

    images, labels = next(load(range(1))).all()

    def losses():
        with torch.no_grad():
            output = segmenter.eval().run(images)
            auxiliary = segmenter.auxiliary_logits(output.encoding)
        return [balanced_cross_entropy(x, labels, 0.5) for x in (output.logits, auxiliary)]

    before, random = segmenter.state_dict(), losses()
    before = {name: value.clone() for name, value in before.items()}
    heard = []
    fit_new_rows(segmenter, load, config, heard.append)
    assert heard[-1] == Progress("fitting the classifier", 10, 10)
    assert all(fitted < 0.96 * loss for fitted, loss in zip(losses(), random, strict=True))
    for name, value in segmenter.state_dict().items():
        if name.startswith(("decoder.classifier.", "auxiliary.4.")):
            changed = {k for k in range(19) if not torch.equal(value[k], before[name][k])}
            assert changed - {5} == {*range(3, 19)} - {5} and not value[5].any()
        else:
            assert torch.equal(value, before[name]), name


def test_nothing_is_fitted_where_no_row_is_new(tmp_path):
    save_checkpoint(Segmenter(small_config().model), tmp_path / "model", {})
    config = resolve(small_config(init_from=str(tmp_path / "model")))
    fit_new_rows(initial_segmenter(config), lambda batches: 1 / 0, config, ignore)
    fit_new_rows(initial_segmenter(resolve(small_config())), lambda batches: 1 / 0, config, ignore)


@pytest.mark.parametrize("average", [{}, {"optim__ema": 0.5, "optim__ema_batches": 1}])
def test_the_published_weights_are_a_mean_of_initial_and_trained_ones(model, tmp_path, average):
    values = {"init_from": str(model), "iterations": 2, **average}
    plain = train(small_config(**values), tmp_path / "plain").run
    mixed = train(small_config(**values, optim__initial_share=0.25), tmp_path / "mixed").run
    initial = load_file(mixed / "snapshots/00000002/initial.safetensors")
    trained = load_file(plain / "checkpoint/model.safetensors")
    published = load_file(mixed / "checkpoint/model.safetensors")
    assert published.keys() == trained.keys() > initial.keys()
    assert any(name.endswith("running_var") for name in initial)
    for name, value in published.items():
        expected = trained[name]
        if name in initial:
            expected = 0.25 * initial[name] + 0.75 * expected
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(published["memory.slots"], trained["memory.slots"])
    start = load_file(model / "model.safetensors")["backbone.stem.0.weight"]
    assert torch.equal(initial["backbone.stem.0.weight"], start)
    assert not torch.equal(published["backbone.stem.0.weight"], start)


def test_a_run_with_a_share_of_the_initial_weights_resumes_exactly(model, tmp_path):
    values = {"init_from": str(model), "iterations": 4, "optim__initial_share": 0.5}
    config = small_config(method="aggregate", checkpoint__every=2, **values)
    straight = train(config, tmp_path / "straight").run
    stop = StopAfter(3)
    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "run", on_event=stop.hear, stop=stop)
    run = resume(tmp_path / "run").run
    for file in ("checkpoint/model.safetensors", "snapshots/00000004/initial.safetensors"):
        assert (run / file).read_bytes() == (straight / file).read_bytes()


def test_averages_start_from_the_fitted_rows(model):
    config = resolve(small_config(init_from=str(model), optim__ema=0.5, optim__initial_share=0.5))
    step = TrainStep(config, initial_segmenter(config), torch.device("cpu"))
    with torch.no_grad():
        step.segmenter.decoder.classifier.weight[5] = 7
    step.begin()
    for state in ("ema", "initial"):
        assert (step.states()[state]["decoder.classifier.weight"][5] == 7).all()


def test_the_share_needs_a_model():
    with pytest.raises(ConfigError, match=r"initial_share=0.5 needs the weights of a model"):
        resolve(small_config(optim__initial_share=0.5))
