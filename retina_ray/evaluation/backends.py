"""Which code computes COCO's metrics: pycocotools, the referee, or faster-coco-eval, in C++.

Both give the same values, to 1e-9 and closer; a test holds them to it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal

from retina_ray.config import ConfigError

Backend = Literal["auto", "pycocotools", "faster-coco-eval"]
"""`auto`: faster-coco-eval where it is installed."""

_BACKENDS = ("auto", "pycocotools", "faster-coco-eval")
_FAST_MODULE = "faster_coco_eval"


def require_backend(backend: Backend) -> None:
    """Refuse a backend that is not installed, before anything is computed.

    Raises:
        ConfigError: it is not installed.
        ValueError: there is no such backend.
    """
    if backend not in _BACKENDS:
        expected = ", ".join(map(repr, _BACKENDS))
        raise ValueError(f"backend: expected one of {expected}, got {backend!r}")
    if backend == "faster-coco-eval" and not _fast_is_installed():
        message = (
            "'faster-coco-eval' is not installed: pip install 'retina_ray[fast-eval]' on every "
            "machine, or take 'auto' or 'pycocotools', which give the same metrics"
        )
        raise ConfigError([("inference.evaluation_backend", message)])


def resolve_backend(backend: Backend, *, rotated: bool) -> Backend:
    """The backend that `auto` stands for here; others as they are.

    Only pycocotools is taught rotated boxes.

    Raises:
        ConfigError: it is not installed.
        ValueError: there is no such backend, or it does not know rotated boxes.
    """
    require_backend(backend)
    if backend == "faster-coco-eval" and rotated:
        raise ValueError(
            "backend: 'faster-coco-eval' has no rotated boxes, use 'auto' or 'pycocotools'"
        )
    if backend == "auto":
        return "pycocotools" if rotated or not _fast_is_installed() else "faster-coco-eval"
    return backend


def backend_classes(backend: Backend, *, rotated: bool) -> tuple[Any, Any]:
    """What holds ground truth or results, and what evaluates them; not for `auto`."""
    if backend == "faster-coco-eval":
        module = importlib.import_module(_FAST_MODULE)
        return module.COCO, module.COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if rotated:
        from retina_ray.evaluation.rotated import RotatedEvaluation

        return COCO, RotatedEvaluation
    return COCO, COCOeval


def _fast_is_installed() -> bool:
    return importlib.util.find_spec(_FAST_MODULE) is not None
