"""Learning rates by layer, clipping, and the settings that follow from the kind of network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_genesis.finetuning import WarmupPoly, encoder_groups
from nnunet_genesis.networks.build import NETWORKS, skeleton
from nnunet_genesis.resources import plans_folder
from nnunet_genesis.settings import FineTuningSettings
from nnunet_genesis.study.arms import parse_arm
from nnunet_genesis.transfer.into_plans import scheduled
from tests.trainers.conftest import start_finetuning
from tests.trainers.test_finetuning_rules import change_settings, trainer_of


def plans_of(template: str) -> dict:
    return json.loads((plans_folder() / f"{template}.json").read_text())


def network_of(template: str, **arguments) -> nn.Module:
    block = plans_of(template)["configurations"]["3d_fullres"]["architecture"]
    return skeleton(block | {"arch_kwargs": block["arch_kwargs"] | arguments}, 1)


def of_encoder(network: nn.Module) -> list[str]:
    """Names of parameters, in the order of the network's own."""
    places = ("encoder.", "down_projection.", "eva.")
    return [name for name, _ in network.named_parameters() if name.startswith(places)]


def shares_by_name(network: nn.Module, decay: float) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = encoder_groups(network, decay)
    shares = {names[id(parameter)]: share for parameters, share in groups for parameter in parameters}
    assert len(shares) == sum(len(parameters) for parameters, _ in groups)
    assert set(shares) == set(of_encoder(network))
    return shares


@pytest.mark.parametrize("kind", ["Primus", "PrimusV2", "PrimusV3"])
def test_rates_of_a_primus_fall_from_the_heads_to_the_tokens(kind):
    """decay ** (depth + 1 - i) for block i from 1 on, and i = 0 for projection and positions."""
    block = plans_of("tiny_primus")["configurations"]["3d_fullres"]["architecture"]
    arguments = block["arch_kwargs"] | {"eva_depth": 3}
    network = skeleton({"network_class_name": NETWORKS[kind], "arch_kwargs": arguments}, 1)
    for name, share in shares_by_name(network, 0.75).items():
        words = name.split(".")
        if words[:2] == ["eva", "blocks"]:
            assert share == 0.75 ** (4 - (int(words[2]) + 1))
        else:
            assert share == {"eva.norm": 1}.get(".".join(words[:2]), 0.75**4), name
    assert network.eva.pos_embed is not None


@pytest.mark.parametrize("template", ["tiny", "tiny_resenc", "genesis_chest_ct"])
def test_rates_of_a_unet_fall_by_stage_to_the_stem(template):
    network = network_of(template)
    stages = len(network.encoder.stages)
    for name, share in shares_by_name(network, 0.5).items():
        words = name.split(".")
        assert share == (0.5 ** (stages - int(words[2])) if words[1] == "stages" else 0.5 ** (stages + 1)), name


@pytest.mark.parametrize("template", ["tiny", "tiny_resenc", "genesis_chest_ct", "tiny_primus"])
def test_without_decay_there_is_the_one_group_of_earlier_checkpoints(template):
    """Optimisers are resumed by the order of parameters."""
    network = network_of(template)
    ((parameters, share),) = encoder_groups(network, 1.0)
    assert share == 1
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(parameter)] for parameter in parameters] == of_encoder(network)


def test_every_group_warms_up_and_freezes_with_its_share():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(3)]
    optimizer = torch.optim.SGD(groups, 1.0)
    settings = FineTuningSettings(epochs=6, learning_rate=1.0, warmup=2, freeze_epochs=3, encoder_lr_scale=0.5)
    schedule = WarmupPoly(optimizer, settings, [0.25, 0.75])
    rates = []
    for epoch in range(6):
        schedule.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert schedule.get_last_lr() == rates[-1]
    rest, deep, shallow = np.array(rates).T
    assert rest[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    thawed = np.arange(6) >= 3
    assert deep == pytest.approx(rest * thawed * 0.125)
    assert shallow == pytest.approx(rest * thawed * 0.375)


def test_layers_move_by_their_rates_and_a_resumed_training_goes_on(transferred: Path):
    """AdamW's first step is as long as its rate."""
    change_settings(transferred, epochs=5, optimizer="adamw", learning_rate=1e-3, layer_lr_decay=0.5, weight_decay=0,
                    beta2=0.9)  # fmt: skip
    trainer = start_finetuning()
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.9)}
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    stages = len(trainer.network.encoder.stages)
    after = trainer.network.state_dict()
    for stage in range(stages):
        name = f"encoder.stages.{stage}.0.convs.0.conv.weight"
        assert (after[name] - before[name]).abs().max().item() == pytest.approx(1e-3 * 0.5 ** (stages - stage), rel=0.1)
    saved = transferred.parents[1] / "own.pth"
    trainer.save_checkpoint(str(saved))
    resumed = trainer_of()
    resumed.load_checkpoint(str(saved))
    assert [g["lr"] for g in resumed.optimizer.param_groups] == [g["lr"] for g in trainer.optimizer.param_groups]
    assert len(resumed.optimizer.param_groups) == 1 + stages


@pytest.mark.parametrize(("clip", "norm"), [(0.01, 0.01), (12, None)])
def test_gradients_are_clipped_at_the_norm_of_the_settings(transferred: Path, clip, norm):
    change_settings(transferred, epochs=5, gradient_clipping=clip)
    trainer = start_finetuning()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    gradients = [one.grad for one in trainer.network.parameters() if one.grad is not None]
    found = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert found == pytest.approx(norm, rel=1e-3) if norm else found > 0.02


def test_settings_follow_from_the_network_unless_the_user_says_otherwise():
    def chosen(template: str, **schedule):
        settings = scheduled(schedule, plans_of(template), "3d_fullres")
        return (settings.optimizer, *settings.rates(), settings.beta2, settings.gradient_clipping)

    assert chosen("tiny_primus") == chosen("tiny_primus", optimizer="adamw") == ("adamw", 3e-4, 0.05, 0.98, 1)
    assert chosen("tiny_primus", learning_rate=1e-4, beta2=0.6) == ("adamw", 1e-4, 0.05, 0.6, 1)
    assert chosen("tiny_primus", optimizer="sgd") == chosen("tiny") == ("sgd", 1e-2, 3e-5, 0.999, 12)
    assert chosen("tiny", optimizer="adamw") == ("adamw", 1e-4, 0.05, 0.999, 12)


def test_arms_of_a_study_may_differ_in_decay_and_clipping():
    arm = parse_arm("mae=x.pth,layer_lr_decay=0.75,gradient_clipping=1,beta2=0.98")
    assert arm.settings == {"layer_lr_decay": 0.75, "gradient_clipping": 1.0, "beta2": 0.98}
