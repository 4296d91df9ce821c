"""The summary of a config: a detector's or a classifier's."""

import logging
from collections.abc import Sequence

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from rich.console import Console
from torch import nn

from ...analysis import Summary, summarize
from ...convert import BinarizationReport
from .pack import build_model, plain
from .run import load_config

# A table whose numbers are cut cannot be read at all, long lines can; a table is no wider than it has to be.
MIN_WIDTH = 400
DETECTION_SHAPE = (800, 1333)


def model_inputs(cfg: Config, model: nn.Module, shape: Sequence[int] | None) -> tuple:
    """What ``model`` is called with: one random image of ``shape``, by default ``image_size`` of the config, or COCO's."""
    if cfg.get('default_scope', 'mmdet') == 'mmdet':
        from ..mmdet.inputs import detector_inputs
        return detector_inputs(model, shape or DETECTION_SHAPE)
    size = cfg.get('image_size')
    if shape is None and size is None:
        raise ValueError('the config has no image_size: give --shape HEIGHT WIDTH')
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), cfg.get('image_channels', 1))
    return torch.randn(1, channels, *(shape or (size, size)), generator=torch.Generator().manual_seed(0)),


def summarize_config(cfg: Config, shape: Sequence[int] | None = None) -> tuple[nn.Module, Summary]:
    """Build the model of ``cfg`` and count it on one image of ``shape`` (height, width), see :func:`model_inputs`; of a
    tracker the detector, which sees each image: what follows runs as often as there are objects."""
    stored = plain(cfg)
    if 'tracker' in cfg.model:
        from ..mmdet.inputs import detector_of
        print_log(f'{cfg.model.type} is a tracker: its detector is counted', logger='current', level=logging.WARNING)
        cfg.model = detector_of(cfg.model)
    model = build_model(cfg)
    if cfg.get('default_scope', 'mmdet') == 'mmdet':
        from ..mmdet.inputs import begin_proposals_
        begin_proposals_(model)
    return model, summarize(model, model_inputs(cfg, model, shape), config=stored)


def print_summary(config: str, shape: Sequence[int] | None = None, csv: str | None = None, signs: bool = False,
                  cfg_options: dict | None = None) -> Summary:
    """Print the summary table; ``csv`` also writes it, ``signs`` adds the binarization report with the balance of signs."""
    MMLogger.get_instance('mmengine', log_level='WARNING')
    cfg = load_config(config, cfg_options=cfg_options)
    model, summary = summarize_config(cfg, shape)
    console = Console(width=max(Console().width, MIN_WIDTH))
    if signs:
        model.init_weights()
        console.print(BinarizationReport.of(model).measure(model, *model_inputs(cfg, model, shape), batch_stats=True))
    console.print(summary)
    if csv:
        console.print(f'{summary.to_csv(csv)} written')
    return summary
