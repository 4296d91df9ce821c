"""Images that are read and decoded when they are wanted, for sets that do not fit into memory."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

KEPT = 8  # row groups in the memory of a process: those of which rows are shuffled with each other


def to_float(image: Tensor) -> Tensor:
    """0..255 to [-1, 1]."""
    return image.float() / 127.5 - 1


class LazyImages(Dataset):
    """As :class:`.data.Images`, of rows that lie in groups: a group is read at once, a row is decoded by itself.

    Args:
        sizes: rows of each group.
        read: the rows of a group, still encoded.
        decode: one of them as ``(uint8 [C, H, W], label or None)``.
        first: rows before it are left out.
    """

    conditions = None

    def __init__(self, sizes: Sequence[int], read: Callable[[int], Sequence], decode: Callable[[object], tuple],
                 first: int = 0):
        self.ends, self.read, self.decode, self.first = list(accumulate(sizes)), read, decode, first
        self._groups: OrderedDict[tuple[int, int], Sequence] = OrderedDict()

    def __len__(self) -> int:
        return self.ends[-1] - self.first

    def row(self, index: int) -> tuple[Tensor, int | None]:
        """Decoded, by its number in the whole set."""
        group = bisect_right(self.ends, index)
        key = (os.getpid(), group)  # what a worker inherits may hold an open file
        if key not in self._groups:
            self._groups[key] = self.read(group)
            while len(self._groups) > KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self.decode(self._groups[key][index - (self.ends[group - 1] if group else 0)])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self.row(index + self.first)
        item = {'input': to_float(image)}
        return item if label is None else item | {'label': torch.tensor(label)}

    def split_first(self, count: int) -> tuple['LazyImages', Tensor, list]:
        """``(the others, images of the first count rows, their labels)``."""
        rows = [self.row(index) for index in range(self.first, self.first + count)]
        images = torch.stack([image for image, _ in rows]) if rows else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        rest = LazyImages([], self.read, self.decode, self.first + count)
        rest.ends = self.ends
        return rest, images, [label for _, label in rows]

    def sampler(self, seed: int) -> 'GroupOrder':
        return GroupOrder(self, seed)


class GroupOrder(Sampler):
    """All rows, in an order of each epoch: groups are shuffled, and the rows of ``KEPT`` groups with each other."""

    def __init__(self, data: LazyImages, seed: int):
        self.data, self.seed, self.epoch = data, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        first = self.data.first
        edges = zip([0, *self.data.ends], self.data.ends, strict=False)
        spans = [range(max(start - first, 0), end - first) for start, end in edges if end > first]
        for groups in torch.randperm(len(spans), generator=generator).split(KEPT):
            rows = torch.cat([torch.arange(spans[group].start, spans[group].stop) for group in groups.tolist()])
            yield from rows[torch.randperm(len(rows), generator=generator)].tolist()
