"""Settings: every wrong key or value is refused with a message that names it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from nnunet_genesis.corruption import RECIPES, Recipe
from nnunet_genesis.errors import SettingsError
from nnunet_genesis.settings import FineTuningSettings, PretrainingSettings
from nnunet_genesis.settings_base import Settings


@pytest.mark.parametrize("settings", [PretrainingSettings(), FineTuningSettings(), *RECIPES.values()])
def test_what_is_written_is_read_back(settings):
    block = settings.block()
    if isinstance(settings, PretrainingSettings):
        assert PretrainingSettings.of_plans({"genesis": {"pretraining": block}}) == settings
    else:
        assert type(settings)().updated(block, "here") == settings


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"epoch": 3}, r'Unknown key "epoch" in the block .*did you mean "epochs"'),
        ({"zzz": 3}, 'Unknown key "zzz".*known keys are loss, epochs'),
        ({"epochs": 0}, '"epochs" must be at least 1, not 0'),
        ({"epochs": 2.5}, '"epochs" must be a whole number, not 2.5'),
        ({"epochs": True}, '"epochs" must be a whole number, not True'),
        ({"learning_rate": "fast"}, '"learning_rate" must be a number'),
        ({"learning_rate": 0}, '"learning_rate" must be above 0'),
        ({"learning_rate": float("nan")}, '"learning_rate" must be a number'),
        ({"validation_share": 0.9}, '"validation_share" must be at most 0.5'),
        ({"loss": "l2"}, '"loss" must be mse or l1 or ssim, not'),
        ({"recipe": "Paper"}, "paper"),
        ({"recipe": {"shuffling": {"window": 3}}}, 'Unknown key "window".*"recipe" / "shuffling".*"windows"'),
        ({"recipe": {"intensity": {"probability": 1.5}}}, '"probability" must be at most 1'),
        (
            {"recipe": {"cutout": {"outer_window_size": [0.9, 0.2]}}},
            '"outer_window_size" must be two ascending numbers',
        ),
    ],
)
def test_wrong_pretraining_settings_are_named(block, message):
    with pytest.raises(SettingsError, match=message):
        PretrainingSettings.of_plans({"plans_name": "P", "genesis": {"pretraining": block}})


def test_wrong_parts_of_the_genesis_block_are_named():
    with pytest.raises(SettingsError, match='Unknown key "pretrain" in the block "genesis"'):
        PretrainingSettings.of_plans({"genesis": {"pretrain": {}}})
    with pytest.raises(SettingsError, match=r"no transferred weights for 2d \(they do for: 3d_fullres\)"):
        FineTuningSettings.of_plans({"genesis": {"fine_tuning": {"3d_fullres": {}}}}, "2d")
    with pytest.raises(SettingsError, match=r'"warmup" \(50\) must be below "epochs" \(20\)'):
        FineTuningSettings.of_plans({"genesis": {"fine_tuning": {"2d": {"epochs": 20}}}}, "2d")


BRACES = "must be a block of settings in braces"


@pytest.mark.parametrize("genesis", [None, [], 5, {"pretraining": 5}, {"pretraining": None}])
def test_pretraining_blocks_of_another_kind_are_named(genesis):
    with pytest.raises(SettingsError, match=BRACES):
        PretrainingSettings.of_plans({"genesis": genesis})


@pytest.mark.parametrize("genesis", [None, [], 5, {"fine_tuning": []}, {"fine_tuning": {"2d": 3}}])
def test_fine_tuning_blocks_of_another_kind_are_named(genesis):
    with pytest.raises(SettingsError, match=BRACES):
        FineTuningSettings.of_plans({"genesis": genesis}, "2d")


def test_learning_rate_and_weight_decay_follow_the_optimizer_unless_they_are_given():
    def resolved(**block) -> tuple[float | None, float | None]:
        settings = FineTuningSettings.of_plans({"genesis": {"fine_tuning": {"2d": block}}}, "2d")
        assert (settings.learning_rate, settings.weight_decay) == (
            block.get("learning_rate"), block.get("weight_decay"))  # fmt: skip
        return settings.resolved().learning_rate, settings.resolved().weight_decay

    assert resolved() == resolved(optimizer="sgd", learning_rate=None) == (1e-2, 3e-5)
    assert resolved(optimizer="adamw") == (1e-4, 5e-2)
    assert resolved(optimizer="adamw", learning_rate=1e-2, weight_decay=0) == (1e-2, 0)
    for wrong, message in ((0, "must be above 0, not 0"), ("fast", "must be a number, not 'fast'")):
        with pytest.raises(SettingsError, match=f'"learning_rate" {message}'):
            resolved(learning_rate=wrong)


def test_former_names_of_settings_are_read():
    block = {"epochs": 9, "warmup": 0, "frozen_encoder": 3, "encoder_rate": 0.5}
    settings = FineTuningSettings.of_plans({"genesis": {"fine_tuning": {"2d": block}}}, "2d")
    assert (settings.freeze_epochs, settings.encoder_lr_scale) == (3, 0.5)
    assert not {"frozen_encoder", "encoder_rate"} & set(settings.block())
    block["freeze_epochs"] = 2
    with pytest.raises(SettingsError, match=r'has "freeze_epochs" twice, once as "freeze_epochs"\. Remove one'):
        FineTuningSettings.of_plans({"genesis": {"fine_tuning": {"2d": block}}}, "2d")
    assert PretrainingSettings.of_plans({"genesis": {"pretraining": {"sheet_every": 7}}}).plot_every == 7


@pytest.mark.parametrize("where", ["auto", "workers", "device"])
def test_plans_and_checkpoints_that_say_where_to_corrupt_are_read(where):
    block = PretrainingSettings(epochs=9).block() | {"corrupt_on": where}
    assert PretrainingSettings.of_plans({"genesis": {"pretraining": block}}) == PretrainingSettings(epochs=9)
    assert "corrupt_on" not in PretrainingSettings().block()


def test_plans_without_a_block_mean_the_defaults():
    assert PretrainingSettings.of_plans({}) == PretrainingSettings()


def test_a_named_recipe_stands_for_its_values():
    settings = PretrainingSettings.of_plans({"genesis": {"pretraining": {"recipe": "released"}}})
    assert settings.recipe == RECIPES["released"]


def test_every_setting_has_a_help_text():
    for kind in (PretrainingSettings, FineTuningSettings, Recipe, *map(type, Recipe().corruptions.values())):
        missing = [f.name for f in fields(kind) if "text" not in f.metadata and not isinstance(f.default, Settings)]
        assert not missing
