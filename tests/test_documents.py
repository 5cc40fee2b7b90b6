"""What README and docs tell is what the code does: commands, flags, values, messages, files, tables."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.primus import primus_trainers

from nnunet_genesis.checkpoints.foreign import NETWORKS
from nnunet_genesis.cli import build_parser
from nnunet_genesis.cli_settings import FLAGS
from nnunet_genesis.commands import weights
from nnunet_genesis.commands.parsing import LEFT_OUT
from nnunet_genesis.corruption import RECIPES, Recipe
from nnunet_genesis.errors import GenesisError
from nnunet_genesis.networks.build import target_network
from nnunet_genesis.nnunet_dataset import read_dataset_json, read_plans
from nnunet_genesis.resources import plans_folder, trainers_folder
from nnunet_genesis.settings import CONVOLUTIONAL, OPTIMIZERS, TRANSFORMER, FineTuningSettings, PretrainingSettings
from nnunet_genesis.transfer.into_plans import MIN_COVERAGE, REPORT
from tests.conftest import REPOSITORY, run_genesis, use_folders, write_dataset
from tests.test_encoders import checkpoint
from tests.trainers.conftest import edit_plans

README = (REPOSITORY / "README.md").read_text()
PAGES = {"README.md": README} | {
    path.relative_to(REPOSITORY / "docs").as_posix(): path.read_text() for path in (REPOSITORY / "docs").rglob("*.md")
}
SETTINGS = PAGES["settings.md"]
MODULES = {path: path.read_text() for path in (REPOSITORY / "nnunet_genesis").rglob("*.py")}
EACH_PAGE = pytest.mark.parametrize("page", sorted(PAGES))


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


# commands and links


def commands_in(page: str) -> list[str]:
    """Commands of shell blocks, and those in the text that are whole."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines()]
    return lines + [span for span in re.findall(r"`([^`\n]+)`", page) if " -d " in span or span.startswith("bash ")]


@EACH_PAGE
def test_every_command_is_understood(page, capsys):
    for line in commands_in(PAGES[page]):
        program, *words = shlex.split(line.replace("…", " "), comments=True) or [""]
        if program == "nnunet_genesis":
            build_parser().parse_args(words)
        for trainer in re.findall(r"-tr (\w+)", line):
            nnunets_own = trainer == "nnUNetTrainer" or hasattr(primus_trainers, trainer)
            assert nnunets_own or (trainers_folder() / f"{trainer}.py").is_file(), line
        for template in re.findall(r"--template (\w+)", line):
            assert (plans_folder() / f"{template}.json").is_file() or template == "small", line
        if program in ("bash", "python"):
            script = REPOSITORY / words[0]
            assert script.is_file(), line
            refuse_unknown_flags(words, script.with_suffix(".py") if "--" in line else script)
        if program in STOCK:
            module = importlib.util.find_spec("nnunetv2").submodule_search_locations[0]  # type: ignore[union-attr]
            refuse_unknown_flags(words, Path(module) / STOCK[program])


STOCK = {
    "nnUNetv2_train": "run/run_training.py",
    "nnUNetv2_predict": "inference/predict_from_raw_data.py",
    "nnUNetv2_preprocess": "experiment_planning/plan_and_preprocess_entrypoints.py",
    "nnUNetv2_plan_and_preprocess": "experiment_planning/plan_and_preprocess_entrypoints.py",
}
"""Commands of nnU-Net → files with their flags."""


def refuse_unknown_flags(words: list[str], file: Path) -> None:
    for flag in (word for word in words if word.startswith("-") and word != "-m"):
        assert re.search(rf"""["']{flag}["']""", file.read_text()), f"{flag} is no flag in {file.name}"


