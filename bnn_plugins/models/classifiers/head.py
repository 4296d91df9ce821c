"""From the last map of a backbone to logits and a loss."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments, unknown
from ...layers import BinaryLinear
from ...registry import MODELS

POOLS = ('mean', 'flatten')


@MODELS.register_module()
class ClassifierHead(BaseModule):
    """Pooling, (dropout, norm,) a linear layer.

    Args:
        num_classes (int): K.
        in_channels (int): of the last map; the classifier fills in what its backbone gives.
        pool (str): ``'mean'`` over the positions, or ``'flatten'``.
        pixels (int): positions of the map, with ``'flatten'``.
        norm (bool): batch norm in front of a real linear layer (IR-Net). A binary one always has one behind it (BinaryNet).
        dropout (float): in front of the linear layer.
        method (str | dict | None): binarizes the linear layer; ``None``: it is real.
        loss (dict): from :mod:`bnn_plugins.models.losses`.

    Raises:
        ValueError: for another ``pool``.
    """

    @checked_arguments
    def __init__(self, num_classes: int, in_channels: int, pool: str = 'mean', pixels: int = 1, norm: bool = False,
                 dropout: float = 0.0, method: str | dict | None = None, loss: dict | None = None,
                 init_cfg: dict | list | None = None):
        super().__init__(init_cfg)
        if pool not in POOLS:
            raise ValueError(unknown('pool', pool, POOLS))
        self.pool = pool
        features = in_channels * pixels if pool == 'flatten' else in_channels
        self.norm = nn.BatchNorm1d(features) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        if method is None:
            self.fc = nn.Linear(features, num_classes)
        else:
            self.fc = nn.Sequential(BinaryLinear(features, num_classes, bias=False, method=method),
                                    nn.BatchNorm1d(num_classes))
        self.loss_module = MODELS.build(loss or dict(type='bnn_plugins.CrossEntropy'))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The maps of a backbone, the last of them ``[N, in_channels(, H, W)]`` -> logits ``[N, K]``."""
        x = features[-1]
        if x.ndim == 4:
            x = x.mean((2, 3)) if self.pool == 'mean' else x.flatten(1)
        return self.fc(self.dropout(self.norm(x)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss_module(logits, labels)
