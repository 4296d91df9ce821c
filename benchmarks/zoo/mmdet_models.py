"""The families of the installed mmdet, one config each: folders of its configs."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

import mmdet.datasets.transforms
import mmdet.models
import mmdet.testing  # noqa: F401
import torch
from mmdet.models import backbones
from mmdet.models.dense_heads import EmbeddingRPNHead
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from bnn_plugins import BinarizationReport, binarize_, load_packed_, save_packed
from bnn_plugins.integrations.mmdet.inputs import detector_inputs
from bnn_plugins.integrations.mmdet.probe import in_an_epoch, prepare_, samples
from bnn_plugins.models.backbones import BNNResNet

from .stages import Case, outputs_of

METHOD = 'bireal'
# Parts of configs, and other forms of the same files.
NO_FAMILIES = ('_base_', 'common', 'dsdl')
# Backbone and neck binary through the config; the whole detector by binarize_; our own ResNet in the place of mmdet's.
WAYS = ('whole', 'parts', 'BNNResNet')
MOST = {'stacked_convs': 2, 'num_layers': 2, 'num_convs': 2, 'num_shared_convs': 1, 'num_shared_fcs': 1, 'depths': 1,
        'stage_blocks': 1, 'deepen_factor': 0.33, 'num_blocks': 2, 'stack_times': 2, 'num_csp_blocks': 1}
# Widths, and what must follow them.
WIDTHS = {
    'in_channels', 'out_channels', 'feat_channels', 'feat_channel', 'base_channels', 'conv_out_channels', 'fc_out_channels',
    'embed_dims', 'feedforward_channels', 'num_feats', 'num_groups', 'stage_channels', 'num_channels', 'num_deconv_filters',
    'channels', 'hidden_channels', 'mask_out_channel', 'class_embed_dims', 'in_feature_channels', 'fc_channels'}
NARROWER = 4
# Images, the stride of their map of classes, with masks or without: the first that a detector takes.
SIZES = (((128, 160), 1, True), ((128, 160), 8, True), ((128, 160), 1, False), ((256, 256), 1, True), ((320, 320), 8, True))


def names() -> list[str]:
    """All families."""
    return [folder.name for folder in sorted(configs().iterdir()) if folder.is_dir() and folder.name not in NO_FAMILIES
            and config_of(folder.name)]


def configs() -> Path:
    return Path(str(files('mmdet'))) / '.mim/configs'


# Where the names suggest a config that is no detector, needs pooled deformable regions or has a base that does not exist.
CONFIGS = {'sort': 'faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py',
           'detectors': 'cascade-rcnn_r50-sac_1x_coco.py', 'legacy_1.x': 'retinanet_r50_fpn_1x_coco_v1.py',
           'pvt': 'retinanet_pvt-t_fpn_1x_coco.py',
           'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
           'dcn': 'faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', 'dcnv2': 'faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py'}


def config_of(family: str) -> str:
    """The config of a family that is tried, the smallest by its name: ResNet-18 before 50, no ResNeXt."""
    if family in CONFIGS:
        return f'{family}/{CONFIGS[family]}'
    found = [path for path in configs().joinpath(family).glob('*.py') if 'tta' not in path.name]
    large = ('101', 'x-', '_x', '-l-', '_l_', '_m_', 'swinl', 'swinb')
    found.sort(key=lambda path: (sum(part in path.name for part in large), 'r18' not in path.name, 'r50' not in path.name,
                                 len(path.name), path.name))
    return f'{family}/{found[0].name}' if found else ''


def model_config(family: str) -> Config:
    """Of the detector; nothing is downloaded, a tracker is its detector, norms and operators are those of one process with
    mmcv alone."""
    cfg = Config.fromfile(configs() / config_of(family)).model
    cfg = cfg.get('detector', cfg) if 'backbone' not in cfg else cfg
    without_checkpoints(cfg)
    plain_(cfg)
    shrink_(cfg)
    if isinstance(cfg.get('teacher_config'), str):
        cfg.teacher_config = str(configs() / cfg.teacher_config.removeprefix('configs/'))
    return cfg


def shrink_(cfg) -> None:
    """Fewer layers of each kind, in place: what is repeated needs no second look, and hours become minutes."""
    if isinstance(cfg, dict):
        for key, most in MOST.items():
            # Layers of a stack of Transformer layers only; not a number that something else must equal.
            if key in cfg and not (key == 'num_layers' and cfg.get('type')) and 'paths' not in cfg:
                cfg[key] = at_most(cfg[key], most)
        for value in cfg.values():
            shrink_(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            shrink_(value)


def at_most(value, most):
    if isinstance(value, list | tuple):
        return type(value)(at_most(item, most) for item in value)
    return min(value, most) if isinstance(value, int | float) and not isinstance(value, bool) else value


def narrow_(cfg) -> None:
    """A quarter of the channels wherever a config names them, in place. Where a class has a width of its own as well, the
    model does not run, and stays as wide as it was."""
    if isinstance(cfg, dict):
        for key, value in OWN_WIDTHS.get(cfg.get('type'), {}).items():
            cfg.setdefault(key, value)
        for key, value in cfg.items():
            if key in WIDTHS:
                cfg[key] = narrower(value)
            elif key == 'widen_factor':
                cfg[key] = value / NARROWER
            narrow_(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            narrow_(value)


def narrower(value):
    if isinstance(value, list | tuple):
        flat = [item for item in value if isinstance(item, int)]
        fits = flat and max(flat) >= 64 and not any(item % NARROWER for item in flat)
        return type(value)(item // NARROWER for item in value) if fits and len(flat) == len(value) else value
    return value // NARROWER if isinstance(value, int) and value >= 32 and value % NARROWER == 0 else value


# Defaults of classes that configs do not name.
RESNETS = ('ResNet', 'Res2Net', 'ResNeSt', 'ResNeXt', 'DetectoRS_ResNet', 'DetectoRS_ResNeXt')
DETR_HEADS = ('DeformableDETRHead', 'DINOHead', 'ConditionalDETRHead', 'DABDETRHead', 'DDQDETRHead', 'GroundingDINOHead')
OWN_WIDTHS = {**{name: {'base_channels': 64} for name in RESNETS}, **{name: {'embed_dims': 256} for name in DETR_HEADS},
              'HourglassNet': {'feat_channel': 256}}


@contextmanager
def small_networks() -> Iterator[None]:
    """Meanwhile ResNet's kin have two blocks in the first stage and one in the others."""
    with ExitStack() as stack:
        for kind in (*(getattr(backbones, name) for name in RESNETS), BNNResNet):
            few = {depth: (block, (2, 1, 1, 1)) for depth, (block, _) in kind.arch_settings.items()}
            stack.enter_context(patch.object(kind, 'arch_settings', few))
        yield


