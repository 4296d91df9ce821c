"""A character model around any recurrent layer."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..binarize.lookup import checked_arguments
from ..registry import MODELS


@MODELS.register_module()
class BinaryLanguageModel(BaseModel):
    """Real embedding, recurrent layers, real linear layer: the first and the last layer of a binary network.

    Args:
        vocabulary (int): number of characters, K.
        rnn (dict): ``dict(type='bnn_plugins.BinaryLSTM', hidden_size=...)``, or ``'bnn_plugins.LSTM'`` for torch's; takes
            ``input_size`` and ``batch_first`` from here.
        embed_dims (int): of the embedding.
        dropout (float): in front of the last layer.
    """

    @checked_arguments
    def __init__(self, vocabulary: int, rnn: dict, embed_dims: int = 128, dropout: float = 0.0,
                 data_preprocessor: dict | None = None, init_cfg: dict | list | None = None):
        super().__init__(data_preprocessor or dict(type='mmengine.BaseDataPreprocessor'), init_cfg)
        self.embedding = nn.Embedding(vocabulary, embed_dims)
        self.rnn = MODELS.build(dict(rnn, input_size=embed_dims, batch_first=True))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.rnn.hidden_size * (2 if self.rnn.bidirectional else 1), vocabulary)

    def step(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Characters ``int64 [N, T]`` and the state before -> logits ``[N, T, K]``, state."""
        out, state = self.rnn(self.embedding(inputs), state)
        return self.head(self.dropout(out)), state

    def forward(self, inputs: Tensor, labels: Tensor | None = None, skip: Tensor | None = None,
                mode: str = 'tensor') -> Tensor | dict | list:
        """``int64 [N, T]``; the first ``skip`` ``[N]`` labels of a row do not count.

        ``mode='tensor'``: logits ``[N, T, K]``. ``'loss'``: the mean negative log-likelihood in nats. ``'predict'``: for each
        row ``nats``, its sum, and ``count``.
        """
        logits, _ = self.step(inputs)
        if mode == 'tensor':
            return logits
        nats = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction='none')
        if mode == 'loss':
            return dict(loss=nats.mean())
        if mode != 'predict':
            raise ValueError(f"mode is 'tensor', 'loss' or 'predict', but got {mode!r}")
        counted = torch.arange(labels.shape[1], device=labels.device) >= skip[:, None]
        return [dict(nats=row, count=count) for row, count in zip((nats * counted).sum(1), counted.sum(1), strict=True)]

    def write(self, prompt: str = '\n', length: int = 300, temperature: float = 0.8, seed: int = 0) -> str:
        """``prompt`` and ``length`` characters behind it. ``dataset_meta['characters']`` of the model names the characters.

        Raises as :meth:`tokens`.
        """
        characters = self.dataset_meta['characters']
        return prompt + ''.join(characters[token] for token in self.generate(self.tokens(prompt), length, temperature, seed))

    def tokens(self, prompt: str) -> Tensor:
        """The characters of a text as ``int64 [T]``.

        Raises:
            ValueError: for a prompt with characters that the text of the training does not have.
        """
        characters = self.dataset_meta['characters']
        unknown = sorted(set(prompt) - set(characters))
        if unknown:
            raise ValueError(f'the prompt has {unknown[0]!r}, which the text of the model does not have')
        return torch.tensor([characters.index(character) for character in prompt], dtype=torch.long)

    @torch.no_grad()
    def generate(self, prompt: Tensor, length: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """``length`` characters ``int64 [length]`` that follow ``prompt`` ``int64 [T]``, drawn one by one.

        Raises:
            ValueError: for an empty prompt.
        """
        if not len(prompt):
            raise ValueError('the prompt needs a character to begin with')
        generator = torch.Generator(prompt.device).manual_seed(seed)
        drawn, state, inputs = [], None, prompt[None]
        for _ in range(length):
            logits, state = self.step(inputs, state)
            share = (logits[0, -1].float() / temperature).softmax(-1)
            inputs = torch.multinomial(share, 1, generator=generator)[None]
            drawn.append(inputs[0])
        return torch.cat(drawn) if drawn else prompt[:0]
