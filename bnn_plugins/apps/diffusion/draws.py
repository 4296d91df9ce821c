"""Random numbers of each image of a batch, from a generator of its own: they do not depend on what is in a batch with it."""

import torch
from torch import Tensor


class ImageDraws:
    """Draws for a batch, ``[N, ...]``.

    Args:
        first: number of the first image; equal numbers draw equally.
        count: N.
        seed: of the training.
        device: of what is drawn.
    """

    def __init__(self, first: int, count: int, seed: int, device: torch.device):
        self.device = device
        self.generators = [torch.Generator(device).manual_seed(seed * 1_000_003 + first + index) for index in range(count)]

    def __call__(self, sample, *args) -> Tensor:
        """``sample(*args)`` of torch for each image, such as ``draw(torch.randn, (3, 8, 8))``."""
        return torch.stack([sample(*args, generator=generator, device=self.device) for generator in self.generators])

    def flipped(self, *images: Tensor | None) -> list[Tensor | None]:
        """Images and what belongs to them, mirrored together or not."""
        flip = self(torch.rand, (1, 1, 1)) < 0.5
        return [x if x is None else torch.where(flip, x.flip(3), x) for x in images]

    def cropped(self, size: int, *images: Tensor | None) -> list[Tensor | None]:
        """A square of each image, the same of what belongs to it: ``[N, C, H, W]`` -> ``[N, C, size, size]``."""
        count, _, *image = images[0].shape
        window = torch.arange(size, device=self.device)
        rows, columns = (self(torch.randint, side - size + 1, (1,)) + window for side in image)
        rows, columns = rows.view(count, 1, size, 1), columns.view(count, 1, 1, size)
        return [x if x is None else x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3]))
                .gather(3, columns.expand(-1, x.shape[1], size, -1)) for x in images]
