"""Normalization layers against arithmetic in float64 and PyTorch's own batch norm."""

import pytest
import torch
import two_processes
from torch import nn

from retina_ray.model.norms import (
    FrozenBatchNorm2d,
    PerLevelBatchNorm2d,
    SyncBatchNorm2d,
    make_norm,
)


def _random_frozen(channels: int = 3) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    return norm


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_is_the_affine_map_of_its_buffers(requires_grad):
    torch.manual_seed(0)
    norm = _random_frozen()
    x = torch.randn(2, 3, 4, 5, requires_grad=requires_grad)
    assert torch.equal(FrozenBatchNorm2d(3)(x), x)  # nothing, until weights are loaded
    mean, var, weight, bias = (
        t.double().view(1, -1, 1, 1)
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    expected = (x.detach().double() - mean) / (var + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(norm(x).detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_frozen_batch_norm_does_not_change_in_training_and_has_no_parameters():
    norm = _random_frozen().train()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    norm(x).sum().backward()
    assert list(norm.parameters()) == []
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(x.grad, scale.view(1, -1, 1, 1).expand_as(x))
    for name, tensor in norm.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_keeps_short_type_and_memory_format(requires_grad):
    norm = _random_frozen()
    x = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x.requires_grad_(requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_per_level_batch_norm_has_statistics_per_level_and_shares_the_affine_map():
    norm = PerLevelBatchNorm2d(2, num_levels=2).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([10.0, 20.0]))
    norm(torch.full((1, 2, 2, 2), 100.0), 0)
    norm(torch.full((1, 2, 2, 2), -7.0), 1)
    # momentum 0.1 from 0
    assert norm.levels[0].running_mean.tolist() == pytest.approx([10.0, 10.0])
    assert norm.levels[1].running_mean.tolist() == pytest.approx([-0.7, -0.7])
    assert sorted(name for name, _ in norm.named_parameters()) == ["bias", "weight"]

    norm.eval()
    x = torch.zeros(1, 2, 1, 1)
    for level, mean in ((0, 10.0), (1, -0.7)):
        std = (norm.levels[level].running_var[0].item() + 1e-5) ** 0.5
        expected = [10 + 2 * (0 - mean) / std, 20 + 3 * (0 - mean) / std]
        assert norm(x, level).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_group_norm_is_pytorchs_and_takes_one_value_a_group():
    x = torch.randn(2, 64, 3, 3)
    norm = make_norm("gn", 64)
    torch.testing.assert_close(norm(x), torch.nn.functional.group_norm(x, 32))
    norm = make_norm("gn", 32)
    with torch.no_grad():
        norm.bias.copy_(torch.arange(32.0))
    output = norm(torch.randn(1, 32, 1, 1)).flatten()
    torch.testing.assert_close(output, torch.arange(32.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "channels"), [("gn", 40), ("layer", 32)])
def test_unfit_channels_and_unknown_norms_are_refused(name, channels):
    with pytest.raises(ValueError, match=f"{channels} channels|{name}"):
        make_norm(name, channels)


def test_sync_batch_norm_of_one_process_is_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    sync, plain = SyncBatchNorm2d(3), nn.BatchNorm2d(3)
    torch.testing.assert_close(sync(x), plain(x))
    torch.testing.assert_close(sync.running_var, plain.running_var)


def test_sync_batch_norm_of_two_cpu_processes_is_batch_norm_of_the_whole_batch(tmp_path):
    torch.manual_seed(0)
    x, weights = torch.randn(3, 3, 4, 4) * 5 + 100, torch.randn(3, 3, 4, 4)

    def work(rank):
        share = slice(0, 1) if rank == 0 else slice(1, 3)  # one worker has a single image
        leaf, norm = x[share].clone().requires_grad_(), SyncBatchNorm2d(3)
        y = norm(leaf)
        (y * weights[share]).sum().backward()
        return y.detach(), leaf.grad, norm.running_mean, norm.running_var, norm.weight.grad

    first, second = two_processes.run(work, tmp_path)
    whole, norm = x.clone().requires_grad_(), nn.BatchNorm2d(3)
    y = norm(whole)
    (y * weights).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([first[0], second[0]]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), whole.grad, **close)
    for share in (first, second):
        torch.testing.assert_close(share[2], norm.running_mean, **close)
        torch.testing.assert_close(share[3], norm.running_var, **close)
    # The gradient of the affine map stays local: DDP sums it.
    torch.testing.assert_close(first[4] + second[4], norm.weight.grad, **close)
