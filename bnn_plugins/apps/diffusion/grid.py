"""Many pictures in one."""

import math

from PIL import Image, ImageOps

BORDER = 1
LEAST = 512  # pixels of the longer side


def picture_grid(images: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Rows of pictures with a line between them, enlarged in whole steps where it would be tiny.

    Args:
        images: of one size.
        columns: ``None`` for about as many as rows.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, LEAST // (max(images[0].size) * columns))
    framed = [ImageOps.expand(image.convert('RGB').resize([side * scale for side in image.size], Image.Resampling.NEAREST),
                              BORDER, 'gray') for image in images]
    width, height = framed[0].size
    grid = Image.new('RGB', (columns * width, math.ceil(len(images) / columns) * height), 'gray')
    for index, image in enumerate(framed):
        grid.paste(image, (index % columns * width, index // columns * height))
    return grid
