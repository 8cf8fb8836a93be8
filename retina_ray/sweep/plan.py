"""What a sweep was asked to do: enough, in one file of its folder, to resume it tomorrow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from retina_ray.config import ConfigError, ExperimentConfig, from_json
from retina_ray.storage.files import read_text, write_text
from retina_ray.storage.uris import join_uri
from retina_ray.sweep.space import Choice, Domain, IntUniform, LogUniform, Space, Uniform

METRIC = "val/AP"
"""What trials are compared by."""

PLAN = "sweep.json"
"""The plan's file in the folder of a sweep."""

DOMAINS = {kind.__name__: kind for kind in (Choice, Uniform, LogUniform, IntUniform)}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, checked and complete.

    Attributes:
        name: also groups the W&B runs.
        uri: the sweep's folder.
        config: the base config, complete (classes set), that the space's values are put into.
        num_samples: trials.
        scheduler: `asha` stops the weaker trials early, `fifo` runs all to the end.
        search: `random`, or `optuna` (TPE).
        grace_epochs: ASHA lets every trial run at least this long.
        reduction_factor: ASHA keeps the best 1 / this share at each rung.
        max_concurrent: trials at once; None: as many as the cluster holds.
        seed: of the search.
    """

    name: str
    uri: str
    config: ExperimentConfig
    space: Space
    train_uri: str
    val_uri: str
    num_samples: int
    scheduler: Literal["asha", "fifo"] = "asha"
    search: Literal["random", "optuna"] = "random"
    grace_epochs: int = 2
    reduction_factor: int = 2
    max_concurrent: int | None = None
    seed: int = 0

    def trial_uri(self, trial_id: str) -> str:
        """Folder of a trial (`trial_00`, ...)."""
        return join_uri(self.uri, f"trials/{trial_id}")

    def save(self) -> None:
        """Write the plan to its file in the sweep's folder."""
        tree = {
            **{f: getattr(self, f) for f in self.__dataclass_fields__},
            "config": self.config.model_dump(mode="json"),
            "space": {path: _domain_tree(domain) for path, domain in self.space.items()},
        }
        write_text(join_uri(self.uri, PLAN), json.dumps(tree, indent=1))

    @classmethod
    def load(cls, uri: str) -> SweepPlan:
        """Read the plan of a sweep's folder.

        Raises:
            ConfigError: there is none.
        """
        text = read_text(join_uri(uri, PLAN))
        if text is None:
            raise ConfigError(f"{uri}: no sweep there (no {PLAN}); check --name and --storage")
        tree = json.loads(text)
        tree["config"] = from_json(ExperimentConfig, json.dumps(tree["config"]))
        tree["space"] = {path: _domain(domain) for path, domain in tree["space"].items()}
        tree["uri"] = uri
        return cls(**tree)


def _domain_tree(domain: Domain) -> dict[str, Any]:
    if isinstance(domain, Choice):
        return {"kind": "Choice", "values": list(domain.values)}
    return {"kind": type(domain).__name__, "low": domain.low, "high": domain.high}


def _domain(tree: dict[str, Any]) -> Domain:
    kind = DOMAINS[tree["kind"]]
    if kind is Choice:
        return Choice(*(tuple(v) if isinstance(v, list) else v for v in tree["values"]))
    return kind(tree["low"], tree["high"])
