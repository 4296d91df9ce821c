"""The families of the installed mmdet, one config each: folders of its configs."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

import mmdet.models
import mmdet.testing  # noqa: F401
import torch
from mmdet.models import backbones
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from bnn_plugins import BinarizationReport, binarize_, load_packed_, save_packed
from bnn_plugins.integrations.mmdet.inputs import detector_inputs
from bnn_plugins.integrations.mmdet.probe import in_an_epoch, prepare_, samples
from bnn_plugins.models.backbones import BNNResNet

from .stages import Case

METHOD = 'bireal'
# Parts of configs, and other forms of the same files.
NO_FAMILIES = ('_base_', 'common', 'dsdl')
# Backbone and neck binary through the config; the whole detector by binarize_; our own ResNet in the place of mmdet's.
WAYS = ('whole', 'parts', 'BNNResNet')
MOST = {'stacked_convs': 2, 'num_layers': 2, 'num_convs': 2}
# Images, the stride of their map of classes, with masks or without: the first that a detector takes.
SIZES = (((128, 160), 1, True), ((128, 160), 8, True), ((128, 160), 1, False), ((320, 320), 1, True), ((320, 320), 8, True))


def names() -> list[str]:
    """All families."""
    return [folder.name for folder in sorted(configs().iterdir()) if folder.is_dir() and folder.name not in NO_FAMILIES
            and config_of(folder.name)]


def configs() -> Path:
    return Path(str(files('mmdet'))) / '.mim/configs'


def config_of(family: str) -> str:
    """The config of a family that is tried, the smallest by its name: ResNet-18 before 50, no ResNeXt."""
    found = list(configs().joinpath(family).glob('*.py'))
    large = ('101', 'x-', '_x', '-l-', '_l_', '_m_', 'swinl', 'swinb')
    found.sort(key=lambda path: (sum(part in path.name for part in large), 'r18' not in path.name, 'r50' not in path.name,
                                 len(path.name), path.name))
    return f'{family}/{found[0].name}' if found else ''


def model_config(family: str) -> Config:
    """Of the detector; nothing is downloaded, and a tracker is its detector."""
    cfg = get_config(f'mmdet::{config_of(family)}').model
    cfg = cfg.get('detector', cfg) if 'backbone' not in cfg else cfg
    without_checkpoints(cfg)
    shrink_(cfg)
    if isinstance(cfg.get('teacher_config'), str):
        cfg.teacher_config = str(configs() / cfg.teacher_config.removeprefix('configs/'))
        cfg.teacher_ckpt = None
    return cfg


def shrink_(cfg) -> None:
    """Fewer layers of each kind, in place: what is repeated needs no second look, and hours become minutes."""
    if isinstance(cfg, dict):
        for key, most in MOST.items():
            if isinstance(cfg.get(key), int) and cfg[key] > most:
                cfg[key] = most
        for value in cfg.values():
            shrink_(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            shrink_(value)


@contextmanager
def small_networks() -> Iterator[None]:
    """Meanwhile ResNet's kin have two blocks in the first stage and one in the others."""
    kinds = (backbones.ResNet, backbones.Res2Net, backbones.ResNeSt, backbones.ResNeXt, backbones.DetectoRS_ResNet,
             backbones.DetectoRS_ResNeXt, BNNResNet)
    with ExitStack() as stack:
        for kind in kinds:
            few = {depth: (block, (2, 1, 1, 1)) for depth, (block, _) in kind.arch_settings.items()}
            stack.enter_context(patch.object(kind, 'arch_settings', few))
        yield


def without_checkpoints(cfg) -> None:
    if isinstance(cfg, dict):
        if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained':
            cfg['init_cfg'] = None
        for value in cfg.values():
            without_checkpoints(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            without_checkpoints(value)


def applies(cfg: Config, way: str) -> str:
    """Why a way is none for this model, ``''`` where it is one."""
    if way == 'parts' and 'backbone' not in cfg:
        return 'the config has no backbone'
    backbone = cfg.get('backbone', {})
    if way == 'BNNResNet' and (backbone.get('type') != 'ResNet' or set(backbone) - OWN_KEYS):
        return 'the backbone is no plain ResNet'
    return ''


OWN_KEYS = {'type', 'depth', 'num_stages', 'out_indices', 'frozen_stages', 'norm_cfg', 'norm_eval', 'style', 'init_cfg'}


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
    chosen: list[tuple] = []  # the sizes and labels that this detector takes

    def losses(model: nn.Module) -> list[Tensor]:
        for k, kind in enumerate(chosen or SIZES):
            try:
                with in_an_epoch():
                    found = model(*samples(model, *kind), 'loss')
                chosen[:] = [kind]
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
        model = build(copy.deepcopy(cfg))
        model.init_weights()
        case.inputs = inputs(model), {}
        return model

    def binary_model(model: nn.Module) -> tuple[nn.Module, BinarizationReport]:
        if way == 'whole':
            return model, binarize_(model, METHOD)
        made = build(in_parts(copy.deepcopy(cfg)) if way == 'parts' else own_resnet(copy.deepcopy(cfg)))
        made.init_weights()
        return made, BinarizationReport.of(made)

    def reload(latent: nn.Module, packed: nn.Module, folder: Path) -> tuple[nn.Module, nn.Module]:
        torch.save(latent.state_dict(), folder / 'latent.pth')
        path = save_packed(packed, folder / 'packed.safetensors', 'model = None')
        again = build(copy.deepcopy(cfg)) if way == 'whole' else None
        again, _ = binary_model(again)
        other = load_packed_(copy.deepcopy(again), path)
        again.load_state_dict(torch.load(folder / 'latent.pth'))
        return again, other

    case = Case(float_model, binary_model, losses, outputs, ((), {}), reload)
    return case

