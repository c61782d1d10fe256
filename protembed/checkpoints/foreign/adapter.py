"""LoRA adapters of PEFT, merged into the weights that they stand beside: W + scale B A.

Hu et al. 2021, arXiv 2106.09685.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from protembed.checkpoints import hub
from protembed.checkpoints.foreign.config_keys import Keys, Only, Used, read_keys, unused
from protembed.checkpoints.foreign.tensors import Weights
from protembed.checkpoints.registry import find_known
from protembed.checkpoints.tensor_file import FLOATS, Spec
from protembed.errors import ModelError
from protembed.schema import Between, read_object, said

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)*")
_SAVED = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.)")

Rank = Annotated[int, Between(1, 2**16)]
Alpha = Annotated[float, Between(-1e6, 1e6)]

KEYS: Keys = {
    "peft_type": Only(("LORA",), "only LoRA adapters are merged"),
    "base_model_name_or_path": Used(str | None),
    "r": Used(Rank),
    "lora_alpha": Used(Alpha),
    "use_rslora": Used(bool | None),
    "rank_pattern": Used(Mapping[str, Rank] | None),
    "alpha_pattern": Used(Mapping[str, Alpha] | None),
    "modules_to_save": Used(tuple[str, ...] | None),
    "use_dora": Only((False, None), "DoRA scales the columns of the weights, which is not merged"),
    "bias": Only(("none", None), "its trained biases are not merged"),
    "lora_bias": Only((False, None), "its trained biases are not merged"),
    "fan_in_fan_out": Only((False, None), "the layers of these models are stored as (out, in)"),
    "init_lora_weights": Only(
        (True, False, None, "gaussian", "orthogonal", "eva"), "such an adapter begins by changing the base weights"
    ),
    "use_qalora": Only((False, None), "QALoRA pools the inputs of its layers"),
    "layer_replication": Only((None,), "layers are repeated"),
    "trainable_token_indices": Only((None,), "rows of the embedding are trained"),
    "target_parameters": Only((None, []), "parameters outside of layers are trained"),
    "alora_invocation_tokens": Only((None,), "it acts behind some tokens alone"),
    **unused(
        "the tensors say themselves which layers they are for",
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    ),
    **unused("is of training alone", "lora_dropout", "inference_mode", "loftq_config", "eva_config", "corda_config"),
    **unused(
        "says where the files come from, or how they are opened",
        *("task_type", "revision", "auto_mapping", "peft_version", "megatron_config", "megatron_core"),
        *("runtime_config", "qalora_group_size", "ensure_weight_tying", "arrow_config"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter: its files, and what its configuration says."""

    folder: Path
    file: Path
    settings: Mapping[str, Any]

    def base(self) -> Path:
        """Return where the weights are that it was trained on: a path, or a model in the hub's cache.

        Raises ModelError when they are not on this machine.
        """
        name = self.settings.get("base_model_name_or_path") or ""
        known = find_known(name)
        repos = known.repos if known else (name,)
        places = [self.folder / name, Path(name)] if name else []
        places += [place for repo in repos if name and (place := hub.find_cached(repo))]
        found = next((place for place in places if place.exists()), None)
        if found is None or found.resolve() == self.folder.resolve():
            raise ModelError(
                f"{self.folder}: holds a LoRA adapter without the model that it was trained on, {said(name)}",
                hint=f"Put that model's files into the same folder, or bring it here: protembed pull {name or 'MODEL'}",
            )
        if ((found if found.is_dir() else found.parent) / CONFIG).is_file():
            raise ModelError(f"{self.folder}: its base {found} has an adapter of its own", hint="Merge that one first.")
        return found

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of B A for one layer: alpha / rank, or alpha / sqrt(rank) (rsLoRA). Raises ModelError."""
        stated = self._of(module, "rank_pattern", "r", 8)
        if rank != stated:
            raise ModelError(f"{self.file}: {module} has the rank {rank}, and {CONFIG} says {stated}")
        alpha = float(self._of(module, "alpha_pattern", "lora_alpha", 8))
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)

    def _of(self, module: str, pattern: str, name: str, default: int) -> Any:
        for key, value in (self.settings.get(pattern) or {}).items():
            if not re.fullmatch(r"[\w.]+", key):
                raise ModelError(f"{self.folder / CONFIG}: {pattern} has {said(key)}: only names of layers are known")
            if f".{module}".endswith(f".{key}"):
                return value
        return self.settings.get(name, default)


def is_part(file: Path) -> bool:
    """Tell whether a file holds the weights of an adapter, not those of a model."""
    return file.name in _FILES


def find(path: Path) -> Adapter | None:
    """Return the adapter that lies in a folder, or beside a file. Raises ModelError for one that cannot be merged."""
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        return None
    values = read_object(folder / CONFIG)
    if "peft_type" not in values:
        raise ModelError(f"{folder / CONFIG}: is no adapter of PEFT, which alone are merged into their models")
    settings = read_keys(values, KEYS, str(folder / CONFIG))
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"{folder}: {CONFIG} is there, and {_FILES[0]} is not", hint="Is the folder complete?")
    return Adapter(folder=folder, file=file, settings=settings)


class Merged:
    """The weights of a model with those of an adapter in them; what is merged is float32.

    Every tensor of the adapter must have its place. Raises ModelError.
    """

    def __init__(self, weights: Weights, adapter: Adapter, tensors: Weights) -> None:
        self._weights, self._adapter, self._tensors = weights, adapter, tensors
        self._pairs: dict[str, dict[str, str]] = {}
        self._modules: dict[str, tuple[str, bool]] = {}
        self._instead: dict[str, str] = {}
        for name in tensors.specs:
            self._place(name)
        self.specs: dict[str, Spec] = dict(weights.specs)
        self.specs |= {name: tensors.specs[own] for name, own in self._instead.items()}
        for name, pair in self._pairs.items():
            if set(pair) != {"A", "B"}:
                raise ModelError(f"{adapter.file}: of the two matrices for {name} one is missing")
            self.specs[name] = Spec(shape=weights.specs[name].shape, dtype=torch.float32)
        warnings.warn(
            f"{adapter.folder}: the LoRA adapter there is merged into {len(self._pairs)} matrices of the model",
            stacklevel=4,
        )

    def read(self, name: str, *, keep: bool = False) -> Tensor:
        if name in self._instead:
            return self._tensors.read(self._instead[name], keep=keep)
        tensor = self._weights.read(name, keep=keep)
        if name not in self._pairs:
            return tensor
        if tensor.dtype not in FLOATS:
            raise ModelError(f"{self._adapter.folder}: {name} is quantised; an adapter is merged into plain weights")
        a, b = (self._tensors.read(self._pairs[name][part], keep=keep).double() for part in "AB")
        module, is_embedding = self._modules[name]
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise ModelError(f"{self._adapter.file}: the matrices for {module} do not fit: {a.shape}, {b.shape}")
        change = (b @ a) * self._adapter.scale(module, len(a))
        change = change.T if is_embedding else change
        if change.shape != tensor.shape:
            raise ModelError(
                f"{self._adapter.file}: {module} is {tuple(change.shape)} there and {tuple(tensor.shape)} in the model"
            )
        return (tensor.double() + change).float()

    def _place(self, name: str) -> None:
        """Find what a tensor of the adapter belongs to."""
        local = _SAVED.sub("", name.removeprefix(_PREFIX))
        if part := _PART.fullmatch(local):
            module, embedding, letter = part[1], bool(part[2]), part[3]
            target = self._resolve(f"{module}.weight")
            if target is None:
                raise ModelError(f"{self._adapter.file}: {name} has no place: the model has no {module}.weight")
            if self._pairs.setdefault(target, {}).setdefault(letter, name) != name:
                raise ModelError(f"{self._adapter.file}: holds two matrices {letter} for {module}")
            self._modules[target] = module, embedding
            return
        saved = self._adapter.settings.get("modules_to_save") or ()
        if not any(f".{module}." in f".{local}" for module in saved):
            raise ModelError(
                f"{self._adapter.file}: {name} is no matrix of LoRA and not of modules_to_save: it cannot be merged",
                hint="Merge it with the program that wrote it (PEFT: merge_and_unload), and save the whole model.",
            )
        self._instead[self._resolve(local) or local] = name

    def _resolve(self, local: str) -> str | None:
        """Return the name that the model has for a tensor, which may lie one level deeper or less deep there."""
        specs = self._weights.specs
        if local in specs:
            return local
        if (inner := local.partition(".")[2]) in specs:
            return inner
        ends = [name for name in specs if name.partition(".")[2] == local]
        return ends[0] if len(ends) == 1 else None
