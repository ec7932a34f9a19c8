"""What a method or an optimizer of one's own keeps is resumed exactly, or refused at once."""

import pytest
import torch
from conftest import small_config
from safetensors.torch import load_file

import pinmem_core.methods
import pinmem_core.training.optimizers
from pinmem_core.checkpoints.checkpoint import WEIGHTS
from pinmem_core.errors import ConfigError, StoppedRunError
from pinmem_core.inference import load
from pinmem_core.training import resume, train

OPTIMIZER = """
import torch
class Added(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group, self.state[parameter])
"""
KNOWN = 'OPTIMIZERS = {"added": lambda groups, config: Added(groups, {"lr": config.lr})}'
TWO_KINDS = """
    def move(self, parameter, group, state):
        step = parameter.grad.sign() if group["matrices"] else parameter.grad
        parameter.sub_(step, alpha=group["lr"] * group["share"])
def added(groups, config):
    split = []
    for group in groups:
        for matrices in (True, False):
            chosen = [p for p in group["params"] if (p.ndim > 1) == matrices]
            share = 0.1 if matrices else 1.0
            split.append({**group, "params": chosen, "matrices": matrices, "share": share})
    return Added(split, {"lr": config.lr})
OPTIMIZERS = {"added": added}
"""
SHRINKING_BETAS = f"""
    def move(self, parameter, group, state):
        first, second = group["betas"]
        parameter.sub_(parameter.grad * first, alpha=group["lr"])
        group["betas"] = first * 0.99, second
{KNOWN.replace('{"lr"', '{"betas": (1.0, 0.9), "lr"')}
"""
INFINITE = f"""
    def move(self, parameter, group, state):
        state.setdefault("least", torch.tensor(float("inf")))
        state["least"] = torch.minimum(state["least"], parameter.grad.norm())
        parameter.sub_(parameter.grad / (1 + state["least"]), alpha=group["lr"])
        state["never"] = torch.tensor(float("inf"))
{KNOWN}
"""
METHOD = """
import random
import numpy as np
import torch
from pinmem_core.methods.aggregate import Aggregate
from pinmem_core.methods.base import StepResult
from pinmem_core.methods.losses import Losses, training_losses
class Added(Aggregate):
    memory = "none"
    def losses(self, context):
        context.segmenter.train()
        losses = super().losses(context)
        return Losses(losses.terms, losses.total * self.factor(context))
"""
RANDOM = """
    def factor(self, context):
        return random.random() + np.random.rand()
METHODS = {"added": Added}
"""
STATE = """
    def setup(self, segmenter):
        self.seen = torch.full((4,), float("inf"))
    def factor(self, context):
        self.seen[context.iteration % 4] = 1 / (1 + context.iteration)
        return self.seen.min()
    def state_dict(self):
        return {"head.seen": self.seen, "first": self.seen[:2]}
    def load_state_dict(self, state):
        self.seen.copy_(state["head.seen"])
METHODS = {"added": Added}
"""
NETWORK = """
    def setup(self, segmenter):
        segmenter.head = torch.nn.Linear(19, 1)
    def factor(self, context):
        images = context.batch.all()[0]
        return context.segmenter.head(context.segmenter(images).mean((2, 3))).sigmoid().mean()
METHODS = {"added": Added}
"""


def weights_of(config, folder, stop_after=None):
    done = []

    def stop():
        done.append(1)
        return len(done) == stop_after

    try:
        result = train(config, folder, stop=stop)
    except StoppedRunError:
        result = resume(folder)
    return load_file(result.checkpoint / WEIGHTS)


def require_equal(config, tmp_path):
    straight = weights_of(config, tmp_path / "straight")
    again = weights_of(config, tmp_path / "resumed", stop_after=2)
    assert all(torch.equal(value, again[name]) for name, value in straight.items())


