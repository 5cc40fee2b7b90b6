"""Plans and dataset.json that must not be worked with: one line that names the key, and nothing runs, builds or moves."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner

from nnunet_genesis.architecture_checks import check_architecture
from nnunet_genesis.errors import DatasetError
from nnunet_genesis.files import read_json
from nnunet_genesis.networks.build import build_network, target_network
from nnunet_genesis.nnunet_dataset import check_configuration, read_plans
from nnunet_genesis.plans_checks import check_description
from nnunet_genesis.resources import plans_folder

DESCRIPTION = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "core": 1}, "file_ending": ".nii.gz"}
WHERE = ("configurations", "3d_fullres")
NETWORK = (*WHERE, "architecture")
ARGUMENTS = (*NETWORK, "arch_kwargs")
TRAP = "hostile_trap.Conv3d"


def changed(block: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value in one place."""
    whole = copy.deepcopy(block)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


@pytest.fixture
def tiny() -> dict[str, Any]:
    return read_json(plans_folder() / "tiny.json", "", "")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when it is imported."""
    (tmp_path / "hostile_trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Conv3d: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "ran"
    sys.modules.pop("hostile_trap", None)


@pytest.mark.parametrize("template", sorted(path.stem for path in plans_folder().glob("*.json")))
def test_every_template_is_let_through(template):
    plans = read_json(plans_folder() / f"{template}.json", "", "")
    for configuration in plans["configurations"]:
        check_configuration(plans, configuration)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", TRAP, "torch.hub.load", "torch.nn.functional.relu",
                                  "torch.nn.modules.conv.os", "torch.nn.Parameter", "builtins.exec", 7, ["torch.nn.ReLU"],
                                  "dynamic_network_architectures.building_blocks.residual.nn", "torch.nn.Transformer",
                                  "torch.nn.InstanceNorm3d"])  # fmt: skip
@pytest.mark.parametrize("key", ["nonlin", "conv_op"])
def test_layers_that_are_none_are_never_looked_up(tiny, trap, key, name):
    plans = changed(tiny, (*ARGUMENTS, key), name)
    for call in (
        lambda: check_configuration(plans, "3d_fullres"),
        lambda: target_network(plans, "3d_fullres", DESCRIPTION),
        lambda: check_architecture(plans["configurations"]["3d_fullres"]["architecture"], "The plans"),
        lambda: build_of(plans),
    ):
        with pytest.raises(DatasetError, match="which is no layer of torch.nn and no block of"):
            call()
    assert not trap.exists()
    assert "hostile_trap" not in sys.modules


def build_of(plans: dict[str, Any]) -> None:
    """As nnU-Net's predictor builds the network of a model with our trainers."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    build_network(manager, manager.get_configuration("3d_fullres"), 1, 2, False)


@pytest.mark.parametrize("name", ["os.system", "hostile_trap.PlainConvUNet", "nnunet_genesis.cli.main", "UNet", None,
                                  "dynamic_network_architectures.architectures.unet.nn",
                                  "dynamic_network_architectures.architectures.unet.Module",
                                  "dynamic_network_architectures.architectures.unet.InitWeights_He"])  # fmt: skip
def test_networks_of_other_packages_are_not_run(tiny, trap, name):
    plans = changed(tiny, (*NETWORK, "network_class_name"), name)
    for call in (lambda: check_configuration(plans, "3d_fullres"), lambda: build_of(plans)):
        with pytest.raises(DatasetError, match="which is not run: only classes of"):
            call()
    assert not trap.exists()


def test_many_layers_are_refused_and_no_norm_is_not(tiny):
    with pytest.raises(DatasetError, match="has more than 512 convolutions or blocks"):
        check_configuration(changed(tiny, (*ARGUMENTS, "n_conv_per_stage"), [171, 171, 171]), "3d_fullres")
    check_configuration(changed(tiny, (*ARGUMENTS, "norm_op"), "torch.nn.Identity"), "3d_fullres")


