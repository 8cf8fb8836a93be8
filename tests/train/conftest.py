"""A few drawn images, and runs on them in this process, without Ray."""

import pytest
from builders import Harness, damaged_copy, small_config
from torchvision.models.resnet import BasicBlock, ResNet

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes


class NarrowResNet(ResNet):
    """One block a stage, of half the channels: a run takes a third of the time."""

    def _make_layer(self, block, planes, blocks, **options):
        return super()._make_layer(block, planes // 2, 1, **options)


@pytest.fixture(scope="module", autouse=True)
def narrow_backbone():
    """What is tested here is the run, whatever model it trains."""

    def get_model(name, *, weights, **options):
        return NarrowResNet(BasicBlock, [1, 1, 1, 1], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retina_ray.model.backbone.get_model", get_model)
        yield


@pytest.fixture(scope="session")
def eight_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "train"
    make_shapes(str(folder), num_images=8, size_px=64, seed=3, split="train")
    return str(folder)


@pytest.fixture(scope="module")
def damaged_images(tmp_path_factory, eight_images):
    """The eight images, two of which are no images any more, and the names of these."""
    folder = damaged_copy(eight_images, tmp_path_factory.mktemp("damaged"), (2, 5))
    names = PreparedDataset.open(eight_images).annotations()["file_name"].to_pylist()
    return folder, {names[2], names[5]}


@pytest.fixture
def harness(tmp_path, eight_images):
    return Harness(tmp_path, eight_images)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, eight_images):
    """A run of two epochs that nothing happens to."""
    harness = Harness(tmp_path_factory.mktemp("whole"), eight_images)
    spec = harness.spec(small_config(), "whole")
    harness.run(spec)
    return spec
