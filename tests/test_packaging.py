"""What a user installs: version, doorsteps, plans templates, constraints, wheel."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_genesis
from nnunet_genesis.resources import plans_folder, trainers_folder

REPOSITORY = Path(__file__).resolve().parent.parent
DOORSTEPS = sorted((REPOSITORY / "trainers").glob("*.py"))
TEMPLATES = {
    "tiny": ("PlainConvUNet", ["2d", "3d_fullres"]),
    "tiny_resenc": ("ResidualEncoderUNet", ["2d", "3d_fullres"]),
    "isotropic_1mm": ("ResidualEncoderUNet", ["3d_fullres"]),
    "genesis_chest_ct": ("UNet3D", ["3d_fullres"]),
    "genesis_luna16": ("PlainConvUNet", ["3d_fullres"]),
    "chest_xray": ("PlainConvUNet", ["2d"]),
    "primus_s": ("Primus", ["3d_fullres"]),
    "primus_m": ("Primus", ["3d_fullres"]),
    "tiny_primus": ("Primus", ["3d_fullres"]),
}
CASES = [(name, configuration) for name, (_, found) in TEMPLATES.items() for configuration in found]


def plans_of(template):
    return PlansManager(str(plans_folder() / f"{template}.json"))


def test_one_version_everywhere():
    cited = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    declared = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert cited[1] == declared[1] == nnunet_genesis.__version__
    assert importlib.metadata.version("nnunet-genesis") == declared[1]


def test_the_oldest_versions_are_those_that_are_allowed():
    """`requirements/oldest.txt` is what the tests are run with from time to time, on Python 3.10."""
    project = (REPOSITORY / "pyproject.toml").read_text()
    declared = re.search(r"^dependencies.*?^demo", project, re.MULTILINE | re.DOTALL)[0]
    declared += re.search(r"^study.*?^dev", project, re.MULTILINE | re.DOTALL)[0]
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)', declared))
    oldest = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (REPOSITORY / "requirements/oldest.txt").read_text(), re.MULTILINE)
    )
    assert len(allowed) > 15
    assert {name: f"{version}.0.0".split(".")[:3] for name, version in allowed.items()} == {
        name: version.split(".") for name, version in oldest.items()
    }


def test_folders_are_those_of_the_checkout():
    assert trainers_folder() == REPOSITORY / "trainers"
    assert plans_folder() == REPOSITORY / "plans"


def test_trainers_folder_holds_nothing_but_doorsteps():
    found = sorted(path.name for path in trainers_folder().iterdir() if path.name != "__pycache__")
    assert found == ["nnUNetTrainerGenesisFinetune.py", "nnUNetTrainerGenesisPretrain.py"]


@pytest.mark.parametrize("path", DOORSTEPS, ids=lambda path: path.stem)
def test_a_doorstep_is_a_docstring_and_one_import_of_the_class_it_is_named_after(path):
    docstring, imported = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(imported, ast.ImportFrom)
    assert imported.module.startswith("nnunet_genesis.")
    assert [(alias.name, alias.asname) for alias in imported.names] == [(path.stem, path.stem)]


@pytest.mark.parametrize("path", DOORSTEPS, ids=lambda path: path.stem)
def test_nnunet_finds_the_trainer_and_it_survives_the_search(path, monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    found = recursive_find_trainer_class_by_name(path.stem)
    assert found.__name__ == path.stem
    assert getattr(sys.modules[found.__module__], path.stem) is found


def test_every_template_is_tested_here():
    assert {path.stem for path in plans_folder().iterdir()} == set(TEMPLATES)


@pytest.mark.parametrize(("template", "configuration"), CASES)
@pytest.mark.parametrize("channels", [1, 4])
def test_template_builds_its_network(template, configuration, channels):
    chosen = plans_of(template).get_configuration(configuration)
    assert chosen.network_arch_class_name.endswith(f".{TEMPLATES[template][0]}")
    network = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        channels,
        3,
        deep_supervision=False,
    )
    if not template.startswith("tiny"):
        return  # too large to run here
    with torch.no_grad():
        out = network(torch.zeros(1, channels, *chosen.patch_size))
    assert out.shape == (1, 3, *chosen.patch_size)


@pytest.mark.parametrize(("template", "configuration"), CASES)
def test_template_is_consistent(template, configuration):
    plans = plans_of(template)
    chosen = plans.get_configuration(configuration)
    arch = chosen.network_arch_init_kwargs
    strides = arch.get("strides", [arch.get("patch_embed_size")])
    dimensions, stages = len(chosen.patch_size), len(strides)
    assert chosen.data_identifier == f"{plans.plans_name}_{configuration}"
    assert len(chosen.spacing) == len(chosen.median_image_size_in_voxels) == dimensions
    assert len(chosen.normalization_schemes) == len(chosen.use_mask_for_norm) == 1
    for key in ("features_per_stage", "kernel_sizes"):
        assert len(arch.get(key, strides)) == stages
    for axis in range(dimensions):
        stride = torch.tensor(strides)[:, axis].prod().item()
        assert chosen.patch_size[axis] % stride == 0
    # what nnU-Net looks up by name must exist
    chosen.preprocessor_class, chosen.resampling_fn_data, chosen.resampling_fn_seg  # noqa: B018
    chosen.resampling_fn_probabilities  # noqa: B018
    reader = "NaturalImage2DIO" if template == "chest_xray" else "SimpleITKIO"
    assert plans.image_reader_writer_class.__name__ == reader


def test_constraints_are_names_versions_and_markers_only():
    lines = (REPOSITORY / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "://" not in "".join(lines)
    assert len(pins) > 50
    for line in pins:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][\w.]*( ; [\w .<>='!()*]+)?", line), line


def test_constraints_pin_every_direct_dependency():
    text = (REPOSITORY / "requirements" / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))
    for requirement in importlib.metadata.requires("nnunet-genesis"):
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        assert name in pinned | {"nnunet-genesis"}


def test_wheel_holds_package_trainers_and_plans(tmp_path):
    for needed in ("build", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is missing: the wheel is NOT tested. Install nnunet-genesis[dev].")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "nnunet_genesis").rglob("*.py")}
    trainers = {f"nnunet_genesis/_trainers/{path.name}" for path in DOORSTEPS}
    plans = {f"nnunet_genesis/_plans/{name}.json" for name in TEMPLATES}
    assert {name for name in names if not name.endswith("py.typed")} == modules | trainers | plans
    program = "from nnunet_genesis.resources import *; print(trainers_folder(), plans_folder(), sep='\\n')"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "installed", capture_output=True, text=True, check=True
    )
    package = tmp_path / "installed" / "nnunet_genesis"
    assert shown.stdout.splitlines() == [str(package / "_trainers"), str(package / "_plans")]
