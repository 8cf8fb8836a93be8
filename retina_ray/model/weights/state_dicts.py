"""Read state dicts from files and torchvision's model zoo, and load them with every fault named."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from retina_ray.config import ConfigError

if TYPE_CHECKING:
    from retina_ray.model.retinanet import RetinaNet


logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
Source = str | Path | Mapping[str, Tensor]

_MAX_LISTED = 20


def is_file(source: str | Path) -> bool:
    """Whether a source is meant as a file, and not as a name of torchvision's."""
    path = Path(source)
    suffixes = {".pth", ".pt", ".pkl", ".bin", ".ckpt", ".safetensors", ".tar"}
    return isinstance(source, Path) or path.exists() or path.suffix in suffixes or "/" in source


def read_state_dict(source: str | Path | Mapping[str, Tensor]) -> StateDict:
    """Read a state dict, without ever running code from the file.

    Nesting under `model` or `state_dict` (training checkpoints) is opened, and the `module.` that
    DistributedDataParallel puts before every name is taken off.

    A path is of a `.safetensors` file, or of a file of `torch.save` (any other ending).

    Raises:
        ConfigError: no such file, not loadable with `weights_only=True`, or no state dict.
    """
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    where = describe(source)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{where} holds {type(content).__name__}, expected names and tensors")
    if wrong := [str(k) for k, v in content.items() if not isinstance(v, Tensor)]:
        raise ConfigError(f"{where} holds values that are no tensors: {_listing(wrong)}")
    state = {str(k): v for k, v in content.items()}
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _read_file(path: Path) -> object:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read with torch.load(weights_only=True), and other pickles can run "
            "any code on loading, so they are refused (detectron2's model zoo has such .pkl "
            "files). If you trust the file, convert it once: read it with pickle.load (encoding "
            "'latin1'), then torch.save({k: torch.as_tensor(v) for k, v in data['model'].items()}, "
            f"'weights.pth'). The reason given: {str(error).splitlines()[0]}"
        ) from error


def download(weights: WeightsEnum) -> StateDict:
    """Fetch published weights of torchvision into the cache of torch.hub, and read them.

    Raises:
        ConfigError: they cannot be downloaded.
    """
    try:
        return weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise ConfigError(
            f"cannot download {weights} from {weights.url} ({error}): fetch the file on a machine "
            "with a network and give its path instead, or put it into the folder "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error


def load_named(
    module: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    what: str,
    path: str = "",
    faults: Iterable[str] = (),
) -> None:
    """Load tensors by name, all or nothing.

    The counters of batch norms (`num_batches_tracked`) are not asked for: nothing reads them.
    `names` has, for all that is to be loaded, the name in the module and that in the file; `what`
    and `path` say in a message where the state comes from, and to which setting it belongs.

    Raises:
        ConfigError: missing, unexpected, wrongly shaped or non-finite tensors, and `faults` found
            by the caller, all at once; the module is unchanged then.
    """
    own = module.state_dict()
    wanted = {theirs: own[ours] for ours, theirs in names.items()}
    both = [name for name in wanted if name in state]
    found = {
        "missing in the file": [n for n in wanted if n not in state and not _is_counter(n)],
        "not known to the model": [n for n in state if n not in wanted and not _is_counter(n)],
        "of another shape": [
            f"{n} {tuple(state[n].shape)}, the model has {tuple(wanted[n].shape)}"
            for n in both
            if state[n].shape != wanted[n].shape
        ],
        "with NaN or infinite values": [n for n in both if not torch.isfinite(state[n]).all()],
    }
    lines = [f"{len(n)} {kind}: {_listing(n)}" for kind, n in found.items() if n] + [*faults]
    if lines:
        raise ConfigError([(path, "\n  ".join([f"{what} does not fit the model:", *lines]))])
    loaded = {ours: state[theirs] for ours, theirs in names.items() if theirs in state}
    module.load_state_dict({**own, **loaded})


def describe(source: Source) -> str:
    """The source, for a message."""
    return "the state dict" if isinstance(source, Mapping) else str(source)


def warn_of_offset(model: RetinaNet) -> None:
    """Say so where the anchors are not where torchvision and detectron2 have them."""
    if model.anchors.offset != 0:
        logger.warning(
            "These weights were trained with anchors at an offset of 0.0, the model has %s: boxes "
            "will be off by that share of a stride. Set model.anchors.offset to 0.0.",
            model.anchors.offset,
        )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _listing(names: list[str]) -> str:
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + rest
