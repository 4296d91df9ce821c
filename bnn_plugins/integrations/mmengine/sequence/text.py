"""Windows of one text file, character by character."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ....binarize.lookup import checked_arguments, unknown
from ....registry import DATASETS

PARTS = ('train', 'val')


@lru_cache(maxsize=4)
def read_text(path: str) -> tuple[str, Tensor]:
    """The characters of a file in the order of their code points, and the text as indices ``int64 [L]`` into them.

    Raises:
        FileNotFoundError: without the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'the text {path!r} does not exist: set path in the config to where it lies, or use '
                                '--cfg-options train_dataloader.dataset.path=... (and the same for val and test)')
    text = Path(path).read_text(encoding='utf-8')
    characters = ''.join(sorted(set(text)))
    index = {character: i for i, character in enumerate(characters)}
    return characters, torch.tensor([index[character] for character in text])


@DATASETS.register_module()
class TextWindows(Dataset):
    """Windows of ``length`` characters and the characters that follow each.

    An item is ``dict(inputs=int64 [length], labels=int64 [length], skip=int)``; the first ``skip`` labels are context only.
    Each label that is not skipped occurs in one window: with ``stride = length - context``, every character of a text is
    predicted once, from at least ``context`` characters before it (from less at the beginning of the part).

    Args:
        path: a text file in UTF-8.
        part: ``'train'``, or ``'val'``, the end of the text.
        length: of a window, in characters.
        stride: between windows, in characters; with 1 every character begins a window, for training.
        held_out: length of the ``'val'`` part, as a share of the text.

    Raises:
        FileNotFoundError: without the file. ValueError: for an unknown part, or where the part is shorter than a window.
    """

    @checked_arguments
    def __init__(self, path: str, part: str = 'train', length: int = 100, stride: int = 1, held_out: float = 0.1):
        if part not in PARTS:
            raise ValueError(unknown('part', part, PARTS))
        self.characters, tokens = read_text(str(path))
        cut = len(tokens) - round(held_out * len(tokens))
        self.tokens = tokens[:cut] if part == 'train' else tokens[cut:]
        self.length, self.stride = length, stride
        if len(self.tokens) <= length:
            raise ValueError(f'the part {part!r} of {path} has {len(self.tokens)} characters, which is no window of {length}')
        self.metainfo = dict(characters=self.characters)

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1 - self.length) // self.stride) + 1

    def __getitem__(self, index: int) -> dict:
        start = min(index * self.stride, len(self.tokens) - 1 - self.length)  # the last one is moved back to its full length
        before = 0 if index == 0 else (index - 1) * self.stride + self.length  # first label that no earlier window has
        window = self.tokens[start:start + self.length + 1]
        return dict(inputs=window[:-1], labels=window[1:], skip=before - start if self.stride > 1 and index else 0)
