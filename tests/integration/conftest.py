"""Runs on a real Ray of this machine; each module of tests shares one."""

import pytest
import ray

from retina_ray.config import AnchorConfig, ExperimentConfig, ModelConfig, with_overrides
from retina_ray.data.loading.ray_stream import IDLE_VARIABLE
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.train.run.resources import connect


@pytest.fixture(scope="module")
def local_ray(tiny_config):
    """At least four logical CPUs, whatever the machine has, as the scripts start Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(IDLE_VARIABLE, "")  # so that what `connect` sets goes at the end
        patch.delenv(IDLE_VARIABLE)
        assert connect(tiny_config(**{"train.num_workers": 2})).cpus >= 4
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder of a prepared set of 10 drawn pictures of 64 px."""
    folder = tmp_path_factory.mktemp("shapes") / "train"
    make_shapes(str(folder), num_images=10, size_px=64, seed=3, split="train")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_config():
    """Make a config that trains for seconds; group norm, so that batches do not mix images."""

    def make(**overrides):
        base = ExperimentConfig(
            model=ModelConfig(
                num_classes=3,
                backbone="resnet18",
                backbone_norm="gn",
                freeze_stages=0,
                max_level=5,
                fpn_channels=32,
                head_num_convs=1,
                head_norm="gn",
                anchors=AnchorConfig(sizes=(12.0, 24.0, 48.0)),
            )
        )
        small = {
            "input.train_sizes_px": (64,),
            "input.train_max_size_px": 64,
            "input.eval_size_px": 64,
            "input.eval_max_size_px": 64,
            "optimizer.clip": "norm",
            "schedule.warmup_steps": 2,
            "train.epochs": 2,
            "train.batch_size": 4,
            "train.eval_batch_size": 3,
            "train.log_every_steps": 1,
            "train.cpus_per_worker": 1.0,
            "tracking.wandb": "disabled",
        }
        return with_overrides(base, {**small, **overrides})

    return make
