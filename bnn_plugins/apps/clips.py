"""Clips from photographs: a window pans over each image, its boxes are tracked. COCO format with videos, as mmdet reads it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')


@dataclass(frozen=True)
class ClipsRecipe:
    """What a set of clips is made of; the same recipe gives the same clips.

    Attributes:
        seed: of everything random.
        train: clips of each image of the training split.
        val: clips of each image of the validation split.
        test: clips of each image of the test split.
        length: frames of a clip.
        size: width and height of the window, in pixels of the shrunk image.
        shrink: the image is made so many times smaller first.
        speed: of the window, at most, in pixels per frame; it moves in a straight line of random direction.
        noise: standard deviation of the grey levels, of each frame by itself.
        min_visible: boxes of which a smaller share is inside of the window are left out of the frame.
    """

    seed: int = 0
    train: int = 1
    val: int = 1
    test: int = 1
    length: int = 8
    size: int = 160
    shrink: float = 2.0
    speed: float = 6.0
    noise: float = 12.0
    min_visible: float = 0.4


def make_clips(source: str | Path, out: str | Path, recipe: ClipsRecipe | None = None,
               classes: tuple[str, ...] = BCCD_CLASSES) -> Path:
    """Write ``out/{train,val,test}/*.jpg`` and ``out/annotations/{train,val,test}.json`` from a set in Pascal VOC layout.

    ``videos``, ``video_id`` and ``frame_id`` of images and ``instance_id`` of annotations are those of mmdet's tracking sets.

    Raises:
        FileNotFoundError: without the source. ValueError: where the window does not fit into an image.
    """
    from ..integrations.mmdet.datasets import VOCDataset

    out, recipe = Path(out), recipe or ClipsRecipe()
    (out / 'annotations').mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(('train', 'val', 'test')):
        images = VOCDataset(data_root=f'{source}/', ann_file=f'ImageSets/Main/{split}.txt', data_prefix=dict(sub_data_root=''),
                            metainfo=dict(classes=classes), test_mode=True)
        (out / split).mkdir(exist_ok=True)
        rng = np.random.default_rng([recipe.seed, number])
        videos, frames, annotations = [], [], []
        for index in range(len(images)):
            info = images.get_data_info(index)
            photograph = cv2.imread(str(info['img_path']))
            size = tuple(round(side / recipe.shrink) for side in photograph.shape[1::-1])
            photograph = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA)
            boxes = np.array([i['bbox'] for i in info['instances']], np.float64).reshape(-1, 4) / recipe.shrink
            labels = [i['bbox_label'] for i in info['instances']]
            for _ in range(getattr(recipe, split)):
                video = len(videos) + 1
                videos.append(dict(id=video, name=f'{Path(info["img_path"]).stem}_{video}'))
                for frame, corner in enumerate(path(size, recipe, rng)):
                    name = f'{videos[-1]["name"]}_{frame:02}.jpg'
                    image = len(frames) + 1
                    frames.append(dict(id=image, video_id=video, frame_id=frame, file_name=name, width=recipe.size,
                                       height=recipe.size))
                    cv2.imwrite(str(out / split / name), window(photograph, corner, recipe, rng))
                    for instance, box in tracked(boxes, corner, recipe):
                        left, top, right, bottom = map(float, box)
                        annotations.append(dict(
                            id=len(annotations) + 1, image_id=image, instance_id=instance, category_id=labels[instance],
                            bbox=[left, top, right - left, bottom - top], area=(right - left) * (bottom - top), iscrowd=0))
        content = dict(info=dict(recipe=asdict(recipe)), videos=videos, images=frames, annotations=annotations,
                       categories=[dict(id=i, name=name) for i, name in enumerate(classes)])
        (out / f'annotations/{split}.json').write_text(json.dumps(content))
    return out


def path(size: tuple[int, int], recipe: ClipsRecipe, rng: np.random.Generator) -> np.ndarray:
    """Upper left corners of the windows, ``int [length, 2]`` (x, y)."""
    limit = np.array(size) - recipe.size
    if (limit < 0).any():
        raise ValueError(f'a window of {recipe.size} pixels does not fit into an image of {size[0]}x{size[1]}: shrink less')
    start, angle = rng.uniform(0, limit), rng.uniform(0, 2 * np.pi)
    way = recipe.speed * (recipe.length - 1) * rng.uniform(0.5, 1) * np.array([np.cos(angle), np.sin(angle)])
    stop = np.clip(start + way, 0, limit)
    return np.linspace(start, stop, recipe.length).round().astype(int)


def window(photograph: np.ndarray, corner: np.ndarray, recipe: ClipsRecipe, rng: np.random.Generator) -> np.ndarray:
    x, y = corner
    view = photograph[y:y + recipe.size, x:x + recipe.size]
    noisy = view + rng.normal(0, recipe.noise, view.shape) if recipe.noise else view
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def tracked(boxes: np.ndarray, corner: np.ndarray, recipe: ClipsRecipe) -> list[tuple[int, np.ndarray]]:
    """Number and box (left, top, right, bottom, in the window) of each object that is visible enough."""
    moved = boxes - np.tile(corner, 2)
    inside = moved.clip(0, recipe.size)
    area, whole = ((b[:, 2:] - b[:, :2]).prod(1) for b in (inside, moved))
    return [(i, inside[i]) for i in range(len(boxes)) if area[i] > 0 and area[i] >= recipe.min_visible * whole[i]]