def test_what_nnunet_itself_finds_elsewhere_is_let_through(tiny):
    moved = "dynamic_network_architectures.architectures.residual_unet.PlainConvUNet"  # as in plans of 2023
    check_configuration(changed(tiny, (*NETWORK, "network_class_name"), moved), "3d_fullres")
    block = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
    resenc = read_json(plans_folder() / "tiny_resenc.json", "", "")
    resenc = changed(resenc, (*ARGUMENTS, "block"), block)
    resenc = changed(resenc, (*ARGUMENTS, "bottleneck_channels"), 4)
    resenc["configurations"]["3d_fullres"]["architecture"]["_kw_requires_import"].append("block")
    check_configuration(resenc, "3d_fullres")


def test_plans_of_2023_are_bounded_before_they_are_rebuilt(tiny):
    old = tiny["configurations"]["3d_fullres"]
    arguments = old.pop("architecture")["arch_kwargs"]
    old |= {"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 6,
            "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2], "num_pool_per_axis": [2, 2, 2],
            "pool_op_kernel_sizes": arguments["strides"], "conv_kernel_sizes": arguments["kernel_sizes"]}  # fmt: skip
    check_configuration(tiny, "3d_fullres")
    for key, value, message in (
        ("UNet_class_name", "os.system", "describes no network that is known .*Unknown architecture os.system"),
        ("n_conv_per_stage_encoder", [2] * 100_000, "at most 20 numbers"),
        ("unet_max_num_features", 10**9, "describes a network that cannot be built|numbers are at most 100,000"),
    ):
        changed_plans = changed(tiny, (*WHERE, key), value)
        if key == "unet_max_num_features":
            changed_plans = changed(changed_plans, (*WHERE, "UNet_base_num_features"), 10**8)
        with pytest.raises(DatasetError, match=message):
            check_configuration(changed_plans, "3d_fullres")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eva_depth": 100_000}, '"eva_depth": 100000, where numbers are at most 100,'),
        ({"input_shape": [10**6] * 3}, "numbers are at most 2,000"),
        ({"input_shape": [32, 48, 40]}, "which must be equal"),
        ({"num_register_tokens": 10**9}, "numbers are at most 1,000"),
        ({"num_register_tokens": -1}, "whole numbers from 0 to 1,000 are needed"),
        ({"mlp_ratio": 1e5}, '"mlp_ratio": 100000.0, where numbers are at most 16,'),
        ({"eva_numheads": 0}, "whole numbers from 1 to 1,000 are needed"),
        ({"depth_per_level": [10**6] * 4}, "numbers are at most 20"),
        ({"ch_per_level": [0] * 4}, "whole numbers from 1 to 20,000 are needed"),
        ({"embed_dim": 20_000 - 8, "eva_depth": 100}, "parameters, more than 2,000,000,000"),
        ({"patch_embed_size": [1, 1, 1]}, "cannot be built"),
        ({"input_shape": [1000] * 3, "patch_embed_size": [2] * 3, "use_abs_pos_embed": False}, "parameters, more than"),
    ],
)
def test_a_transformer_without_bounds_or_for_another_patch_is_refused_in_one_line(change, message):
    plans = read_json(plans_folder() / "tiny_primus.json", "", "")
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= change
    with pytest.raises(DatasetError, match=message) as raised:
        check_configuration(plans, "3d_fullres")
    assert "\n" not in str(raised.value)


