"""`torchrun … -m nnunet_genesis.distributed` and the arguments of `nnUNetv2_train`: training on many machines."""

from __future__ import annotations

import inspect
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.run import run_training as stock
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_genesis.errors import SettingsError, one_line
from nnunet_genesis.interruption import watch
from nnunet_genesis.preflight import refuse_missing_gpu
from nnunet_genesis.ranks import RankedTrainer

PATIENCE = timedelta(hours=2)
"""For processes that wait for the first one, which scores a final validation; torchrun notices one that has died."""


def main() -> None:
    """Train as one of the processes that torchrun has started; an interrupted training goes on by itself."""
    with one_line():
        missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
        if missing:
            raise SettingsError(
                f"The environment variable {missing[0]} is not set. Start all processes by torchrun: "
                "torchrun --nproc-per-node GPUS -m nnunet_genesis.distributed ARGUMENTS OF nnUNetv2_train"
            )
    train = stock.run_training

    def with_others(*given: Any, **named: Any) -> None:
        arguments = inspect.signature(train).bind(*given, **named)
        arguments.apply_defaults()
        with one_line():
            check(arguments.arguments)
        # a checkpoint that is there is gone on from: after a restart nobody could say so
        arguments.arguments["continue_training"] = not arguments.arguments["only_run_validation"]
        join(arguments.arguments["device"])
        train(*arguments.args, **arguments.kwargs)
        dist.destroy_process_group()

    stock.run_training = with_others  # nnU-Net's command reads its own arguments
    try:
        stock.run_training_entry()
    finally:
        stock.run_training = train


def check(arguments: dict[str, Any]) -> None:
    """Refuse what is not for processes that torchrun has started.

    Args:
        arguments: Those of nnU-Net's `run_training`, by name.

    Raises:
        SettingsError: Names the argument and what to do.
        DatasetError: There is no GPU.
    """
    if arguments["num_gpus"] != 1:
        raise SettingsError("-num_gpus is for nnUNetv2_train. torchrun --nproc-per-node says how many processes train.")
    if arguments["pretrained_weights"] is not None:
        raise SettingsError(
            "-pretrained_weights is for nnUNetv2_train: nnU-Net would load the file onto a GPU with the number of the "
            "process. Fine-tuning starts from the weights of nnunet_genesis transfer."
        )
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        # processes would read there what those before the restart have written, and wait for them
        raise SettingsError(
            "After a restart, processes would look for those before it. export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
            "before torchrun; where it has --node-rank, leave out --max-restarts, or use --rdzv-backend c10d instead."
        )
    refuse_missing_gpu(arguments["device"])
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if arguments["device"].type == "cuda" and local >= there:
        raise SettingsError(f"There is no GPU for process {local + 1} of this machine. Use --nproc-per-node {there}.")
    if not issubclass(recursive_find_trainer_class_by_name(arguments["trainer_class_name"]), RankedTrainer):
        raise SettingsError(
            f"The trainer {arguments['trainer_class_name']} is nnU-Net's, which knows one machine. Name one of this "
            "package with -tr, or use nnUNetv2_train -num_gpus."
        )


def join(device: torch.device) -> None:
    """Meet the other processes, as the environment says (`env://`), with a GPU of this machine where there are any.

    Args:
        device: Of type cuda (NCCL) or cpu (gloo).
    """
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # nnU-Net takes all cores in every process
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    watch()


if __name__ == "__main__":
    main()
