"""Networks and modules of other libraries with random weights. benchmarks.peers.INSTALL is the pip command."""

import warnings
from operator import attrgetter

import pytest
import torch
from torch import nn

from benchmarks.peers import INSTALL, load

RNG = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def library(name):
    """Return the imported library, or skip the test if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # other libraries warn while they load
        try:
            return load(name)
        except ModuleNotFoundError as err:
            pytest.skip(f"{err.name} is not installed; to run this: {INSTALL}")


def network(package, name, **options):
    """Return a network with random weights and running statistics, in evaluation mode."""
    torch.manual_seed(0)
    if package == "timm":
        net = library("timm").create_model(name, num_classes=3, **options)
    else:
        net = attrgetter(name)(library("torchvision.models"))(num_classes=3, **options)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def random_weights(module):
    """Return a module in float64 and evaluation mode, after setting random parameters and running statistics."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=RNG))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=RNG) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=RNG))
    return module.double().eval()
