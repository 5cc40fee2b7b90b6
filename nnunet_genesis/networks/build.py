"""Plans, or an architecture block → a network: the one place where networks are built, and unwrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnunet_genesis.architecture_checks import check_architecture, wrong_size
from nnunet_genesis.errors import DatasetError, TransferError, network_of, printable, reason
from nnunet_genesis.named_classes import OURS, is_primus, layer_class, network_class
from nnunet_genesis.networks.primus_layout import HEAD
from nnunet_genesis.nnunet_dataset import check_configuration, configuration_of, input_channels

UNETS = "dynamic_network_architectures.architectures.unet"
NETWORKS = {path.rpartition(".")[2]: path for path in (f"{UNETS}.PlainConvUNet", f"{UNETS}.ResidualEncoderUNet", *OURS)}
"""Name of a class → its path; imported when it is needed, transformers take a while."""


def skeleton(architecture: Mapping[str, Any], channels: int, classes: int = 1) -> nn.Module:
    """The network that an architecture block describes, on torch's meta device: shapes without memory.

    The block may come out of a foreign file, so only the known U-Nets and layers of `torch.nn` are looked up.

    Raises:
        TransferError: Another network or class is named, or the values do not make a network.
    """
    try:
        name = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
        values = dict(architecture["arch_kwargs"])
        imports = list(architecture.get("_kw_requires_import", ()))
    except (KeyError, TypeError, ValueError):
        raise TransferError(
            'The checkpoint does not say which network it holds: "network_class_name" or "arch_kwargs" is missing in '
            "its architecture."
        ) from None
    if name not in NETWORKS:
        raise TransferError(f"The checkpoint holds a {name}; weights are carried from {', '.join(NETWORKS)} only.")
    if wrong := wrong_size(values):
        raise TransferError(f"The {name} that the checkpoint describes {wrong}.")
    values |= {key: _class(values[key], key) for key in imports if values.get(key) is not None}
    values.pop("deep_supervision", None)
    try:
        with torch.device("meta"):
            network: nn.Module = network_class(NETWORKS[name])(input_channels=channels, num_classes=classes, **values)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        raise TransferError(f"The {name} that the checkpoint describes cannot be built: {reason(error)}.") from None
    return network


def _class(name: Any, argument: str) -> type:
    """`torch.nn.modules.conv.Conv3d` → that class."""
    try:
        return layer_class(name, argument)
    except DatasetError as error:
        raise TransferError(f"The checkpoint's architecture {error}.") from None


def build_network(plans_manager: Any, *arguments: Any, **options: Any) -> nn.Module:
    """The network that nnU-Net builds from plans; takes what nnU-Net's `build_network_architecture` takes.

    Raises:
        TransferError: nnU-Net cannot build it, or it lacks the parts that both trainers work on.
        DatasetError: The plans name what is not run, or describe a network without bounds.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    _refuse(arguments[0] if arguments else options["configuration_manager"], plans_manager)
    with network_of(f"the plans {plans_manager.plans_name}"):
        network: nn.Module = nnUNetTrainer.build_network_architecture(plans_manager, *arguments, **options)
    unet = hasattr(network, "encoder") and hasattr(getattr(network, "decoder", None), "seg_layers")
    if not unet and not is_primus(network):
        raise TransferError(
            f"The {type(network).__name__} that the plans name has no encoder and decoder as nnU-Net's U-Nets have. "
            f"Plan with PlainConvUNet, ResidualEncoderUNet, {' or '.join(OURS[:2])}."
        )
    return network


def _refuse(configuration_manager: Any, plans_manager: Any) -> None:
    """nnU-Net builds networks of plans that nobody has looked at yet, e.g. of a model that was downloaded."""
    where = f"The plans {printable(plans_manager.plans_name, 80)}"
    check_architecture(configuration_manager.configuration["architecture"], where)


def target_network(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    """The network that nnU-Net would train, freshly initialised with a fixed seed, and its channel names.

    Raises:
        TransferError: nnU-Net cannot build it.
        DatasetError: The plans do not have the configuration, or it names what is not run.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    check_configuration(plans, configuration)
    with (
        torch.random.fork_rng(devices=[]),
        network_of(f"the plans {plans.get('plans_name')}, configuration {configuration}"),
    ):
        torch.manual_seed(0)
        channels, plans_manager = input_channels(plans, configuration, dataset_json), PlansManager(plans)
        manager = configuration_of(plans, configuration)
        network = get_network_from_plans(
            manager.network_arch_class_name,
            manager.network_arch_init_kwargs,
            manager.network_arch_init_kwargs_req_import,
            len(channels),
            plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
            allow_init=True,
            deep_supervision=True,
        )
    return network, channels


def is_head(name: str) -> bool:
    """Whether a tensor belongs to segmentation heads, those of a Primus included: they belong to a task."""
    return ".seg_layers." in name or name.startswith(HEAD)


def unwrap(network: nn.Module) -> nn.Module:
    """The network without the wrappers of distributed training and torch.compile."""
    while True:
        inner = getattr(network, "module", None) or getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner
