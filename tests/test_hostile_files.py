"""A hundred damaged and malicious files: one line or a result, nothing run, nothing written elsewhere, no memory eaten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import cases
from tests.hostile.cases import KINDS, run_case
from tests.hostile.originals import make_world

SEED = 20_261_124


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("hostile") / "world")


def test_unchanged_files_of_every_kind_are_worked_with(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise the cases below would all be refused for one and the same reason."""
    monkeypatch.setattr(cases, "_mutate", lambda path, kind, rng: "none")
    for number, (kind, _, _) in enumerate(KINDS):
        outcome = run_case(world, tmp_path / "case", SEED, number)
        # the original 3D U-Net has no counterpart in the target's network
        expected = 1 if kind.startswith("Models Genesis") and outcome.command == "transfer" else 0
        assert (outcome.code, outcome.broken) == (expected, ()), outcome


@pytest.mark.parametrize("part", range(4))
def test_changed_ones_are_refused_in_one_line_or_worked_with(world: Path, tmp_path: Path, part: int):
    """Numbers walk through the kinds; run one again with `benchmarks/hostile_files.py --seed SEED --only NUMBER`."""
    broken = []
    for number in range(25 * part, 25 * part + 25):
        outcome = run_case(world, tmp_path / "case", SEED, number)
        broken += [outcome] if outcome.broken else []
    assert not broken, "\n".join(map(str, broken))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("open('../elsewhere', 'w').close()", "wrote elsewhere"),
        ("import hostile_trap", "wrote canary/ran"),
        ("raise KeyError('a')", "exit code None"),
        ("raise SystemExit(3)", "exit code 3"),
        ("print('one\\ntwo', file=sys.stderr)\n    return 1", "0 lines of error"),
        ("print('nnunet_genesis \\x1b[2J', file=sys.stderr)", "control characters on standard error"),
        ("b'a' * 2**31", "took"),
    ],
)
def test_every_rule_can_be_broken(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, rule: str
):
    place: dict[str, object] = {}
    exec(f"import sys\ndef main(arguments):\n    {content}\n    return 0", place)
    monkeypatch.setattr(cases.cli, "main", place["main"])
    outcome = run_case(world, tmp_path / "case", SEED, 0)
    assert any(found.startswith(rule) for found in outcome.broken), outcome
    assert not (tmp_path / "case").exists()