def test_the_readme_names_the_versions_of_python_that_are_declared():
    declared = re.search(r'^requires-python = ">=(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"Python ≥ {declared[1]}," in README  # type: ignore[index]


def test_exit_codes_of_the_page(monkeypatch, capsys):
    told = dict(
        re.findall(r"(\d+): ([^.:]+)", PAGES["workflow.md"].partition("**Exit codes.**")[2].partition("```")[0])
    )
    assert set(told) == {"0", "1", "2", "130"}
    assert run_genesis("trainers") == 0
    for raised, code in ((GenesisError("wrong"), 1), (KeyboardInterrupt(), 130)):

        def fail(_: Any, raised: BaseException = raised) -> int:
            raise raised

        monkeypatch.setattr(weights, "_trainers", fail)
        assert run_genesis("trainers") == code
        assert capsys.readouterr().err.count("\n") == 1
    assert LEFT_OUT == 2
    with pytest.raises(SystemExit) as end:
        run_genesis("trainers", "--wrong")
    assert end.value.code == 2


def test_the_classification_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, network = checkpoint(tmp_path, "plain 3D", ["T1"])
    path.rename("checkpoint_final.pth")
    names: dict[str, Any] = {"image": torch.randn(2, 1, 8, 8, 16)}
    (program,) = blocks("python", PAGES["classification.md"])
    exec(program, names)
    assert names["classifier"](names["image"]).shape == (2, 2)
    assert names["vector"].shape == (2, names["encoder"].widths[-1])
    for ours, theirs in zip(names["features"], network.encoder(names["image"]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_readme_shows_the_whole_workflow_and_is_short():
    assert len(README.split()) < 900
    workflow = blocks("bash", README)[1].split("\n\n")[1].splitlines()
    order = [line.removeprefix("nnunet_genesis ").split()[0] for line in workflow]
    assert order == ["import", "plan", "preprocess", "preview", "nnUNetv2_train", "transfer", "nnUNetv2_train",
                     "nnUNetv2_predict", "export"]  # fmt: skip


def test_every_step_of_the_workflow_has_a_section_that_begins_with_its_command():
    workflow = blocks("bash", README)[1].split("\n\n")[1].splitlines()
    sections = PAGES["workflow.md"].split("\n## ")[1:]
    for line, section in zip(workflow, sections, strict=True):
        assert section.split("\n\n")[1] == f"```bash\n{line.split('  ')[0]}\n```"


def folder_of(page: str) -> Path:
    return REPOSITORY if page == "README.md" else (REPOSITORY / "docs" / page).parent


@EACH_PAGE
def test_local_links_lead_somewhere(page):
    folder = folder_of(page)
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        path = folder / target if target else folder / Path(page).name
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@EACH_PAGE
def test_footnotes_are_there_and_used(page):
    assert set(re.findall(r"\[\^(\w+)\](?!:)", PAGES[page])) == set(re.findall(r"^\[\^(\w+)\]:", PAGES[page], re.M))


def test_every_page_is_reached_from_the_readme():
    files = {(folder_of(page) / Path(page).name).resolve(): page for page in PAGES}
    seen, waiting = set(), {"README.md"}
    while waiting:
        seen.add(page := waiting.pop())
        links = re.findall(r"\]\(([\w/.]+\.md)[)#]", PAGES[page])
        found = {files.get((folder_of(page) / link).resolve(), page) for link in links}
        waiting |= found - seen
    assert seen == set(PAGES)


def test_files_that_the_pages_name_exist():
    """Those of the package, and those that commands write."""
    named = set(re.findall(r"\b[\w/]+\.py\b", PAGES["development.md"]))
    assert len(named) > 30
    missing = [name for name in named
               if not any((folder / name).is_file() for folder in (REPOSITORY / "nnunet_genesis", REPOSITORY,
                                                                   REPOSITORY / "benchmarks"))]  # fmt: skip
    assert not missing
    code = "\n".join(MODULES.values())
    for name in ("import_report.json", "restoration_summary.json", "restoration_final.png", "_preprocessing.json",
                 "checkpoint_best.pth", "dataset_fingerprint.json", REPORT):  # fmt: skip
        assert name in PAGES["workflow.md"], name
        assert name in code, name


def test_every_module_is_told_by_the_pages():
    rooms = PAGES["development.md"].split("## Rooms")[1].split("`benchmarks/")[0]
    told = {name.removesuffix(".py") for name in re.findall(r"`(\w+(?:\.py)?)`", rooms)}
    modules = {path.stem for path in MODULES}
    assert modules - {"__init__"} - told == set()
    strangers = told - modules - {path.parent.name for path in MODULES}
    assert strangers == set()


def test_each_way_through_the_rooms_is_a_few_lines():
    ways = blocks("text", PAGES["development.md"])
    assert len(ways) == 2
    assert all(len(way.splitlines()) <= 11 for way in ways)


# a transfer


BEGIN, END = "<!-- transfer: written by python -m tests.test_documents -->\n", "<!-- end of transfer -->"


def transfer_table(base: Path) -> str:
    """What `nnunet_genesis transfer` prints for the README's case, in a code block, without the paths at its end."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()), redirect_stdout(shown):
        use_folders(base, patch)
        write_dataset(base, 501, "Scans", 1, ("T1",), labeled=False)
        write_dataset(base, 4, "Target", 1, ("T1", "FLAIR"))
        assert run_genesis("plan", "-d", 501, "--template", "tiny") == 0
        assert run_genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
        plans, dataset_json = (
            read_plans("Dataset501_Scans", "nnUNetGenesisPlans"),
            read_dataset_json("Dataset501_Scans"),
        )
        network, _ = target_network(plans, "3d_fullres", dataset_json)
        arguments = {"plans": plans, "configuration": "3d_fullres", "dataset_json": dataset_json}
        content = {"network_weights": network.state_dict(), "init_args": arguments, "trainer_name": "nnUNetTrainer"}
        torch.save(content, base / "checkpoint_final.pth")
        where = "configurations__3d_fullres__architecture__arch_kwargs__"
        edit_plans(base / "nnUNet_preprocessed/Dataset004_Target/nnUNetPlans.json",
                   **{where + "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                      where + "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]})  # fmt: skip
        shown.truncate(shown.seek(0))
        assert run_genesis("transfer", base / "checkpoint_final.pth", "-d", 4, "-c", "3d_fullres") == 0
    return f"```text\n{shown.getvalue().partition('Wrote ')[0]}```\n"


def test_the_transfer_of_the_readme_is_what_the_command_prints(tmp_path):
    shown = README.partition(BEGIN)[2].partition(END)[0]
    assert shown == transfer_table(tmp_path), "write it again: python -m tests.test_documents"


# settings and messages


def flags_of(command: str) -> set[str]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {flag for flag in commands.choices[command]._option_string_actions if flag.startswith("--")} - {"--help"}


def told_in_table(heading: str) -> Iterator[tuple[str, list[str]]]:
    """Flag and its values, one for each column of values."""
    header, _, *rows = SETTINGS[SETTINGS.index(f"\n| {heading} |") :].strip().split("\n\n")[0].splitlines()
    columns = len(header.strip("|").split("|")) - 2
    for row in rows:
        names, *cells = row.strip("| ").split(" | ")
        flags = re.findall(r"`(--[\w-]+)`", names)
        values = [cell.strip("` ").split(", ") for cell in cells[:columns]]
        if any(len(each) != len(flags) for each in values):  # words with a comma
            values = [[cell] for cell in cells[:columns]]
        yield from ((flag, list(found)) for flag, *found in zip(flags, *values, strict=True))


def test_the_tables_of_settings_hold_every_setting_and_no_other():
    elsewhere = {"--like", "--template", "--like-plans", "--fold", "--network", "--drop-path-rate"}
    told = [flag for heading in ("`plan`", "recipe") for flag, _ in told_in_table(heading)]
    assert sorted(told) == sorted(flags_of("plan") - elsewhere)
    assert {flag for flag, _ in told_in_table("`transfer`")} == flags_of("transfer") - {
        "--from-scratch", "--to", "--fold", "--allow-leaks"
    }  # fmt: skip


def default(flag: str, holder: Any, prefix: str = "") -> Any:
    """The value of the setting that a flag sets."""
    name = {flag: setting for setting, flag in FLAGS.items()}.get(flag) or flag[2:].replace("-", "_")
    return getattr(holder, name.removeprefix(prefix))


def same(told: str, value: Any) -> bool:
    if isinstance(value, str):
        return told == value
    found = tuple(float(Fraction(part)) for part in told.split("\N{EN DASH}"))
    if isinstance(value, tuple):  # one number means both ends
        return (found[0], found[-1]) == pytest.approx(value)
    return found == pytest.approx((value,))


def test_the_tables_of_settings_hold_the_defaults():
    for flag, (value,) in told_in_table("`plan`"):
        if default(flag, PretrainingSettings()) is None:  # it follows from the network
            kinds = [PretrainingSettings(epochs=20).resolved(kind) for kind in (CONVOLUTIONAL, TRANSFORMER)]
            told = [part.replace("a twentieth of the epochs", "1") for part in value.split(" / ")]
            assert list(map(float, told)) == [default(flag, settings) for settings in kinds], flag
            continue
        assert (
            flag == "--recipe"
            or (
                flag in ("--exclude", "--dataset-weights")
                and value == "none"
                and default(flag, PretrainingSettings()) == ()
            )
            or same(value, default(flag, PretrainingSettings()))
        ), flag
    for flag, (value,) in told_in_table("`transfer`"):
        if flag in ("--warmup", "--resize-widths", "--new-heads", "--axes"):
            assert value in ("a twentieth of the epochs, at most 50", "off", "by kind of file")
        elif flag in ("--lr", "--weight-decay"):
            told = re.findall(r"([\d.]+) with `(\w+)`", value)
            assert {name: float(number) for number, name in told} == {
                name: default(flag, FineTuningSettings(optimizer=name).resolved()) for name in OPTIMIZERS
            }
        else:
            assert same(value, MIN_COVERAGE if flag == "--min-coverage" else default(flag, FineTuningSettings())), flag
    for flag, values in told_in_table("recipe"):
        for name, value in zip(("paper", "released"), values, strict=True):
            block = flag[2:].split("-")[0]
            holder = getattr(RECIPES[name], block, RECIPES[name])
            assert same(value, default(flag, holder, f"{block}_" if holder is not RECIPES[name] else "")), flag


def test_former_names_that_the_page_gives_are_those_that_are_read():
    told = dict(re.findall(r"`(\w+)` \(now\s+`(\w+)`\)", SETTINGS))
    kinds = (PretrainingSettings, FineTuningSettings, Recipe, *map(type, RECIPES["paper"].corruptions.values()))
    declared = [one for kind in kinds for one in fields(kind)]
    assert told == {one.metadata["formerly"]: one.name for one in declared if one.metadata.get("formerly")}


def texts_in(program: str) -> Iterator[str]:
    """Texts of a program, docstrings aside; what is filled in is left out."""
    tree = ast.parse(program)
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in (node for node in ast.walk(tree) if id(node) not in described):
        if isinstance(node, ast.JoinedStr):
            yield "…".join(part.value if isinstance(part, ast.Constant) else "" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_are_those_of_the_code():
    nnunet = Path(importlib.util.find_spec("nnunetv2").origin).parent / "utilities/find_objects.py"  # type: ignore[union-attr,arg-type]
    texts = {"ours": [text for program in MODULES.values() for text in texts_in(program)],
             "nnU-Net": list(texts_in(nnunet.read_text()))}  # fmt: skip
    rows = re.findall(r"^\| (`.+?) \| ", PAGES["messages.md"], re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        holder = texts["nnU-Net" if row.endswith("(nnU-Net)") else "ours"]
        for message in re.findall(r"`([^`]+)`", row):
            pattern = ".*".join(re.escape(part.strip()) for part in message.split("…"))
            assert any(re.search(pattern, text) for text in holder), message


def test_networks_that_are_named_but_not_read_are_those_of_the_code():
    (told,) = re.findall(r"\*\*Named, but not read\*\*.*?normalisation", PAGES["checkpoints.md"], re.DOTALL)
    for _, network in NETWORKS:
        name = re.sub(r"^a | \(.*|,.*", "", network)
        assert name in " ".join(told.split()), network


# measurements


def test_numbers_are_those_of_the_results():
    results = "\n".join(path.read_text() for path in (REPOSITORY / "benchmarks/results").glob("*.md"))
    page = PAGES["measurements.md"]
    for number in re.findall(r"\d+\.\d{2,}(?: ± \d\.\d+)?", page[: page.index("## Classification")]):
        assert number in results, number
    section = README[README.index("## What was measured") : README.index("## Citing")]
    for number in re.findall(r"\d+(?:\.\d+)?(?: ± \d\.\d+)?", section.replace(",", "")):
        assert number in page.replace(",", ""), number


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        written = README.partition(BEGIN)[0] + BEGIN + transfer_table(Path(folder)) + END + README.partition(END)[2]
    (REPOSITORY / "README.md").write_text(written)