def test_no_register_tokens_is_the_librarys_default(tiny):
    plans = read_json(plans_folder() / "tiny_primus.json", "", "")
    check_configuration(changed(plans, (*ARGUMENTS, "num_register_tokens"), 0), "3d_fullres")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((("dataset_name",), value) for value in ("../Dataset004_A", "Dataset004_A/../..", "", "Dataset4", 4, None)),
        *((("plans_name",), value) for value in ("../../evil", "/evil", "", "..", "a\x1b[31m", "a\0b", "a" * 300, 4)),
        *(((*WHERE, "data_identifier"), value) for value in ("../evil", "/evil", "", ".", "a\\b", "a\nb", ["a"])),
        *(((*WHERE, "patch_size"), value) for value in ([10**6] * 3, [16], [16, 16.5, 16], [0, 16, 16], [True] * 3, "16")),
        *(((*WHERE, "batch_size"), value) for value in (0, -1, 10**9, 2.5, "2", None)),
        *(((*WHERE, "spacing"), value) for value in ([1, 1], [0, 1, 1], [float("nan"), 1, 1], [1e300, 1, 1], "111")),
        *(((*WHERE, "normalization_schemes"), value) for value in ([], "ZScoreNormalization", ["os"], [["a"]], ["Z" * 99])),
        *(((*WHERE, "use_mask_for_norm"), value) for value in ([], None, {})),
        *(((*WHERE, "preprocessor_name"), value) for value in ("os", "np", "Unknown", "DefaultPreprocessor.run", 3)),
        *(((*WHERE, "resampling_fn_data"), value) for value in ("recursive_find_python_class", "np", "partial", None)),
        *(((*WHERE, "resampling_fn_seg_kwargs"), value) for value in ([], "is_seg")),
        *(((*WHERE, "previous_stage"), value) for value in ("../3d_lowres", 5)),
        *(((*WHERE, "inherits_from"), value) for value in ("3d_fullres", "unknown", 7, ["2d"])),
        *(((*NETWORK, "_kw_requires_import"), value) for value in (["unknown"], 5, None, [["nonlin"]])),
        *(((*ARGUMENTS, "n_stages"), value) for value in (10**6, 2, "3", -3)),
        *(((*ARGUMENTS, "features_per_stage"), value) for value in ([10**12] * 3, [90_000] * 3, [1] * 1000, ["a"] * 3)),
        *(((*ARGUMENTS, "n_conv_per_stage"), value) for value in ([10**5] * 3, 10**9, None)),
        (("image_reader_writer",), "os"),
        (("image_reader_writer",), "BaseReaderWriterX"),
        (("label_manager",), "softmax_helper_dim0"),
        (("transpose_forward",), [0, 0, 1]),
        (("transpose_backward",), "012"),
        (("foreground_intensity_properties_per_channel",), {"0": 3}),
        (("genesis",), 5),
        (("configurations",), {}),
        (("configurations",), {"../../3d": {}}),
        (("configurations",), {"2d": []}),
        (("configurations",), []),
    ],
)  # fmt: skip
def test_what_is_wrong_in_plans_is_named_in_one_line(tiny, path, value):
    with pytest.raises(DatasetError) as raised:
        check_configuration(changed(tiny, path, value), "3d_fullres")
    assert "\n" not in str(raised.value)
    assert str(raised.value).isprintable()
    assert path[-1] in str(raised.value) or path[0] in ("configurations",)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("channel_names", value) for value in (
            ["T1"], {}, {"a": "T1"}, {"1": "T1"}, {"00": "T1"}, {"0": ""}, {"0": 3}, {"0": "T\x1b[2J"}, "T1",
            {str(number): "T1" for number in range(10_000)})),
        *(("labels", value) for value in ([], {"background": None}, {"background": -1}, {"a": [[1]]}, {"a": 1e300}, "a")),
        *(("file_ending", value) for value in ("", "nii", "/../x.nii.gz", ".nii\n", ".*", 5)),
        *(("dataset", value) for value in (
            [], {"../a": {"images": ["a"], "label": "b"}}, {"a": []}, {"a": {"images": "a", "label": "b"}},
            {"a": {"images": [], "label": "b"}}, {"a": {"images": [3], "label": "b"}}, {"a": {"images": ["a"]}})),
        ("overwrite_image_reader_writer", 5),
    ],
)  # fmt: skip
def test_what_is_wrong_in_dataset_json_is_named_in_one_line(key, value):
    check_description(DESCRIPTION, "The dataset description")
    with pytest.raises(DatasetError, match=f'"{key}"') as raised:
        check_description(DESCRIPTION | {key: value}, "The dataset description")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nests blocks more than 50 deep"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nests blocks more than 50 deep"),
        ('{"b": 2, "a": 1, "a": 3}', 'the key "a" is there twice'),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[1, 2]", "holds no block in braces"),
        ("3", "holds no block in braces"),
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
    ],
)  # fmt: skip
def test_json_that_is_no_object_or_too_deep(tmp_path: Path, text, message):
    path = tmp_path / "plans.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message) as raised:
        read_json(path, "The plans file", "Plan it first.")
    assert "\n" not in str(raised.value)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_json(path, "The plans file", "Plan it first.")


