"""What is known of published weights → the model card that the hub shows."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from nnunet_genesis.errors import printable
from nnunet_genesis.named_classes import names_primus

README = "README.md"
ADDRESS = "hf://OWNER/REPOSITORY"
"""Stands for the repository until `push` knows it."""

NNUNET = """@article{isensee2021nnunet,
  author = {Isensee, Fabian and Jaeger, Paul F. and Kohl, Simon A. A. and Petersen, Jens and Maier-Hein, Klaus H.},
  title = {{nnU-Net}: a self-configuring method for deep learning-based biomedical image segmentation},
  journal = {Nature Methods}, volume = {18}, pages = {203--211}, year = {2021}, doi = {10.1038/s41592-020-01008-z}
}"""
GENESIS = """@article{zhou2021models,
  author = {Zhou, Zongwei and Sodha, Vatsal and Pang, Jiaxuan and Gotway, Michael B. and Liang, Jianming},
  title = {Models Genesis},
  journal = {Medical Image Analysis}, volume = {67}, pages = {101840}, year = {2021},
  doi = {10.1016/j.media.2020.101840}
}"""

MAE = """@inproceedings{zhou2023selfmedmae,
  author = {Zhou, Lei and others},
  title = {Self Pre-training with Masked Autoencoders for Medical Image Classification and Segmentation},
  booktitle = {ISBI}, year = {2023}, eprint = {2203.05573}, archivePrefix = {arXiv}
}"""
PRIMUS = """@article{wald2025primus,
  author = {Wald, Tassilo and others},
  title = {Primus: Enforcing Attention Usage for {3D} Medical Image Segmentation},
  journal = {arXiv preprint arXiv:2503.01835}, year = {2025}
}"""


def model_card(config: Mapping[str, Any], facts: Mapping[str, str], title: str = "", citation: str = "") -> str:
    """The model card in Markdown, with YAML before it.

    Args:
        config: The content of config.json.
        facts: Label → text, as `inspect` prints it.
        title: "" for the architecture.
        citation: BibTeX of the makers' paper.
    """
    sections = {
        "Use": _use(config),
        "Training data": _data(config),
        "Input": _input(config, facts),
        "Training": _training(config),
        "Files": _files(config),
        "Licence and citation": _citation(config, citation),
        "Limits": "For research. These weights are no medical device and not meant for decisions about patients. "
        "What they teach a network depends on the training data above, with all of their selection.",
    }
    text = [_front_matter(config), f"# {_text(title) or _text(facts['architecture'].partition(';')[0])}",
            f"{_text(facts['architecture'])}. {facts['parameters']} parameters."]  # fmt: skip
    for heading, body in sections.items():
        text += [f"## {heading}", body]
    return "\n\n".join(text) + "\n"


def _front_matter(config: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=config["licence"],
        library_name="nnunet-genesis",
        pipeline_tag="image-feature-extraction",
        tags=["nnU-Net", "medical-imaging", "image-segmentation", *(["self-supervised-learning"] * _is_ours(config))],
    )
    return f"---\n{data.to_yaml()}\n---"


def _is_ours(config: Mapping[str, Any]) -> bool:
    return config["pretraining"] is not None


def _is_mae(config: Mapping[str, Any]) -> bool:
    return _is_ours(config) and config["pretraining"]["recipe"]["masking"]["masked_as"] == "absent"


def _use(config: Mapping[str, Any]) -> str:
    name = "2d" if config["architecture"]["arch_kwargs"].get("conv_op", "").endswith("Conv2d") else "3d_fullres"
    return f"""With nnU-Net v2 and `pip install nnunet-genesis`, into the plans of your dataset (here 4):

```bash
nnunet_genesis inspect {ADDRESS}
nnunet_genesis transfer {ADDRESS} -d 4 -c {name}
nnUNetv2_train 4 {name} 0 -tr nnUNetTrainerGenesisFinetune -p nnUNetPlans_genesis
```

As a module of PyTorch: `nnunet_genesis.encoder("{ADDRESS}")`. The tensors have the names of nnU-Net's network, one
each; `config.json` holds its class and arguments."""


def _data(config: Mapping[str, Any]) -> str:
    listed = (
        "The record of the cases is published in `cases.npz`: `nnunet_genesis leaks` compares your test cases with it."
        if config["cases_published"]
        else "Which cases they were is not published: leaks into your test cases cannot be found by it."
    )
    return f"{_text(config['data'])}\n\n{listed}"


def _input(config: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    rows = [(label, facts[label]) for label in ("channels", "spacing", "patch size", "normalisation")]
    if config["outputs"]:
        rows.append(("outputs of the heads", ", ".join(config["outputs"]["names"])))
    for number, channel in enumerate(config["intensities"] or ()):
        rows.append(
            (f"intensities of channel {number}", ", ".join(f"{name} {value:g}" for name, value in channel.items()))
        )
    table = ["| | |", "|---|---|", *(f"| {_text(label)} | {_text(text)} |" for label, text in rows)]
    notes = [f"- {_text(note)}" for note in config["notes"]]
    order = f"The axes of volumes, kernels, spacing and patch are in the order {', '.join(config['axes'])}."
    return "\n".join([*table, "", order, *(["", *notes] if notes else [])])


def _training(config: Mapping[str, Any]) -> str:
    made = f"Made from: {_text(config['kind'])}."
    settings = config["pretraining"]
    if settings is None:
        return made
    used = [name for name, block in settings["recipe"].items()
            if isinstance(block, Mapping) and block.get("probability")]  # fmt: skip
    how = "as a masked autoencoder" if _is_mae(config) else "by restoring corrupted patches (Models Genesis)"
    return (
        f"{made} Pre-trained {how}, {settings['epochs']} epochs of "
        f"{settings['iterations']} steps at most, with {', '.join(_text(name) for name in used) or 'no corruption'}. "
        "All settings are in `config.json`."
    )


def _files(config: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in config["trained_with"].items())
    origin = f" ({config['source']})" if config["source"] else ""
    lines = [f"- `model.safetensors`, SHA-256 `{config['weights_sha256']}`",
             f"- made from a checkpoint with SHA-256 `{config['source_sha256']}`{_text(origin)}"]  # fmt: skip
    return "\n".join([*lines, *([f"- trained with {_text(versions)}"] if versions else [])])


def _citation(config: Mapping[str, Any], citation: str) -> str:
    ours = [MAE if _is_mae(config) else GENESIS] if _is_ours(config) else []
    primus = [PRIMUS] if names_primus(config["architecture"]["network_class_name"]) else []
    entries = [*([citation.strip()] if citation.strip() else []), *ours, *primus, NNUNET]
    return (
        f"Licence: {config['licence']}. Please cite\n\n```bibtex\n" + "\n\n".join(entries).replace("```", "") + "\n```"
    )


def _text(text: object) -> str:
    """A text out of a file or from a user, as text of one line in Markdown."""
    return html.escape(printable(text), quote=False).replace("|", "\\|").replace("`", "'")
