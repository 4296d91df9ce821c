"""Two images of cells, for trainings of two iterations."""

from pathlib import Path

import cv2
import numpy as np
import pytest

ANNOTATION = '''<annotation><filename>{name}.jpg</filename><size><width>96</width><height>72</height><depth>3</depth></size>
<object><name>RBC</name><bndbox><xmin>8</xmin><ymin>8</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object>
<object><name>WBC</name><bndbox><xmin>40</xmin><ymin>30</ymin><xmax>90</xmax><ymax>70</ymax></bndbox></object></annotation>'''


@pytest.fixture(scope='session')
def cells(tmp_path_factory) -> Path:
    """Two images in the layout of BCCD."""
    root = tmp_path_factory.mktemp('cells')
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('a', 'b'):
        cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), rng.integers(0, 255, (72, 96, 3), dtype=np.uint8))
        (root / f'Annotations/{name}.xml').write_text(ANNOTATION.format(name=name))
    for split in ('train', 'val', 'test'):
        (root / f'ImageSets/Main/{split}.txt').write_text('a\nb\n')
    return root


def on_cells(cells: Path, **more) -> dict:
    """Two iterations of one image each, 96x72."""
    return {'train_dataloader.dataset.data_root': f'{cells}/', 'train_dataloader.batch_size': 1,
            'train_dataloader.num_workers': 0, 'train_dataloader.dataset.pipeline.2.scale': (96, 72),
            'train_dataloader.dataset.pipeline.3.crop_size': (72, 96), 'train_cfg.max_epochs': 1, 'val_cfg': None,
            'val_dataloader': None, 'val_evaluator': None, **more}