@pytest.mark.parametrize("text", [TWO_KINDS, SHRINKING_BETAS, INFINITE])
def test_the_state_of_an_optimizer_is_resumed(text, add_plugin, tmp_path):
    add_plugin(pinmem_core.training.optimizers, OPTIMIZER + text)
    require_equal(small_config(method="aggregate", optim__name="added"), tmp_path)


@pytest.mark.parametrize("text", [RANDOM, STATE, NETWORK])
def test_the_state_of_a_method_is_resumed(text, add_plugin, tmp_path):
    add_plugin(pinmem_core.methods, METHOD + text)
    require_equal(small_config(method="added"), tmp_path)
    assert load(tmp_path / "straight").label_space.name == "cityscapes-19"


MOVE = """
    def move(self, parameter, group, state):
        parameter.sub_(parameter.grad)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{MOVE}        group['d'] = parameter.sum()\n{KNOWN}", "tensor as 'd' of a parameter gr"),
        (f"{MOVE}        group['d'] = float('inf')\n{KNOWN}", "the number inf as 'd' of a param"),
        (f"{MOVE}        self.state['all']['k'] = 1\n{KNOWN}", "a state that belongs to no param"),
        (f"{MOVE}        state['h'] = [parameter]\n{KNOWN}", "a list as the state 'h'"),
        (f"{MOVE}        state['a/b'] = 1\n{KNOWN}", "a state under the name 'a/b'"),
        ("    pass\nOPTIMIZERS = {'added': lambda *_: 5}", "is a int, no torch.optim.Optimizer"),
        (
            "    pass\nOPTIMIZERS = {'added': lambda groups, _: torch.optim.LBFGS(groups)}",
            "needs arguments in 'step'",
        ),
        (
            "    pass\nOPTIMIZERS = {'added': lambda groups, _: Added(groups[0]['params'], {})}",
            "lacks 'lr_scale' or 'weight_decay'",
        ),
    ],
)
def test_an_optimizer_that_a_run_cannot_use_is_refused(text, message, add_plugin, tmp_path):
    add_plugin(pinmem_core.training.optimizers, OPTIMIZER + text)
    config = small_config(method="aggregate", optim__name="added", checkpoint__every=99)
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")


ONE = "    factor = lambda *_: 1\nMETHODS = {'added': Added}\n"
STEP = "    def step(self, context):\n        losses = self.losses(context)\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"    def step(self, context): pass\n{ONE}", "returns no StepResult with losses"),
        (f"    def step(self, context): return StepResult({{}})\n{ONE}", "returns no StepResult"),
        (f"{STEP}        return StepResult({{'train': losses}})\n{ONE}", "computes no gradients"),
        (
            f"{STEP}        return StepResult({{'train': Losses({{}}, torch.ones(1))}})\n{ONE}",
            "no tensor of a single value",
        ),
        (
            f"{STEP}        return StepResult({{'a': Losses({{'b': 1.0}}, losses.total)}})\n{ONE}",
            "no tensor of a single value",
        ),
        (f"    def state_dict(self): return {{'a': torch.ones(1)}}\n{ONE}", "no 'load_state_dict'"),
        (
            "    load_state_dict = lambda *_: None\n"
            f"    def state_dict(self): return {{'a': 1}}\n{ONE}",
            "'a' in the state of the method 'added' is a int",
        ),
        (
            "    count = 1\n    load_state_dict = lambda *_: None\n"
            "    def factor(self, context): self.count += 1; return 1\n"
            "    def state_dict(self): return {'a': torch.ones(self.count)}\n"
            "METHODS = {'added': Added}\n",
            r"'a' has the shape \(2,\) instead of \(1,\)",
        ),
        (
            f"    def setup(self, segmenter): segmenter.auxiliary = None\n{ONE}",
            "changes 'auxiliary.* of the network in 'setup'",
        ),
    ],
)
def test_a_method_that_a_run_cannot_use_is_refused(text, message, add_plugin, tmp_path):
    add_plugin(pinmem_core.methods, METHOD + text)
    with pytest.raises(ConfigError, match=message):
        train(small_config(method="added", checkpoint__every=99), tmp_path / "run")
