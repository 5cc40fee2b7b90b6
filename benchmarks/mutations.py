"""Modules and their own tests → share of small faults, a seeded sample of them, that these tests notice.

A fault is one change of the kind that slips into code: a comparison turned round, a sign, a constant, a statement or a
keyword argument left out. Each is written into a copy of the repository and tested in a process that has the heavy
imports behind it. Runs that take their time to be killed (`kill_and_go_on`) are left out.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = {
    "pretraining/trainer.py": ("trainers/test_pretraining_rules.py", "trainers/test_pretraining.py"),
    "finetuning.py": ("trainers/test_finetuning.py",),
    "preprocessing.py": ("test_preprocessing.py", "test_planning_and_preprocessing.py"),
    "planning.py": ("test_planning.py", "test_planning_and_preprocessing.py"),
    "pretraining/patches.py": ("pretraining/test_patches.py",),
    "pretraining/figures.py": ("pretraining/test_figures.py", "pretraining/test_preview.py"),
    "pretraining/preview.py": ("pretraining/test_preview.py",),
    "importing/find.py": ("importing/test_find.py", "importing"),
    "transfer/into_plans.py": ("transfer/test_into_plans.py", "trainers/test_transferring.py"),
}
"""Module → its tests, in the order in which they run; those that do not exist yet are passed over."""

MAKES_READY = ("planning.py", "preprocessing.py")
"""Modules whose faults change the datasets that trainings start from; for others these are made once."""

LIMIT = 120
"""Seconds of processor time after which a fault counts as noticed: its tests hang."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
NOT_CODE = ("annotation", "returns", "decorator_list", "type_params", "bases")


def with_fields(node: Any, **fields: Any) -> Any:
    """A copy of a node with other fields."""
    changed = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def variants(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901 (one case for each kind of node)
    """What may stand in a node's place by mistake."""
    match node:
        case ast.Compare(ops=ops):
            for n, op in enumerate(ops):
                yield from (with_fields(node, ops=[*ops[:n], to(), *ops[n + 1 :]]) for to in COMPARISONS[type(op)])
        case ast.BinOp(op=ast.BitOr()):
            yield node.left
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield with_fields(node, op=OPERATORS[type(op)]())
        case ast.BoolOp(op=op):
            yield with_fields(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.IfExp():
            yield with_fields(node, body=node.orelse, orelse=node.body)
        case ast.Call():
            yield from variants_of_call(node)
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.If(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield with_fields(node, test=ast.UnaryOp(ast.Not(), test))
            if not node.orelse:
                yield ast.Pass()
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def variants_of_call(node: ast.Call) -> Iterator[ast.AST]:
    """A call without one of its keyword arguments, `min` for `max`, the other order."""
    for number, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield with_fields(node, keywords=node.keywords[:number] + node.keywords[number + 1 :])
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in ("min", "max"):
        yield with_fields(node, func=ast.Name("min" if name == "max" else "max"))
    if name == "sorted":
        yield ast.Subscript(node, ast.Slice(step=ast.UnaryOp(ast.USub(), ast.Constant(1))))


def places(tree: ast.AST) -> Iterator[tuple[Any, Any, ast.AST]]:
    """Where nodes of code hang, as (list or node, index or field, node), in the order of the file."""
    for name, value in ast.iter_fields(tree):
        if name not in NOT_CODE:
            where = value if isinstance(value, list) else tree
            for key, node in enumerate(value) if isinstance(value, list) else [(name, value)]:
                if isinstance(node, ast.AST):
                    yield where, key, node
                    yield from places(node)


def faults(source: str) -> list[dict[str, Any]]:
    """Every fault of a module: line, what was there, what is there, the whole source."""
    tree, found = ast.parse(source), []
    for where, key, node in list(places(tree)):
        put = where.__setitem__ if isinstance(where, list) else lambda name, new, at=where: setattr(at, name, new)
        for variant in variants(node):
            put(key, variant)
            text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
            both = [" ".join(ast.unparse(one).split()) for one in (node, variant)]
            start = max(0, next((n for n, two in enumerate(zip(*both, strict=False)) if len(set(two)) > 1), 0) - 40)
            before, after = (one[start : start + 90] for one in both)
            found.append({"line": getattr(node, "lineno", 0), "before": before, "after": after, "source": text})
            put(key, node)
    return found


def run(tests: list[str], folder: Path) -> int:
    """Exit code of pytest on the copy in `folder`, in a process of its own; that of a process killed is negative."""
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        signal.alarm(20 * LIMIT)
        os._exit(pytest_main(["-x", "-k", "not kill_and_go_on", f"--basetemp={folder.parent / 'tmp'}", *tests]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def pytest_main(arguments: list[str]) -> int:
    """Run pytest in this process, which has not imported the package."""
    import pytest

    for name in [name for name in sys.modules if name.split(".")[0] in ("nnunet_genesis", "tests", "conftest")]:
        del sys.modules[name]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *arguments]))


def measure(module: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try a sample of a module's faults."""
    path, began = folder / "nnunet_genesis" / module, time.time()
    source = path.read_text()
    tests = [f"tests/{name}" for name in TESTS[module] if (folder / "tests" / name).exists()]
    everything = faults(source)
    sample = random.Random(f"{seed}/{module}").sample(everything, min(count, len(everything)))
    if run(tests, folder):
        raise SystemExit(f"The tests of {module} fail as they are: {' '.join(tests)}")
    survivors = []
    for fault in sample:
        path.write_text(fault.pop("source"))
        if run(tests, folder) == 0:
            survivors.append(fault)
            print(f"  survives, line {fault['line']}: {fault['before']}  ->  {fault['after']}", flush=True)
    path.write_text(source)
    facts = {"module": module, "faults": len(everything), "tried": len(sample), "survivors": survivors}
    print(f"| {module} | {len(everything)} | {len(sample)} | {len(sample) - len(survivors)} | "
          f"{1 - len(survivors) / len(sample):.0%} | {time.time() - began:.0f} s |", flush=True)  # fmt: skip
    return facts


def main() -> None:
    """Measure the modules named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="of nnunet_genesis/ (all that are known)")
    parser.add_argument("--count", type=int, default=40, help="faults per module (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv"))
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        sys.path[:] = [entry for entry in sys.path if Path(entry) not in (REPOSITORY, REPOSITORY / "benchmarks")]
        pytest_main(["--collect-only", "-qqq", "tests"])
        for module in sorted(arguments.modules, key=lambda name: name in MAKES_READY, reverse=True):
            if module not in MAKES_READY:
                make_ready(folder)
            results.append(measure(module, arguments.count, arguments.seed, folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def make_ready(folder: Path) -> None:
    """Make the datasets of the fixture `ready_once` once, and let the copy's tests use them."""
    kept, maker, shared = folder.parent / "ready", folder / "tests" / "test_ready.py", folder / "tests" / "conftest.py"
    if kept.exists():
        return
    maker.write_text(f"import shutil\ndef test_ready(ready_once): shutil.copytree(ready_once, {str(kept)!r})\n")
    if run([str(maker)], folder):
        raise SystemExit("The fixture ready_once fails.")
    maker.unlink()
    made = f'\n@pytest.fixture(scope="session")\ndef ready_once():\n    return Path({str(kept)!r})\n'
    shared.write_text(shared.read_text() + made)


if __name__ == "__main__":
    main()
