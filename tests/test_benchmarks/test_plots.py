"""The pictures of the documentation are drawn by the code that is there."""

import json

import numpy as np
import torch

from benchmarks.docs import plots
from bnn_plugins import list_estimators, load
from bnn_plugins.apps.digits import DigitsRecipe, make_digits


def test_estimators(tmp_path):
    """Mutation: leave one out."""
    text = plots.estimators(tmp_path / 'a.svg').read_text()
    assert all(f'<!-- {name} -->' in text for name in list_estimators())
    assert text == plots.estimators(tmp_path / 'b.svg').read_text()


def test_detections(tmp_path, monkeypatch):
    """A row for each model and one for what is there. Mutation: boxes below the least score are drawn."""
    monkeypatch.chdir(tmp_path)
    make_digits('work_dirs/digits', DigitsRecipe(train=2, val=2, test=4))
    assert len(json.loads((tmp_path / 'work_dirs/digits/annotations/test.json').read_text())['images']) == 4
    model = load(plots.DETECTOR)
    blind = load(plots.DETECTOR)
    with torch.no_grad():
        blind.bbox_head.retina_cls.bias.fill_(-20)
    sizes = []
    for models in ({'a': blind}, {'a': model}, {'a': model, 'b': blind}):
        image = plots.plt.imread(plots.detections(tmp_path / 'a.png', 2, models))
        sizes.append((image.shape, int((np.abs(image[..., :3] - (1.0, 0.498, 0.055)).max(-1) < 0.02).sum())))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[2][0][0] > sizes[1][0][0]
    assert sizes[0][1] < sizes[1][1]
