"""Every number in the settings has a range, whose ends are tried."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, fields

import pytest

from nnunet_genesis.corruption import Recipe
from nnunet_genesis.corruption.corruption import Corruption, Params
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.settings import FineTuningSettings, PretrainingSettings


@dataclass(frozen=True)
class Own(Corruption):
    """A corruption that says nothing of its probability."""

    def sample(self, *_: object) -> Params:
        raise NotImplementedError


KINDS = (PretrainingSettings, FineTuningSettings, Recipe, Own, *map(type, Recipe().corruptions.values()))
RANGES = {
    "[1, inf)": "epochs iterations validation_iterations crops_per_volume plot_every save_every windows",
    "[1, 100]": "decoder_depth",
    "[0, inf)": "patience weight_decay warmup freeze_epochs batch_per_device seed margin cell_size",
    "(0, inf)": "learning_rate max_coverage",
    "[0, 1]": "minimum_contrast coverage probability flip_probability decreasing outer_share next_window_probability "
              "outer_window_size inner_window_size max_replaced",
    "(0, 1]": "encoder_lr_scale layer_lr_decay max_window_size ratio",
    "(0, 0.5]": "validation_share",
    "[0, 0.9]": "drop_path",
    "[0, 0.999999]": "beta2",
    "(0, 12]": "gradient_clipping",
    "[0, 100]": "range_percentiles",
    "(0, 1e6]": "dataset_weights",
}  # fmt: skip
RANGE_OF = {name: ends for ends, names in RANGES.items() for name in names.split()}
NUMBERS = [(kind, field) for kind in KINDS for field in fields(kind) if "text" in field.metadata
           and not isinstance(field.default, str) and (field.default != () or field.metadata["entries"] is float)]  # fmt: skip


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=lambda value: getattr(value, "name", None))
def test_the_ends_of_a_range_are_where_they_are_said_to_be(kind, field):
    ends = RANGE_OF[field.name]
    low, high = map(float, ends[1:-1].split(", "))
    step = 1 if isinstance(field.default, int) else 1e-7

    def refused(value: float) -> bool:
        given = [value] if field.default == () else value
        with suppress(SettingsError):
            kind(**{field.name: given})
            return False
        with pytest.raises(SettingsError) as error:  # what does not fit to other settings is not meant
            kind(**{field.name: given})
        return str(error.value).startswith(f'"{field.name}" must be a')

    assert refused(low - step)
    assert refused(low) is ends.startswith("(")
    assert not refused(low + step)
    if high < math.inf:
        assert not refused(high)
        assert refused(high + step)


def test_every_range_is_that_of_a_setting():
    assert {field.name for _, field in NUMBERS} == set(RANGE_OF)


def test_a_corruption_does_not_take_place_unless_it_is_asked_for():
    assert Own().probability == 0