def test_nested_as_deep_as_plans_are_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": ' * 49 + "[]" + "}" * 49)
    assert json.dumps(read_json(tmp_path / "a.json", "", "")).count("a") == 49


@pytest.mark.parametrize("name", ["../Dataset004_Target", "Dataset004_Target/..", "Dataset004_T*", "Dataset/../..", "²",
                                  "9" * 5000, "Dataset004_\x1b[2J", "-1", ""])  # fmt: skip
def test_datasets_are_named_by_id_or_name_only(nnunet: Path, make_dataset, genesis, capsys, name):
    make_dataset(4, "Target", 1)
    assert genesis("preprocess", f"-d={name}", "-c", "3d_fullres") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "-d", 4, "--template", "tiny", "-p", "../../escaped"),
        ("plan", "-d", 4, "--like", 4, "--like-plans", "../Dataset004_Target/nnUNetPlans"),
        ("preprocess", "-d", 4, "-c", "3d_fullres", "-p", "../Dataset004_Target/nnUNetPlans"),
        ("preprocess", "-d", 4, "-c", "../3d_fullres", "-p", "nnUNetPlans"),
        ("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "--to", "../escaped"),
        ("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "--to", ""),
        ("transfer", "--from-scratch", "-d", 4, "-c", "3d_fullres", "-p", "../Dataset004_Target/nnUNetPlans"),
        ("import", "-d", 9, "-n", "../escaped", "--channels", "T1", "."),
        ("import", "-d", 9, "-n", "New", "--channels", "T\x1b1", "."),
    ],
)
def test_names_on_the_command_line_stay_in_their_folders(nnunet: Path, make_dataset, genesis, capsys, arguments):
    make_dataset(4, "Target", 1)
    assert genesis("plan", "-d", 4, "--template", "tiny", "-p", "nnUNetPlans") == 0
    before = sorted(nnunet.rglob("*"))
    capsys.readouterr()
    assert genesis(*arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(nnunet.rglob("*")) == before


def test_a_template_that_would_run_code_is_refused_before_anything_is_written(
    nnunet: Path, make_dataset, genesis, capsys, tiny, trap
):
    make_dataset(4, "Target", 1)
    for path in ((*ARGUMENTS, "nonlin"), (*NETWORK, "network_class_name"), ("image_reader_writer",)):
        (nnunet / "template.json").write_text(json.dumps(changed(tiny, path, TRAP)))
        capsys.readouterr()
        assert genesis("plan", "-d", 4, "--template", nnunet / "template.json") == 1
        assert "hostile_trap.Conv3d" in capsys.readouterr().err
    assert not list((nnunet / "nnUNet_preprocessed").iterdir())
    assert not trap.exists()


def test_plans_of_nnunets_own_planner_are_let_through(nnunet: Path, make_dataset, monkeypatch):
    """All four configurations, the cascade included, for anisotropic CT with regions and an ignore label."""
    name = make_dataset(7, "Large", 1, ("CT", "T1")).name
    description = json.loads((nnunet / "nnUNet_raw" / name / "dataset.json").read_text())
    description |= {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (nnunet / "nnUNet_raw" / name / "dataset.json").write_text(json.dumps(description))
    check_description(description, "The dataset description")
    statistics = {"mean": 1.0, "std": 2.0, "median": 1.0, "min": 0.0, "max": 9.0, "percentile_00_5": 0.0}
    fingerprint = {
        "spacings": [[3.0, 0.8, 0.8]],
        "shapes_after_crop": [[60, 200, 200]],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {str(c): statistics | {"percentile_99_5": 8.0} for c in (0, 1)},
    }
    folder = nnunet / "nnUNet_preprocessed" / name
    folder.mkdir()
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # the planner's number of threads
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(default_experiment_planner, variable, str(nnunet / variable))
    made = default_experiment_planner.ExperimentPlanner(
        name, gpu_memory_target_in_gb=0.6
    )  # small patches: the planner runs networks to measure them
    made.plan_experiment()
    plans = read_plans(name, made.plans_identifier)
    assert set(plans["configurations"]) == {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    for configuration in plans["configurations"]:
        check_configuration(plans, configuration)
