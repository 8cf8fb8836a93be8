"""Runs on a real Ray of this machine; each module of tests shares one."""

import pytest
import ray
from builders import small_config

from retina_ray.config import with_overrides
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
def shapes_set(tmp_path_factory):
    """Folder of a prepared set of 10 drawn images of 64 px."""
    folder = tmp_path_factory.mktemp("shapes") / "train"
    make_shapes(str(folder), num_images=10, size_px=64, seed=3, split="train")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_config():
    """Make a config whose whole model trains for seconds, with the optimizer's usual settings."""

    usual = with_overrides(
        small_config(),
        {
            "model.freeze_stages": 0,
            "optimizer": {"clip": "norm"},
            "schedule": {"warmup_steps": 2},
            "train.eval_batch_size": 3,
            "train.cpus_per_worker": 1.0,
            "tracking": {"wandb": "disabled"},
        },
    )
    return lambda **overrides: with_overrides(usual, overrides)
