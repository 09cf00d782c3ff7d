"""A residual torch network for the tests of `attach`."""

import torch
from torch import nn

import attzoo

X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A network with one residual block, a relu that is called twice, and modules that are not called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.unused, self.parts = nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ModuleList([nn.Identity()])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.head(torch.relu(x + y).mean((2, 3)))


def network():
    """Return the network in evaluation mode, with the same weights in every call."""
    torch.manual_seed(0)
    return Residual().eval()


def attached(name="se", **options):
    """Return the network with a block attached after `bn2`, and the report."""
    net = network()
    return net, attzoo.attach(net, name, **{"after": "bn2", "start": "identity"} | options)


def trained(name="cbam"):
    """Return the network with an attached block whose gamma is 0.5."""
    net, _ = attached(name)
    with torch.no_grad():
        net.bn2.attention.gamma.fill_(0.5)
    return net
