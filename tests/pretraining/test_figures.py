"""Pictures: which image stands where, in which greys, and what is written beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_genesis.pretraining.figures import corruption_sheet, pretraining_progress, restoration_sheet


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Figure, np.ndarray]]:
    """Draw a picture; the figure that was saved, with its axes still in place, and the pixels of the file."""

    def draw(function: Callable[..., None], *arguments: object, **options: object) -> tuple[Figure, np.ndarray]:
        saved: list[Figure] = []
        savefig = Figure.savefig
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), savefig(self, *a, **k))[1])
            function(*arguments, path=tmp_path / "picture.png", **options)
        (figure,) = saved
        assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
        return figure, matplotlib.image.imread(tmp_path / "picture.png")[..., :3]

    return draw


def content(ax) -> np.ndarray:
    """What an axes shows, with NaN for what it leaves out."""
    (image,) = ax.images
    return np.ma.filled(image.get_array().astype(float), np.nan)


def pixels(ax, picture: np.ndarray, row: float, column: float) -> np.ndarray:
    """RGB of the picture at a place of an axes, in data coordinates."""
    x, y = ax.transData.transform((column, row))
    scale = picture.shape[1] / ax.figure.bbox.width
    return picture[round(picture.shape[0] - y * scale), round(x * scale)]


def rows_of(shape: tuple[int, ...], count: int = 2) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.normal(10 * row, 1, shape) for _ in range(3)) for row in range(count)]


@pytest.mark.parametrize(("shape", "central"), [((2, 5, 8, 9), 2), ((2, 4, 8, 9), 2), ((1, 8, 9), None)])
def test_restored_patches_stand_in_the_columns_that_name_them(drawn, shape, central):
    rows = rows_of(shape)
    figure, _ = drawn(restoration_sheet, rows, ["case7", "case3"], "the title")
    axes = np.array(figure.axes).reshape(2, 4)
    assert [ax.get_title() for ax in axes[0]] == ["original", "corrupted", "restored", "|restored - original|"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["case7", "case3"]
    assert figure.get_suptitle() == "the title"
    for patch, across in zip(rows, axes, strict=True):
        original, corrupted, restored = (image[0] if central is None else image[0, central] for image in patch)
        low, high = np.percentile(original, (0.5, 99.5))
        for ax, image in zip(across, (original, corrupted, restored, np.abs(restored - original)), strict=True):
            np.testing.assert_allclose(content(ax), image, rtol=1e-5, atol=1e-5)
            assert (list(ax.get_xticks()), list(ax.get_yticks())) == ([], [])
        for ax in across[:3]:
            assert ax.images[0].get_clim() == pytest.approx((low, high), rel=1e-5)
            assert ax.images[0].get_cmap().name == "gray"
        assert across[3].images[0].get_clim() == pytest.approx((0, (high - low) / 2), rel=1e-5)
        assert across[3].images[0].get_cmap().name == "inferno"


def test_padding_stays_white_in_every_column(drawn):
    patch = tuple(np.linspace(0, 1, 8 * 9).reshape(1, 8, 9) * scale for scale in (1.0, 0.9, 0.8))
    patch[0][:, :3] = np.nan
    patch[1][:, :3] = 0  # as the network sees it
    figure, picture = drawn(restoration_sheet, [patch], ["case"], "title")
    for ax in figure.axes:
        assert (pixels(ax, picture, 1, 4) == 1).all()
        assert (pixels(ax, picture, 5, 4) < 1).any()
        assert np.isnan(content(ax)[:3]).all()
        assert np.isfinite(content(ax)[3:]).all()


@pytest.mark.parametrize(("fill", "window"), [(np.nan, (0, 1)), (3.0, (3, 3))])
def test_patches_without_contrast_can_be_drawn(drawn, fill, window):
    empty = np.full((1, 4, 4), fill)
    figure, _ = drawn(restoration_sheet, [(empty, empty * 0, empty * 0)], ["case"], "title")
    assert figure.axes[3].images[0].get_clim() == pytest.approx((0, max(window[1] - window[0], 1e-6) / 2))
    if np.isnan(fill):
        assert figure.axes[0].images[0].get_clim() == window


@pytest.mark.parametrize("channel", [0, 1])
def test_corruptions_stand_below_their_headings_and_beside_their_names(drawn, channel):
    rng = np.random.default_rng(1)
    patches = [[rng.normal(row, 1, (2, 5, 8, 9)) for _ in range(4)] for row in range(3)]
    groups = {"": ["original"], "alone": ["one", "two"], "mixed": ["three"]}
    names = ["case0", "a case with a name longer than its row", "case2"]
    figure, _ = drawn(corruption_sheet, patches, groups, names, "the title", channel=channel)
    axes = np.array(figure.axes).reshape(3, 4)
    for patch, across in zip(patches, axes, strict=True):
        window = np.percentile(patch[0][channel, 2], (0.5, 99.5))
        for image, ax in zip(patch, across, strict=True):
            np.testing.assert_allclose(content(ax), image[channel, 2], rtol=1e-5)
            assert ax.images[0].get_clim() == pytest.approx(tuple(window), rel=1e-5)
            assert list(ax.get_xticks()) == []
    boxes = [[ax.get_position() for ax in across] for across in axes]
    for across in boxes:
        assert len({box.y0 for box in across}) == 1
        for left, right in itertools.pairwise(across):
            assert left.x1 < right.x0
    assert boxes[0][0].y0 > boxes[1][0].y1 > boxes[1][0].y0 > boxes[2][0].y1 > boxes[2][0].y0 >= 0
    assert boxes[0][-1].x1 < 1
    # two columns of a group stand closer than two groups
    assert boxes[0][2].x0 - boxes[0][1].x1 < boxes[0][1].x0 - boxes[0][0].x1
    places = {text.get_text(): text.get_position() for text in figure.texts}
    for number, heading in enumerate(["original", "one", "two", "three"]):
        box = boxes[0][number]
        assert places[heading][0] == pytest.approx((box.x0 + box.x1) / 2)
        assert box.y1 < places[heading][1] < places["alone"][1] < places["the title"][1] <= 1
    assert places["alone"][0] == pytest.approx((boxes[0][1].x0 + boxes[0][2].x1) / 2)
    assert places["mixed"][0] == pytest.approx(places["three"][0])
    labels = [(text.get_text(), text) for text in figure.texts if text.get_rotation() == 90]
    for (label, text), name, (box, *_) in zip(labels, names, boxes, strict=True):
        assert label == name or (label[0] == "…" and name.endswith(label[1:]) and len(label) > 8)
        assert text.get_position()[1] == pytest.approx((box.y0 + box.y1) / 2)
        extent = text.get_window_extent()
        assert extent.height <= box.height * figure.bbox.height * 1.05
        assert 0 <= extent.x0 < extent.x1 < box.x0 * figure.bbox.width


@pytest.mark.parametrize(("shape", "ratio"), [((1, 12, 12), 1), ((1, 2, 12), 0.4), ((1, 30, 10), 2), ((1, 8, 10), 0.8)])
def test_thin_slices_are_stretched_and_long_ones_cut_short(drawn, shape, ratio):
    patches = [[np.random.default_rng(0).normal(size=shape)]] * 2
    figure, _ = drawn(corruption_sheet, patches, {"": ["original"]}, ["a", "b"], "title")
    for ax in figure.axes:
        box = ax.get_window_extent()
        assert box.height / box.width == pytest.approx(ratio, rel=0.02)


def test_voxels_that_are_not_finite_are_white_in_both_sheets_of_corruptions(drawn):
    image = np.linspace(0, 1, 100).reshape(1, 10, 10)
    holed = image.copy()
    holed[:, 4:8, 4:8] = np.nan
    figure, picture = drawn(corruption_sheet, [[image, holed]], {"": ["a", "b"]}, ["case"], "title")
    whole, hole = figure.axes
    assert (pixels(whole, picture, 5.5, 5.5) < 0.9).all()
    assert (pixels(hole, picture, 5.5, 5.5) == 1).all()


def test_progress_draws_each_quantity_under_its_name(drawn):
    names = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps", "restoration_mse",
             "restoration_psnr", "copy_mse", "mean_mse")  # fmt: skip
    log = {name: list(np.random.default_rng(number).uniform(1, 2, 3)) for number, name in enumerate(names)}
    log["epoch_start_timestamps"] = [10.0, 20.0, 30.0, 45.0]  # the next epoch has begun
    log["epoch_end_timestamps"] = [13.0, 24.0, 35.0]
    figure, _ = drawn(pretraining_progress, log)
    shown = {line.get_label(): (ax, list(line.get_ydata())) for ax in figure.axes for line in ax.lines}
    expected = {
        "training loss": "train_losses", "validation loss": "val_losses", "restored": "restoration_mse",
        "baseline: copy the corrupted patch": "copy_mse", "baseline: predict the patch mean": "mean_mse",
        "PSNR (right axis)": "restoration_psnr", "learning rate": "lrs",
    }  # fmt: skip
    assert {label: values for label, (_, values) in shown.items()} == {
        label: log[name] for label, name in expected.items()
    } | {"epoch duration": [3.0, 4.0, 5.0]}
    labels = ["restoration loss", "validation MSE", "time [s]", "learning rate", "validation PSNR [dB]"]
    assert [ax.get_ylabel() for ax in figure.axes] == labels
    assert shown["training loss"][0] is shown["validation loss"][0] is figure.axes[0]
    assert shown["restored"][0] is shown["baseline: copy the corrupted patch"][0] is figure.axes[1]
    assert shown["PSNR (right axis)"][0] is figure.axes[4]
    assert figure.axes[2].get_ylim()[0] == 0
    assert figure.axes[3].get_xlabel() == "epoch"
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert list(itertools.chain(*legends)) == [line.get_label() for ax in figure.axes for line in ax.lines]
    one, other = (figure.axes[n].get_legend().get_window_extent() for n in (1, 4))
    assert not one.overlaps(other)
