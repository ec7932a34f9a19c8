"""Mutation testing: how many small faults, put into a module one at a time, do its tests find?

`python tests/mutation.py` runs the areas of `mutation.yaml`. No file changes: a process that is
forked after the slow imports compiles the mutant where it would compile the file.
"""

import argparse
import ast
import copy
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

TESTS = Path(__file__).parent
SWAPS: Any = [
    (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot), (ast.And, ast.Or),
    (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.LShift, ast.RShift), (ast.BitAnd, ast.BitOr),
]  # fmt: skip
OTHERS: Mapping[Any, Sequence[Any]] = {
    **{a: (b,) for a, b in SWAPS}, **{b: (a,) for a, b in SWAPS},
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.FloorDiv: (ast.Mult,),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """A module with one change, and the line before and after it."""

    module: str
    before: str
    after: str
    source: str


def changed(node: ast.AST, **fields: Any) -> Any:
    """Return a copy of a node with other fields."""
    copied = copy.copy(node)
    copied.__dict__.update(fields)
    return copied


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may replace a node. Texts stay, and so do unions of types."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.Compare(ops=[operator]):
            yield from (changed(node, ops=[other()]) for other in OTHERS[type(operator)])
        case ast.BinOp(op=ast.BitOr(), left=ast.Name() | ast.BinOp(op=ast.BitOr()) as left) if (
            isinstance(left, ast.Name) or isinstance(node.right, ast.Name | ast.Constant)
        ):
            return
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator):
            yield from (changed(node, op=other()) for other in OTHERS.get(type(operator), ()))
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare):
            yield changed(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=[_]):
            yield changed(node, ifs=[])
        case ast.Call(func=function, args=args, keywords=keywords):
            if len({type(arg) for arg in args[:2]}) < len({ast.dump(arg) for arg in args[:2]}):
                yield changed(node, args=[args[1], args[0], *args[2:]])
            if isinstance(function, ast.Name) and function.id in NAMES:
                yield changed(node, func=ast.Name(NAMES[function.id]))
            for keyword in keywords:
                yield changed(node, keywords=[other for other in keywords if other is not keyword])
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield changed(node, value=None)
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.With(items=items, body=body):
            for item in items:
                others = [other for other in items if other is not item]
                yield changed(node, items=others) if others else ast.If(ast.Constant(1), body, [])


def mutants(module: str, text: str) -> Iterator[Mutant]:
    """Yield all mutants of a module."""
    tree = ast.parse(text)
    lines = ast.unparse(tree).splitlines()
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            nodes = value if isinstance(value, list) else [value]
            for place, node in enumerate(nodes):
                for variant in variants(node) if isinstance(node, ast.AST) else ():
                    others = [*nodes[:place], variant, *nodes[place + 1 :]]
                    setattr(parent, field, others if nodes is value else variant)
                    source = ast.unparse(tree)
                    pairs = zip(lines, source.splitlines(), strict=False)
                    before, after = next((b.strip(), a.strip()) for b, a in pairs if b != a)
                    yield Mutant(module, before, after, source)
                    setattr(parent, field, value)


def run(mutant: Mutant | None, arguments: Sequence[str], seconds: int) -> tuple[str, float]:
    """Run pytest in a fork; return what becomes of the mutant, and the CPU seconds."""
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.alarm(10 * seconds)
        read = SourceFileLoader.get_code

        def get_code(loader: SourceFileLoader, name: str) -> Any:
            if mutant and name == mutant.module:
                return compile(mutant.source, loader.path, "exec")
            return read(loader, name)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
        os._exit(pytest.main(["-xqp", "no:cacheprovider", *arguments]))
    _, status, usage = os.wait4(child, 0)
    outcome = "timed out" if os.WIFSIGNALED(status) else "killed" if status else "survived"
    return outcome, usage.ru_utime + usage.ru_stime


def killed_of_area(config: Any, name: str, sample: int, seed: int) -> float:
    """Run mutants of an area, print survivors and counts, and return the fraction killed."""
    area, known = config["areas"][name], config["equivalent"]
    tests = [str(TESTS / test) for test in area["tests"]]
    unchanged, clean = run(None, tests, 600)
    if unchanged != "survived":
        sys.exit(f"{name}: the tests fail without a mutant.")
    counts = Counter[str]()
    for module in area["modules"]:
        every = [*mutants(module, (TESTS.parent / f"{module.replace('.', '/')}.py").read_text())]
        counts["mutants"] += len(every)
        for mutant in random.Random(seed).sample(every, min(sample, len(every))):
            reason = known.get(mutant.before, {}).get(mutant.after)
            outcome = "equivalent" if reason else run(mutant, tests, 10 + round(3 * clean))[0]
            counts[outcome] += 1
            if outcome == "survived":
                print(f"{module}\n- {mutant.before}\n+ {mutant.after}", flush=True)
    killed = counts["killed"] + counts["timed out"]
    killed /= killed + counts["survived"]
    print(f"{name}: {dict(counts)}: {killed:.1%}; tests take {clean:.1f} s", flush=True)
    return killed


def main() -> int:
    """Run the areas; return 1 if the tests of one find less than 85 % of its mutants."""
    config = yaml.safe_load((TESTS / "mutation.yaml").read_text("utf-8"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("areas", nargs="*", default=[*config["areas"]])
    parser.add_argument("--sample", type=int, default=60, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pytest.main(["-p", "no:terminal", "-o", "addopts=", "--co", str(TESTS / "evaluation")])
    for name, module in [*sys.modules.items()]:
        ours = name.startswith("pinmem") or str(TESTS) in str(getattr(module, "__file__", ""))
        if ours and name != "__main__":
            del sys.modules[name]  # what it imported stays, and costs a fork no time
    return (
        min(killed_of_area(config, a, options.sample, options.seed) for a in options.areas) < 0.85
    )


if __name__ == "__main__":
    sys.exit(main())
