"""``type='bnn_plugins.binarized'``: any registered module, made binary."""

from mmengine.logging import print_log
from torch import nn

from ...convert import BNNConfig, binarize_
from ...registry import MODELS


@MODELS.register_module()
def binarized(module: dict, **cfg) -> nn.Module:
    """Build ``module`` and make it binary before its weights are initialised or loaded; returns the module itself.

    For modules that ignore ``conv_cfg``, that are made of linear layers, or that have ReLUs before their convolutions:
    ``backbone=dict(type='bnn_plugins.binarized', module=dict(type='mmdet.SwinTransformer', ...), method='reactnet')``. Nothing
    is wrapped, so parameter names stay and ``init_cfg=dict(type='Pretrained', ...)`` loads float weights as latents. The
    binarization report goes to the log.

    Args:
        module: config of the float module.
        **cfg: fields of :class:`bnn_plugins.BNNConfig`.

    Raises:
        ValueError: see :func:`bnn_plugins.binarize_`.
    """
    bnn_config = BNNConfig.from_dict(cfg)
    model = MODELS.build(module)
    report = binarize_(model, bnn_config)
    print_log(f'binarized {module["type"]} ({report.summary()})\n{report}', logger='current')
    return model
