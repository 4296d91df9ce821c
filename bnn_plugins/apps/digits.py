"""A small detection set of real handwritten digits, made on the spot: no download, COCO format.

The digits are the 1797 samples of ``sklearn.datasets.load_digits`` (Alpaydin and Kaynak, UCI Optical Recognition of
Handwritten Digits), 8x8 pixels of 17 grey levels. Each canvas holds a few of them, resized, turned, sheared and coloured, on
a textured background. The splits share no sample; the same writer may occur in several.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ..integrations.mmengine.classification.datasets import load_digit_images

CLASSES = tuple('0123456789')
SOURCE_SHARES = {'train': 0.65, 'val': 0.1, 'test': 0.25}


@dataclass(frozen=True)
class DigitsRecipe:
    """What a digits set is made of; the same recipe gives the same bytes (on the same numpy and OpenCV).

    Attributes:
        seed: of everything random.
        train: number of training canvases.
        val: number of validation canvases.
        test: number of test canvases.
        size: width and height of a canvas, in pixels.
        min_height: of an upright digit, in pixels.
        max_height: of an upright digit, in pixels.
        max_digits: on one canvas; there are at least two where they fit.
        max_overlap: of two boxes, as a share of the smaller one.
    """

    seed: int = 0
    train: int = 1200
    val: int = 100
    test: int = 300
    size: int = 128
    min_height: int = 20
    max_height: int = 48
    max_digits: int = 6
    max_overlap: float = 0.1


def make_digits(out: str | Path, recipe: DigitsRecipe | None = None) -> Path:
    """Write ``out/{train,val,test}/*.png`` and ``out/annotations/{train,val,test}.json``.

    Each annotation has ``source_id``, the index of its sample in ``load_digits()``; ``info`` holds the recipe.

    Raises:
        ImportError: without scikit-learn.
        OSError: ``out`` cannot be written (``FileExistsError``: it holds a set of another recipe).
    """
    out, recipe = Path(out), recipe or DigitsRecipe()
    images, labels = load_digit_images()
    found = read_recipe(out)
    if found not in (None, asdict(recipe)):
        raise FileExistsError(f'{str(out)!r} holds another set ({found}): choose another folder, or delete it')
    try:
        (out / 'annotations').mkdir(parents=True, exist_ok=True)
        # Annotations come last, those of the test split at the very end: where they are, the set is complete.
        for number, (split, samples) in enumerate(split_source(labels, recipe.seed).items()):
            write_split(out, split, recipe, images, labels, samples, np.random.default_rng([recipe.seed, 1 + number]))
    except OSError as error:
        raise type(error)(f'the digits set cannot be written to {str(out)!r} ({error}): choose a folder that can be written, '
                          'with 50 MB of free space') from error
    return out


def read_recipe(out: str | Path) -> dict | str | None:
    """The recipe of the complete set in ``out``, ``'not made by make_digits'``, or ``None`` where there is no set."""
    path = Path(out) / 'annotations' / 'test.json'
    if not path.is_file():
        return None
    return json.loads(path.read_text()).get('info', {}).get('recipe', 'not made by make_digits')


def split_source(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Disjoint samples for each split, the same shares of each class: ``{split: int[K]}``."""
    rng = np.random.default_rng([seed, 0])
    parts = {split: [] for split in SOURCE_SHARES}
    for label in range(len(CLASSES)):
        samples = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(list(SOURCE_SHARES.values())) * len(samples)).astype(int)
        for split, part in zip(parts, np.split(samples, ends[:-1]), strict=True):
            parts[split].append(part)
    return {split: np.concatenate(part) for split, part in parts.items()}


def write_split(out: Path, split: str, recipe: DigitsRecipe, images: np.ndarray, labels: np.ndarray, samples: np.ndarray,
                rng: np.random.Generator) -> None:
    """The canvases of one split, then its annotation file, in one move."""
    (out / split).mkdir(exist_ok=True)
    coco = {
        'info': {'description': 'handwritten digits of scikit-learn on textured canvases', 'recipe': asdict(recipe)},
        'licenses': [],
        'categories': [{'id': index, 'name': name} for index, name in enumerate(CLASSES)],
        'images': [],
        'annotations': [],
    }
    deck = np.empty(0, int)
    for image_id in range(getattr(recipe, split)):
        wanted = int(rng.integers(2, recipe.max_digits, endpoint=True))
        if len(deck) < wanted:  # each sample is used once before any is used again
            deck = np.concatenate([deck, rng.permutation(samples)])
        chosen, deck = deck[:wanted], deck[wanted:]
        canvas, boxes, placed = draw_canvas(images[chosen], recipe, rng)
        name = f'{image_id:05d}.png'
        (out / split / name).write_bytes(cv2.imencode('.png', canvas)[1].tobytes())
        coco['images'].append({'id': image_id, 'file_name': name, 'width': recipe.size, 'height': recipe.size})
        for (x, y, w, h), index in zip(boxes, placed, strict=True):
            source_id = int(chosen[index])
            coco['annotations'].append({
                'id': len(coco['annotations']) + 1, 'image_id': image_id, 'category_id': int(labels[source_id]),
                'bbox': [x, y, w, h], 'area': w * h, 'iscrowd': 0, 'source_id': source_id})
    part = out / 'annotations' / f'{split}.json.part'
    part.write_text(json.dumps(coco))
    part.replace(part.with_suffix(''))


def draw_canvas(digits: np.ndarray, recipe: DigitsRecipe,
                rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[int]]:
    """A textured background with digits where they fit.

    Args:
        digits: ``float32[K, 8, 8]``.

    Returns:
        ``uint8[size, size, 3]``, the boxes ``(x, y, w, h)`` and, for each, the index of its digit. The first digit always
        fits; a later one is left out after 30 places that overlap too much.
    """
    canvas = draw_background(recipe.size, rng)
    boxes, placed = [], []
    for index, digit in enumerate(digits):
        ink = draw_digit(digit, recipe, rng)
        h, w = ink.shape
        for _ in range(30):
            x, y = (int(rng.integers(0, recipe.size - length, endpoint=True)) for length in (w, h))
            if all(overlap((x, y, w, h), box) <= recipe.max_overlap for box in boxes):
                window = canvas[y:y + h, x:x + w]
                window += (ink * rng.uniform(0.85, 1))[..., None] * (ink_colour(window.mean((0, 1)), rng) - window)
                boxes.append((x, y, w, h))
                placed.append(index)
                break
    canvas += rng.normal(0, rng.uniform(0, 4), canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8), boxes, placed


def draw_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """``float64[size, size, 3]``: one colour, soft spots of two sizes, and a few faint strokes that are no digits."""
    canvas = np.full((size, size, 3), rng.uniform(50, 205, 3).mean() + rng.uniform(-20, 20, 3))
    for cells, strength in ((3, 25), (12, 10)):
        spots = rng.normal(0, rng.uniform(0, strength), (cells, cells, 3))
        canvas += cv2.resize(spots, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(0, 4)):
        start, end = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
        stroke = cv2.line(np.zeros((size, size)), start, end, 1.0, int(rng.integers(1, 4)), cv2.LINE_AA)
        canvas += stroke[..., None] * rng.uniform(-30, 30, 3)
    return canvas


def draw_digit(digit: np.ndarray, recipe: DigitsRecipe, rng: np.random.Generator) -> np.ndarray:
    """``float32[8, 8]`` -> opacity ``float32[h, w]``, cut out tightly: each edge of it touches ink."""
    height = np.exp(rng.uniform(np.log(recipe.min_height), np.log(recipe.max_height)))
    scale_y, angle, shear = height / 8, np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2)
    scale_x = scale_y * rng.uniform(0.85, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([scale_x, scale_y])
    side = recipe.size
    padded = np.pad(digit, 2)  # strokes reach the edge of the 8x8 grid: leave pixels for the interpolation to fade out
    centre = np.full(2, (side - 1) / 2) - matrix @ np.full(2, (len(padded) - 1) / 2)
    ink = cv2.warpAffine(padded, np.column_stack([matrix, centre]), (side, side), flags=cv2.INTER_CUBIC)
    ink = np.clip((ink - 0.3) / 0.4, 0, 1)  # steeper edges than the interpolation gives: strokes of a pen
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    return ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def ink_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that differs from ``background`` by 60 to 150 grey levels, lighter or darker: ``float64[3]``."""
    brightness = background.mean()
    sign = -1 if rng.uniform(0, 255) < brightness else 1
    return (brightness + sign * rng.uniform(60, 150) + rng.uniform(-25, 25, 3)).clip(0, 255)


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection of two boxes ``(x, y, w, h)`` over the area of the smaller one."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])
