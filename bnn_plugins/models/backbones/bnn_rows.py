"""An image as the sequence of its rows."""

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments
from ...registry import MODELS


@MODELS.register_module()
class BNNRows(BaseModule):
    """A real linear layer for each row, recurrent layers over the rows, the last hidden state.

    Args:
        row (int): values of a row, ``channels * width``.
        rnn (dict): as in :class:`bnn_plugins.models.BinaryLanguageModel`.
        embed_dims (int): of a row.

    Shape: ``[N, C, H, W]`` -> a tuple with one ``[N, hidden_size]``.
    """

    @checked_arguments
    def __init__(self, row: int, rnn: dict, embed_dims: int = 32, init_cfg: dict | list | None = None):
        super().__init__(init_cfg)
        self.embedding = nn.Linear(row, embed_dims)
        self.rnn = MODELS.build(dict(rnn, input_size=embed_dims, batch_first=True))
        self.feat_dim = self.rnn.hidden_size

    def forward(self, x: Tensor) -> tuple[Tensor]:
        _, (h, _) = self.rnn(self.embedding(x.transpose(1, 2).flatten(2)))
        return (h[-1],)
