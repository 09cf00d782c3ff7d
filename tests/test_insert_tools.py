"""Torch networks with attached blocks in torch's tools that average, fuse and quantize networks."""

import copy

import pytest
import torch
from residual import X, attached, network, trained
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.testing import assert_close

import attzoo


def test_averaged_model_contains_the_blocks():
    net = trained()
    averaged = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75))
    averaged.update_parameters(net)
    with torch.no_grad():
        net.bn2.attention.gamma.fill_(1.5)
    averaged.update_parameters(net)
    assert_close(averaged.module.bn2.attention.gamma.item(), 0.75 * 0.5 + 0.25 * 1.5)
    weights = attzoo.weights(averaged)
    assert weights["bn2.attention.gamma"] == averaged.module.bn2.attention.gamma.item()


# ---- fusion of convolutions and norms --------------------------------------------------------------------------------


def fuse(net):
    """Return a copy of a network whose norms torch.fx has fused into the convolutions before them."""
    from torch.fx.experimental import optimization
    return optimization.fuse(net)


def test_block_attached_after_fusion_gives_the_same_output():
    """docs/attaching.md recommends this order: fusion first, `attach` afterwards."""
    net, _ = attached(start="default")
    fused = fuse(network())
    attzoo.attach(fused, "se", after="conv2")
    attzoo.load_weights(fused, net)
    assert_close(fused(X), net(X), rtol=1e-4, atol=1e-5)


def test_fusion_by_fx_removes_a_block_after_the_norm():
    """docs/attaching.md therefore recommends fusion first. The fused network contains nothing of the block."""
    net, _ = attached(start="default")
    fused = fuse(net)
    assert not [key for key in fused.state_dict() if "attention" in key]
    assert_close(fused(X), network()(X), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(X), network()(X), rtol=1e-3, atol=1e-3)


def test_fusion_moves_a_block_between_convolution_and_norm_behind_the_norm():
    """docs/attaching.md therefore recommends fusion first."""
    net, _ = attached(after="conv2", start="default")
    net.bn2.running_mean.fill_(0.5)
    net.bn2.running_var.fill_(4)
    fused, y = fuse_conv_bn_eval(net.conv2, net.bn2), torch.randn(2, 8, 5, 4)
    assert_close(fused(y), fused.attention(net.bn2(network().conv2(y))), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fused(y), net.bn2(net.conv2(y)), rtol=1e-3, atol=1e-3)


# ---- quantization ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning")
def test_dynamic_quantization_keeps_the_block():
    net, _ = attached(start="default")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear})
    assert "quantized" in type(quantized.head).__module__
    assert type(quantized.bn2.attention) is type(net.bn2.attention)
    expected = net(X)
    assert 0 < (quantized(X) - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.allclose(quantized(X), network()(X), rtol=0.05)
