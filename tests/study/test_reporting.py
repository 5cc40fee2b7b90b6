"""The report of a study: what lies in its folder, that it is whole, and that names in files stay text."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_genesis.study.design import FILE, Study
from nnunet_genesis.study.results import read_results
from tests.conftest import run_genesis
from tests.study.synthetic import write_synthetic

VOID = {"meta", "img", "br", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Refuses what is not closed in order, and keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("reported")
    study = write_synthetic(folder, {"scratch": 0.0, "genesis": 0.1, "masking": 0.0}, counts=[4, 8, 16])
    assert run_genesis("study", "report", folder) == 0
    return study, folder


def test_everything_is_there(reported):
    names = {path.name for path in (reported[1] / "report").iterdir()}
    assert names == {"report.html", "label_curve.png", "label_curve.svg", "convergence.png", "convergence.svg",
                     "runs.csv", "cases.csv", "curves.csv", "comparisons.csv"}  # fmt: skip


def test_the_page_is_whole_and_loads_nothing(reported):
    page = read_page(reported[1] / "report" / "report.html")
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert len(loaded) == 2
    assert all(value.startswith("data:image/svg+xml;base64,") for value in loaded)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object", "embed", "base"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "http" not in "".join(page.text)
    assert all(alt for tag, name, alt in page.attributes if (tag, name) == ("img", "alt"))


def test_the_page_says_what_the_files_say(reported):
    study, folder = reported
    page = read_page(folder / "report" / "report.html")
    text = " ".join(page.text)
    assert "genesis: better than scratch (all label counts, 4 labels, 8 labels, 16 labels)" in text
    assert "masking: no difference shown against scratch" in text
    assert "45 of 45 runs finished, 0.45 hours of computing" in text
    for words in (*study.test, *study.arms, "numpy 1", "cpu: 45 runs", "all 8 comparisons", "random weights"):
        assert words in text, words
    scores = read_results(study, folder).scores["HD95"]
    values = scores[1, 2, :, :, 1].mean(axis=1)
    assert f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" in text
    case = read_results(study, folder).scores["Dice"][:, 0, :, 7].mean(axis=(1, 2))
    cells = [f"{value:.3f}" for value in case] + [f"{d:+.3f}" for d in case[1:] - case[0]]
    assert re.sub(r"\s+", " ", text).count(" ".join(["case07", *cells]).replace("+0.000", "0.000")) == 1


def test_csv_files_hold_every_number(reported):
    study, folder = reported
    results = read_results(study, folder)
    runs, cases, curves, comparisons = (rows(folder / "report" / f"{name}.csv")
                                        for name in ("runs", "cases", "curves", "comparisons"))  # fmt: skip
    assert len(runs) == 45 * 3 * 3
    assert len(cases) == 45 * 12 * 2
    assert len(curves) == 45 * 20
    assert len(comparisons) == 2 * 4 * 3 * 3
    (row,) = (r for r in cases if (r["run"], r["case"], r["label"]) == ("masking_n8_s3", "case05", "posterior"))
    for metric, scores in results.scores.items():
        assert float(row[metric]) == pytest.approx(scores[2, 1, 3, 5, 1], abs=1e-8)
    (row,) = (r for r in runs if (r["run"], r["metric"], r["label"]) == ("masking_n8_s3", "NSD", "mean"))
    assert float(row["value"]) == pytest.approx(results.scores["NSD"][2, 1, 3].mean(), abs=1e-8)
    assert (row["arm"], row["labeled"], row["seed"], row["seconds"]) == ("masking", "8", "3", "36")
    (row,) = (r for r in runs if (r["run"], r["metric"], r["label"]) == ("masking_n8_s3", "Dice", "anterior"))
    assert float(row["value"]) == pytest.approx(results.scores["Dice"][2, 1, 3, :, 0].mean(), abs=1e-8)
    family = [r for r in comparisons if r["p_holm"]]
    assert len(family) == 8
    assert all((r["metric"], r["label"]) == ("Dice", "") for r in family)
    assert {r["verdict"] for r in family if r["arm"] == "genesis"} == {"better"}


def test_the_same_study_has_the_same_report(reported, tmp_path):
    _, folder = reported
    assert run_genesis("study", "report", folder, "-o", tmp_path / "again" / "report") == 0
    for path in (folder / "report").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "report" / path.name).read_bytes(), path.name


def test_figures_show_something(reported):
    for name in ("label_curve", "convergence"):
        assert len(np.unique(imread(reported[1] / "report" / f"{name}.png").reshape(-1, 4), axis=0)) > 50


def test_an_unfinished_study(tmp_path, capsys):
    write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0, "masking": 0.0}, seeds=3)
    for name in ("genesis_n4_s0", "masking_n16_s1", "scratch_n16_s2"):
        (tmp_path / "results" / f"{name}.json").unlink()
        (tmp_path / "times" / f"{name}.json").unlink()
    for path in (tmp_path / "results").glob("masking_n4_*"):
        path.unlink()
    assert run_genesis("study", "report", tmp_path) == 0
    told = capsys.readouterr().out
    assert "unfinished: 6 of 18 runs are missing" in told
    text = " ".join(read_page(tmp_path / "report" / "report.html").text)
    assert "12 of 18 runs finished" in text
    assert "With 4 labels: not tested" in text
    assert len(rows(tmp_path / "report" / "curves.csv")) == 12 * 20


@pytest.mark.parametrize("options", [{"seeds": 1}, {"counts": [4]}, {"cases": 1}, {"epochs": 1}, {"labels": ["one"]}])
def test_small_studies(tmp_path, options):
    write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, **options)
    assert run_genesis("study", "report", tmp_path) == 0
    read_page(tmp_path / "report" / "report.html")


def test_arms_need_not_name_settings(tmp_path):
    write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, seeds=2, counts=[4], cases=2)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(content | {"arms": {"scratch": {}, "genesis": {"settings": {"a": 1}}}}))
    assert run_genesis("study", "report", tmp_path) == 0
    assert "own settings: a 1" in (tmp_path / "report" / "report.html").read_text()


def test_a_single_arm_is_compared_with_nothing(tmp_path):
    write_synthetic(tmp_path, {"scratch": 0.0}, seeds=2)
    assert run_genesis("study", "report", tmp_path) == 0
    assert "nothing is compared" in " ".join(read_page(tmp_path / "report" / "report.html").text)


def test_nothing_is_defined(tmp_path):
    study = write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, seeds=2, counts=[4])
    for run in study.runs():
        path = tmp_path / "results" / f"{run.name}.json"
        content = json.loads(path.read_text())
        for case in content["cases"].values():
            for label in case.values():
                label.update(Dice=None, NSD=None, HD95=None)
        content["curve"] |= {"dice": [None] * 20, "loss": [None] * 20}
        path.write_text(json.dumps(content))
    assert run_genesis("study", "report", tmp_path) == 0
    text = " ".join(read_page(tmp_path / "report" / "report.html").text)
    assert "genesis: not tested" in text
    assert "nan" not in text


MARKUP = "<script>alert(1)</script>\"'&\n\x1b[31m\ud800$\\frac{"


def test_names_in_files_stay_text(tmp_path, capsys):
    write_synthetic(tmp_path, {"scratch": 0.0, "genesis": 0.0}, labels=[MARKUP, "=1+1"], seeds=2)
    content = json.loads((tmp_path / FILE).read_text())
    content |= {"leaks": {"genesis": [MARKUP]}, "versions": {MARKUP: MARKUP},
                "fine_tuning": {MARKUP: MARKUP}, "dataset": "Dataset004_<b>X"}  # fmt: skip
    content["arms"]["genesis"] = {"checkpoint": f"/a/{MARKUP}", "settings": {MARKUP: MARKUP}, MARKUP: MARKUP}
    (tmp_path / FILE).write_text(json.dumps(content))
    assert run_genesis("study", "report", tmp_path) == 0
    assert "\x1b" not in capsys.readouterr().out
    path = tmp_path / "report" / "report.html"
    page = read_page(path)
    assert "<script" not in path.read_text()
    assert "<b>" not in path.read_text()
    assert "\x1b" not in path.read_text()
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "Leak: genesis has seen test cases" in "".join(page.text)
    assert "\x1b" not in (tmp_path / "report" / "cases.csv").read_text()
    assert {row["label"] for row in rows(tmp_path / "report" / "cases.csv")} >= {"'=1+1"}  # no formula


def test_what_cannot_be_reported(tmp_path, capsys):
    assert run_genesis("study", "report", tmp_path) == 1
    assert "Plan it first" in capsys.readouterr().err
    write_synthetic(tmp_path, {"scratch": 0.0}, seeds=1)
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "report"):
        assert run_genesis("study", "report", tmp_path, "-o", output) == 1
        assert "Name another folder" in capsys.readouterr().err
    (tmp_path / "results" / "scratch_n4_s0.json").write_text('{"run": 3}')
    assert run_genesis("study", "report", tmp_path) == 1
    assert "scratch_n4_s0.json" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: the page is not opened. Install chromium to check it.")
@pytest.mark.parametrize("width", [1200, 700])
def test_a_browser_shows_the_page(reported, tmp_path, width):
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}",
               "--enable-logging=stderr", f"--window-size={width},3000", f"--screenshot={tmp_path / 'page.png'}",
               (reported[1] / "report" / "report.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    image = imread(tmp_path / "page.png")[..., :3]
    assert image.shape == (3000, width, 3)
    ink = (image < 0.5).any(axis=2)
    assert 0.01 < ink.mean() < 0.5
    assert ink[:1000].any(axis=1).mean() > 0.3  # text at the top
    assert (image[:, -30:-17] > 0.9).all()  # between text and scroll bar: nothing flows out of the page
