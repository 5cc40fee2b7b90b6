"""The faults that measure the tests: each is one change, and compiles."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.conftest import REPOSITORY

SOURCE = '''
"""Docstring."""
LIMIT = 3

def f(a: int = 1, *, b: bool = True) -> int | None:
    """Docstring."""
    if a < LIMIT and a:
        return max(a, 2.5)
    a += not b
    for name in sorted({"x": 1} | {}, key=len):
        print(name)
    return a - 1 if b else None
'''


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.delitem(sys.modules, "small_faults", raising=False)
    from small_faults import faults

    return faults


def test_every_kind_of_slip_is_made_once_in_its_place(faults):
    made = {(one["lines"], one["before"], one["after"]) for one in faults(SOURCE)}
    assert len(made) == len(faults(SOURCE))
    assert made >= {
        ((3, 3), "3", "4"), ((5, 5), "1", "2"), ((5, 5), "True", "False"),
        ((7, 7), "a < LIMIT", "a <= LIMIT"), ((7, 7), "a < LIMIT", "a >= LIMIT"), ((9, 9), "not b", "b"),
        ((7, 7), "a < LIMIT and a", "a < LIMIT or a"), ((8, 8), "max(a, 2.5)", "min(a, 2.5)"),
        ((8, 8), "2.5", "5.0"), ((8, 8), "return max(a, 2.5)", "return None"), ((9, 9), "a += not b", "pass"),
        ((10, 10), "{'x': 1} | {}", "{'x': 1}"), ((11, 11), "print(name)", "pass"), ((12, 12), "a - 1", "a + 1"),
        ((12, 12), "a - 1 if b else None", "None if b else a - 1"),
    }  # fmt: skip
    assert {after for _, _, after in made if "sorted" in after} == {
        "sorted({'x': 1} | {}, key=len)[::-1]", "sorted({'x': 1} | {})"
    }  # fmt: skip
    assert not [one for one in made if "Docstring" in one[1] or "int | None" in one[1]]
    needs_a_call = {one["lines"][0] for one in faults(SOURCE) if one["inside"]}
    assert needs_a_call == {7, 8, 9, 10, 11, 12}


@pytest.mark.parametrize("module", ["planning.py", "pretraining/patches.py"])
def test_faults_of_real_modules_compile_and_differ(faults, module):
    source = (REPOSITORY / "nnunet_genesis" / module).read_text()
    made = [one["source"] for one in faults(source)]
    assert len(set(made)) == len(made) > 50
    assert ast.unparse(ast.parse(source)) not in made
    for one in made[::10]:
        compile(one, module, "exec")
