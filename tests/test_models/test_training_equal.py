"""A whole network trained by the training operators and by torch's: apart only as far as rounding carries both."""

import pytest
import torch
from torch.nn import functional as F

from bnn_plugins import after_step_, set_progress, set_training_path, training_report
from bnn_plugins.models import BNNCifarResNet

STEPS = 30


def losses(method: str, path: str, dtype: torch.dtype) -> list[float]:
    torch.manual_seed(0)
    network = BNNCifarResNet(8, method=method, base_channels=8).train()
    network.init_weights()  # the same random numbers for both dtypes
    head = torch.nn.Linear(32, 4).to(dtype)
    network.to(dtype)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    generator, values = torch.Generator().manual_seed(1), []
    images, labels = torch.randn(64, 3, 16, 16, generator=generator), torch.arange(64) % 4
    images += 0.3 * labels.view(-1, 1, 1, 1)
    with set_training_path(path):
        for step in range(STEPS):
            set_progress(network, step / STEPS)
            batch = torch.randperm(64, generator=generator)[:32]
            loss = F.cross_entropy(head(network(images[batch].to(dtype))[0].mean((2, 3))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step_(network)
            values.append(loss.item())
    if dtype == torch.float32:
        assert training_report(network).endswith('6 of 6 binary layers') is (path == 'operators')
    return values


@pytest.mark.parametrize('method', ['binarynet', 'reactnet', 'recu', 'rbnn', 'irnet'])
def test_losses_stay_together(method):
    """A sign that flips by rounding changes what follows, in float32 by torch just as here: both are held against float64."""
    exact = torch.tensor(losses(method, 'torch', torch.float64))
    torch32, operators = (torch.tensor(losses(method, path, torch.float32)) for path in ('torch', 'operators'))
    assert abs(operators[0] - exact[0]) < 1e-5
    assert (operators[:5] - exact[:5]).abs().amax() < 0.02
    spread = (torch32 - exact).abs().mean()
    assert (operators - exact).abs().mean() < 0.02 + 5 * spread
    assert operators[-5:].mean() < 0.7 * operators[:3].mean(), 'it learns'
