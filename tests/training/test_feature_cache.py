"""Cached features of a frozen backbone: equal to a run without the cache, exact, and refused."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import PLUGINS, small_config
from safetensors.torch import load_file

from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError, MachineError, StoppedRunError
from pinmem_core.events import Notice, Progress
from pinmem_core.methods import methods
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.training import resume, train
from pinmem_core.training.dry_run import plan
from pinmem_core.training.setup import resolve

VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}


FIXED = {
    "tune": "frozen",
    "method": "aggregate",
    "augmentation__views": 2,
    "augmentation__strong": "all",
    "compute__cache_features": "float32",
}


@pytest.fixture
def cached(tmp_path):
    """Return a function that makes the configuration of a run with a cache."""

    def make(**values):
        torch.manual_seed(5)
        start = tmp_path / "start"
        fixed = {**FIXED, "init_from": str(start), "evaluation__max_images": 1}
        config = small_config(**(fixed | values))
        memory = {"aggregate": False, "mldg": False}.get(config.method, True)
        model = config.model if memory else config.model.model_copy(update={"memory": None})
        save_checkpoint(Segmenter(model), start, {})
        return config

    return make


def without_cache(config):
    compute = config.compute.model_copy(update={"cache_features": None})
    return config.model_copy(update={"compute": compute})


def weights(run):
    return load_file(run / "checkpoint/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["aggregate", "mldg", "pinmem"])
def test_a_cached_run_equals_one_that_draws_the_same_views(method, cached, tmp_path):
    config = cached(method=method)
    heard = []
    one = train(config, tmp_path / "one", on_event=heard.append).run
    other = train(without_cache(config), tmp_path / "other").run
    ours, theirs = weights(one), weights(other)
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)
    lines = [event.message for event in heard if isinstance(event, Notice)]
    assert any(line.startswith("cache: features of ") for line in lines)
    assert not (one / "features").exists()


@pytest.mark.slow
def test_the_pyramid_of_a_vit_is_trained_from_cached_outputs(cached, tmp_path):
    values = {
        "model__backbone": "timm:vit_tiny_patch16_224",
        "model__backbone_options": VIT,
        "model__decoder": "segformer",
    }
    config = cached(**values)
    ours = weights(train(config, tmp_path / "one").run)
    theirs = weights(train(without_cache(config), tmp_path / "other").run)
    before = load_file(tmp_path / "start/model.safetensors")
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in theirs)
    moved = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert any(name.startswith("backbone.pyramid") for name in moved)
    assert not any(name.startswith("backbone.network") for name in moved)


def stopped(config, run, after):
    """Train until iteration `after`."""
    done = []

    def hear(event):
        if isinstance(event, Progress) and event.task == "training":
            done.append(event.done)

    with pytest.raises(StoppedRunError):
        train(config, run, on_event=hear, stop=lambda: done[-1:] == [after])


def harmed(run, harm):
    """Harm the cache of a run."""
    records, about = run / "features/records.bin", run / "features/about.json"
    if harm == "bytes":
        content = bytearray(records.read_bytes())
        content[7] ^= 255
        records.write_bytes(content)
    elif harm == "cut":
        records.write_bytes(records.read_bytes()[:-9])
    elif harm == "foreign":
        about.write_text(about.read_text().replace('"key": "', '"key": "0'))


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_equal_and_mends_its_cache(cached, tmp_path):
    values = {"compute__cache_features": "float16", "optim__ema": 0.9, "optim__ema_batches": 2}
    config = cached(**values)
    straight = train(config, tmp_path / "straight").run
    stopped(config, tmp_path / "stopped", 2)
    for harm in ("none", "bytes", "cut", "foreign"):
        run = tmp_path / harm
        shutil.copytree(tmp_path / "stopped", run)
        harmed(run, harm)
        heard = []
        resume(run, on_event=heard.append)
        computed = any(isinstance(e, Progress) and e.task == "caching features" for e in heard)
        notices = [event.message for event in heard if isinstance(event, Notice)]
        assert computed == any("damaged or of another run" in each for each in notices)
        assert computed == (harm != "none")
        for name in ("checkpoint/model.safetensors", "metrics.jsonl", "scores.json"):
            assert (run / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.slow
def test_a_run_stopped_while_it_mends_its_cache_says_how_to_go_on(cached, tmp_path):
    run = tmp_path / "run"
    stopped(cached(), run, 2)
    shutil.rmtree(run / "features")
    with pytest.raises(StoppedRunError, match="stopped at iteration 2/3"):
        resume(run, stop=lambda: True)


@pytest.mark.slow
@pytest.mark.parametrize("while_caching", [True, False])
def test_a_killed_run_resumes_bit_equal(while_caching, cached, tmp_path):
    config = cached(iterations=20, checkpoint__every=2, augmentation__views=10)
    straight = train(config, tmp_path / "straight").run
    run = tmp_path / "run"
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from pinmem_core.config import TrainConfig\n"
        "import torch, pinmem_core.models.backbones as b, pinmem_core.data.cards as c\n"
        "torch.set_num_threads(1)\n"
        f"b.__path__.append({str(PLUGINS / 'backbones')!r})\n"
        f"c.__path__.append({str(PLUGINS / 'cards')!r})\n"
        "from pinmem_core.training import train\n"
        "text = Path(sys.argv[1]).read_text()\n"
        "train(TrainConfig.model_validate_json(text), Path(sys.argv[2]))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "config.json", run])
    wanted = ".features.*.part/records.bin" if while_caching else "snapshots/00000002"
    while not [*run.glob(wanted)]:
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    resume(run)
    assert not [*run.glob(".features*")]
    for name in ("checkpoint/model.safetensors", "metrics.jsonl", "scores.json"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tune": "full"}, "contradicts a backbone that is trained"),
        ({"model__adapters": {"ibn": {"variant": "a"}}}, "contradicts adapters in the backbone"),
        ({"method": "ibn"}, "contradicts the method 'ibn', which looks into it"),
        ({"method": "consistency"}, "contradicts the method 'consistency', which looks into it"),
        ({"augmentation__views": None}, "contradicts new crops each time"),
        ({"minutes": 3}, "contradicts a limit of time"),
        ({"augmentation__strong": "meta-test"}, "augmentation.views contradicts .*meta-test"),
        ({"augmentation__rare_classes": 0.1}, "augmentation.views contradicts .*rare_classes"),
    ],
)
def test_what_cannot_be_right_is_refused(values, message):
    fixed = FIXED | {"init_weights": "weights.safetensors"}
    resolve(small_config(**fixed))
    with pytest.raises(ConfigError, match=message):
        resolve(small_config(**(fixed | values)))


def test_methods_that_work_inside_of_the_backbone_are_refused():
    accepted = set()
    for name in methods.all():
        with contextlib.suppress(ConfigError):
            resolve(small_config(**(FIXED | {"method": name, "init_weights": "weights.pth"})))
            accepted.add(name)
    assert accepted == {"aggregate", "mldg", "pinmem"}


def test_several_processes_are_refused(cached, monkeypatch):
    config = cached()
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ConfigError, match="needs one process"):
        resolve(config)


def test_a_full_disk_is_one_sentence(cached, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MachineError, match=r"the cached features need .* has 0\.0 GB left"):
        train(cached(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_feature_beyond_float16_is_one_sentence(cached, tmp_path):
    config = cached(compute__cache_features="float16")
    start = Segmenter(config.model.model_copy(update={"memory": None}))
    start.backbone.stage3[1].weight.data.fill_(1e6)
    save_checkpoint(start, tmp_path / "start", {})
    with pytest.raises(ConfigError, match="exceed the range of float16"):
        train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_dry_run_says_how_large_the_cache_will_be(cached):
    prepare_synthetic(["toy"])
    heard = []
    plan(cached(), on_event=heard.append)
    lines = [event.message for event in heard if isinstance(event, Notice)]
    assert any("2 of each image" in line and "without it" in line for line in lines)


@pytest.mark.slow
def test_fixed_views_repeat_and_differ_by_seed(cached, tmp_path):
    same = [weights(train(cached(), tmp_path / name).run) for name in ("a", "b")]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    other = weights(train(cached(seed=1), tmp_path / "c").run)
    assert any(not torch.equal(same[0][name], other[name]) for name in other)