def without_checkpoints(cfg) -> None:
    if isinstance(cfg, dict):
        if isinstance(cfg.get('init_cfg'), dict) and 'checkpoint' in cfg['init_cfg']:
            cfg['init_cfg'] = None
        for key in ('teacher_ckpt', 'pretrained'):
            if key in cfg:
                cfg[key] = None
        for value in cfg.values():
            without_checkpoints(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            without_checkpoints(value)


def plain_(cfg) -> None:
    if isinstance(cfg, dict):
        if cfg.get('type') in ('SyncBN', 'MMSyncBN'):
            cfg['type'] = 'BN'
        if 'use_torchvision' in cfg:
            cfg['use_torchvision'] = False
        for value in cfg.values():
            plain_(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            plain_(value)


def applies(cfg: Config, way: str) -> str:
    """Why a way is none for this model, ``''`` where it is one."""
    if way == 'parts' and 'backbone' not in cfg:
        return 'the config has no backbone'
    backbone = cfg.get('backbone', {})
    if way == 'BNNResNet' and (backbone.get('type') != 'ResNet' or set(backbone) - OWN_KEYS):
        return 'the backbone is no plain ResNet'
    return ''


OWN_KEYS = {'type', 'depth', 'base_channels', 'num_stages', 'out_indices', 'frozen_stages', 'norm_cfg', 'norm_eval', 'style',
            'init_cfg', 'dcn', 'stage_with_dcn', 'plugins', 'zero_init_residual'}


def in_parts(cfg: Config) -> Config:
    """Backbone and neck become binary where the config builds them."""
    for part in ('backbone', 'neck'):
        if isinstance(cfg.get(part), dict):
            cfg[part] = dict(type='bnn_plugins.binarized', module=cfg[part], method=METHOD)
    return cfg


def own_resnet(cfg: Config) -> Config:
    """Our ResNet of the same depth in the place of mmdet's."""
    cfg.backbone.update(type='bnn_plugins.BNNResNet', method='reactnet')
    return cfg


def build(cfg: Config) -> nn.Module:
    init_default_scope('mmdet')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    model = MODELS.build(cfg)
    prepare_(model)
    return model


def initialised(model: nn.Module) -> nn.Module:
    model.init_weights()
    for module in model.modules():
        if isinstance(module, EmbeddingRPNHead):  # boxes of all levels; as they begin, they are those of whole images
            sizes = module.init_proposal_bboxes.weight.data[:, 2:]
            sizes.copy_(0.1 * 40**torch.rand_like(sizes))
    return model


def drawn(model: nn.Module, size: tuple[int, int], *kind) -> tuple[Tensor, list]:
    """As :func:`samples`, with boxes that differ from draw to draw, larger ones in the second image: which level learns
    depends on their sizes."""
    images, labels = samples(model, size, *kind)
    height, width = size
    for k, sample in enumerate(labels):
        shares = torch.rand(2, 4) / 2
        corners = torch.cat([shares[:, :2], (shares[:, :2] + (1 + k) * shares[:, 2:] + 0.06).clamp(max=1)], 1)
        sample.gt_instances.bboxes = corners * torch.tensor([width, height, width, height])
    return images, labels


def flat(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, Sequence) and not isinstance(
        value, str) else ()
    return [tensor for item in values for tensor in flat(item)]


def case(family: str, way: str, facts: dict) -> Case:
    """How a family is run; raises ``LookupError`` with the reason where the way is none."""
    facts['config'] = config_of(family)
    cfg = model_config(family)
    reason = applies(cfg, way)
    if reason:
        raise LookupError(reason)
    narrow = copy.deepcopy(cfg)
    narrow_(narrow)
    try:
        build(copy.deepcopy(narrow))(*samples(build(copy.deepcopy(narrow)), *SIZES[0]), 'loss')
        cfg = narrow
    except Exception:  # whatever a host says to widths that do not fit
        pass
    chosen: list[tuple] = []  # the sizes and labels that this detector takes

    def losses(model: nn.Module) -> list[Tensor]:
        for k, kind in enumerate(chosen or SIZES):
            try:
                with in_an_epoch():
                    found = model(*drawn(model, *kind), 'loss')
                if not chosen:
                    chosen.append(kind)
                    case.inputs = inputs(model), {}
                return [loss for name, loss in found.items() if 'loss' in name for loss in flat([loss])]
            except Exception:
                if chosen or k == len(SIZES) - 1:
                    raise
        raise AssertionError

    def inputs(model: nn.Module) -> tuple:
        return detector_inputs(model, chosen[0][0] if chosen else SIZES[0][0])

    def outputs(model: nn.Module) -> list[Tensor]:
        return flat(model(*inputs(model)))

    def float_model() -> nn.Module:
        torch.manual_seed(0)
        return initialised(build(copy.deepcopy(cfg)))

    def binary_model(model: nn.Module) -> tuple[nn.Module, BinarizationReport]:
        if way == 'whole':
            return model, binarize_(model, METHOD)
        made = build(in_parts(copy.deepcopy(cfg)) if way == 'parts' else own_resnet(copy.deepcopy(cfg)))
        return initialised(made), BinarizationReport.of(made)

    def load_(model: nn.Module, state: dict[str, Tensor]) -> None:
        """Strictly, but for the names that the float detector, too, has only once it was trained (DDQ's)."""
        if state.keys() - model.state_dict().keys():
            trained = float_model()
            late = set(trained.state_dict())
            losses(trained)
            late ^= set(trained.state_dict())
            state = {name: value for name, value in state.items() if name not in late}
        model.load_state_dict(state)

    def reload(latent: nn.Module, packed: nn.Module, folder: Path) -> Iterator[list[Tensor]]:
        torch.save(latent.state_dict(), folder / 'latent.pth')
        path = save_packed(packed, folder / 'packed.safetensors', 'model = None')
        again = float_model() if way == 'whole' else None  # initialised: layers of zeros stay float
        again, _ = binary_model(again)
        other = load_packed_(copy.deepcopy(again), path)
        load_(again, torch.load(folder / 'latent.pth'))
        return (outputs_of(case, model) for model in (again, other))

    case = Case(float_model, binary_model, losses, outputs, ((), {}), reload)
    return case

