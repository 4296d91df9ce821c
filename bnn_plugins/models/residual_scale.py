"""What stands for a norm in networks without norms."""

from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class ResidualScale(nn.Module):
    """A constant factor, so that the variance of the stream grows slowly: ``norm_cfg=dict(type='bnn_plugins.ResidualScale')``.

    0.2 in the residual branches, 1 in the stem, as in Chen et al. 2021 ("BNN - BN = ?"), arXiv 2104.08215. Their second
    factor, in front of the sign, divides by the expected deviation, which is between 1 and 1.15 here and left to the learned
    thresholds.

    Shape: kept.
    """

    _abbr_ = 'scale'

    def __init__(self, num_features: int, scale: float = 0.2, eps: float = 0.0):
        super().__init__()
        self.num_features, self.scale = num_features, scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def extra_repr(self) -> str:
        return f'scale={self.scale}'
