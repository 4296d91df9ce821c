"""Throughput of the model of a config: the packed model against its float twin. Behind ``tools/benchmark.py``."""

import copy
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import load_checkpoint
from rich.console import Console
from torch import Tensor, nn

from ...analysis.throughput import tensor_tree
from ...analysis.throughput_report import print_throughput, write_throughput
from ...analysis.throughput_run import Plan, Throughput, profile
from ...analysis.throughput_variants import ON_CPU, ON_CUDA, Models, Part, check_forms
from ...deploy import PackedLayer, fuse_, load_packed_, pack_, quantize_rest_
from ...layers import BinaryLayer
from .pack import build_model
from .run import load_config
from .summarize import MIN_WIDTH

CALIBRATION = 8  # images for what is quantized
BINARY_SCOPE = 'bnn_plugins.'
# Types of bnn_plugins whose float twin is the same type without a method.
NATIVE = ('BNNCifarResNet', 'BNNVGGSmall', 'BNNSSDVGG', 'BNNReActNet', 'BNNBNext', 'BNNMoBiNet')
NEUTRAL = ('BinaryClassifier', 'ClassifierHead', 'ImagePreprocessor', 'CrossEntropy', 'SquaredHinge')  # nothing binary in them
# Arguments of native models that float ones do not have.
ONLY_BINARY = ('method', 'act', 'pad_value', 'expand', 'stem_act', 'pool_last', 'distill')


def float_config(model: object) -> object:
    """The config of the float twin: the binary pieces of ``model`` taken out, everything else as it is.

    ``BNNResNet`` becomes mmdet's ``ResNet(avg_down=True)``, whose parameters have the same names; ``BNNFPN`` its ``FPN`` with
    a norm; ``binarized`` the float module that it wraps; a binary ``conv_cfg`` goes; other native backbones lose their method.

    Raises:
        ValueError: for a type of bnn_plugins without a known twin.
    """
    if isinstance(model, list | tuple):
        return [float_config(item) for item in model]
    if not isinstance(model, dict):
        return model
    kind = model.get('type')
    if kind == f'{BINARY_SCOPE}binarized':
        return float_config(model['module'])
    ours = isinstance(kind, str) and kind.startswith(BINARY_SCOPE)
    twin = {key: float_config(value) for key, value in model.items()
            if not is_binary_layer(key, value) and not (ours and key in ONLY_BINARY)}
    if not ours:
        return twin
    norm = dict(type='BN', requires_grad=True)
    changes = {**{native: dict(type=kind, method=None) for native in NATIVE},
               **{neutral: dict(type=kind) for neutral in NEUTRAL},
               'BNNResNet': dict(type='mmdet.ResNet', avg_down=True, norm_eval=False),
               'BNNFPN': dict(type='mmdet.FPN', norm_cfg=norm)}
    name = kind.removeprefix(BINARY_SCOPE)
    if name not in changes:
        raise ValueError(f'no float twin is known for {kind}: name its config with --float-config')
    if isinstance(twin.get('init_cfg'), list):
        del twin['init_cfg']  # how a method wants norms to begin, near 0 for example, is none of a float network
    return {**twin, **{key: value for key, value in changes[name].items() if key == 'type' or twin.get(key) is None}}


def is_binary_layer(key: str, value: object) -> bool:
    """Whether this argument makes a float module's convolutions binary."""
    return key == 'conv_cfg' and isinstance(value, dict) and str(value.get('type')).startswith(BINARY_SCOPE)


def build_models(config: str, checkpoint: str | None, float_file: str | None, float_checkpoint: str | None,
                 cfg_options: dict | None, device: torch.device) -> tuple[Config, Models, dict[str, str]]:
    """The models of a config, and in words what they are.

    Raises:
        FileNotFoundError: for a missing config or checkpoint. ValueError: for a model without binary layers, or without twin.
    """
    for path in (checkpoint, float_checkpoint):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f'the checkpoint {path!r} does not exist: leave it out to measure random weights')
    cfg = load_config(config, cfg_options=cfg_options)
    twin_cfg = copy.deepcopy(cfg)
    twin_cfg.model = float_config(cfg.model.to_dict()) if float_file is None else load_config(float_file).model
    latent, twin = build_model(copy.deepcopy(cfg)), build_model(twin_cfg)
    if not any(isinstance(module, BinaryLayer) for module in latent.modules()):
        raise ValueError(f'{config} has no binary layer: there is nothing to pack, and nothing to compare')
    packed_file = checkpoint is not None and checkpoint.endswith('.safetensors')
    if packed_file:
        packed, latent = load_packed_(latent, checkpoint), None
    else:
        load_or_draw(latent, checkpoint)
        latent.eval()
        packed = pack_(copy.deepcopy(latent))
    load_or_draw(twin, float_checkpoint)
    for model in (latent, packed, twin):
        if model is not None:
            model.eval()
            model.requires_grad_(False)
            model.to(device)
            channels_last_(model)
    fused, fused_bfloat16 = copy.deepcopy(packed), copy.deepcopy(packed)
    report = fuse_(fused)
    fuse_(fused_bfloat16, stream_dtype=torch.bfloat16)
    how = 'the same config without its binary pieces' if float_file is None else float_file
    facts = {'Weights': checkpoint or 'random: times do not depend on them, but the number of boxes does',
             'Float twin': f'{type(twin).__name__}, {how}{": " + twin_text(cfg, twin_cfg) if float_file is None else ""}',
             'Weights of the twin': float_checkpoint or 'random', 'Block fusion': report.summary()}
    facts |= {f'Not fused: {name}': text.removeprefix('not fused: ') for name, text in report.rows.items()
              if text.startswith('not fused')}
    return cfg, Models(packed, fused, twin, latent, fused_bfloat16), facts


def twin_text(cfg: Config, twin_cfg: Config) -> str:
    """``'backbone bnn_plugins.BNNResNet is mmdet.ResNet, ...'``."""
    pairs = [(key, value, twin_cfg.model[key]) for key, value in cfg.model.items()
             if isinstance(value, dict) and isinstance(twin_cfg.model.get(key), dict)]
    changed = [f'{key} {old.get("type")} is {new.get("type")}' + (' (avg_down)' if new.get('avg_down') else '')
               for key, old, new in [*pairs, ('model', cfg.model, twin_cfg.model)] if old.get('type') != new.get('type')]
    return ', '.join(changed) or 'binary conv_cfg taken out'


def load_or_draw(model: nn.Module, checkpoint: str | None, seed: int = 0) -> None:
    """Weights of a checkpoint, or the config's random ones (pretrained ones are not fetched)."""
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
        return
    for module in model.modules():
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            module.init_cfg = None
    torch.manual_seed(seed)
    if hasattr(model, 'init_weights'):
        model.init_weights()


def channels_last_(model: nn.Module) -> None:
    """Real convolution weights in channels-last memory. ``model.to(memory_format=...)`` refuses bits: they have five dims."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(module, PackedLayer):
            module.to(memory_format=torch.channels_last)


def body(backbone: nn.Module) -> nn.Sequential:
    """The stages of a ResNet, binary or float, without its stem: ``[N, C, H, W]`` -> the last stage's output."""
    return nn.Sequential(*(getattr(backbone, name) for name in backbone.res_layers))


class Network(nn.Module):
    """A detector from the normalised image ``[N, 3, H, W]`` to the raw outputs of its head: what is compiled as one."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.train(detector.training)

    def forward(self, x: Tensor) -> object:
        return self.detector.bbox_head(self.detector.extract_feat(x))


class Detection:
    """The parts of a detector: ``backbone``, ``network``, and ``detector``: from uint8 images to boxes.

    Args:
        samples: what the test pipeline gives, ``dict(inputs=uint8 [3, H, W], data_samples=...)`` each.
        others: as many as that for each batch to calibrate with.
    """

    def __init__(self, models: Models, samples: list[dict], others: list[dict]):
        self.model, self.samples, self.others = models.twin, samples, others
        self.networks: dict[nn.Module, Network] = {}

    def prepare(self, samples: list[dict] | None = None) -> dict:
        samples = samples or self.samples
        return self.model.data_preprocessor({key: [sample[key] for sample in samples] for key in samples[0]}, False)

    def calibration(self) -> list[Tensor]:
        step = len(self.samples)
        return [self.prepare(self.others[i:i + step])['inputs'] for i in range(0, len(self.others), step)]

    def network(self, detector: nn.Module) -> nn.Module:
        return self.networks.setdefault(detector, Network(detector))

    def whole(self, run: Callable) -> list:
        data = self.prepare()
        outputs = tensor_tree(Tensor.float, run(data['inputs']))
        metas = [sample.metainfo for sample in data['data_samples']]
        return self.model.bbox_head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=True)

    def parts(self) -> list[Part]:
        x, images = (self.prepare()['inputs'],), self.calibration()
        parts = [Part('backbone', lambda model: model.backbone, x, calibration=images)]
        if hasattr(getattr(self.model, 'bbox_head', None), 'predict_by_feat'):  # one-stage: others are more than one network
            parts += [Part('network', self.network, x, calibration=images),
                      Part('detector', self.network, x, self.whole, images)]
        return parts


def image_samples(cfg: Config, count: int, size: tuple[int, int] | None, seed: int = 0) -> tuple[list[dict], str]:
    """``count`` test images, or random ones of ``size``; and in words which.

    Without a size they come from the config's test set, where it is there.
    """
    if size is None and 'test_dataloader' in cfg:
        try:
            dataset = DATASETS.build(copy.deepcopy(cfg.test_dataloader.dataset))
        except FileNotFoundError:
            dataset = ()
        if len(dataset) >= count:
            return [dataset[index] for index in range(count)], 'images of the test set'
    from mmdet.structures import DetDataSample
    size = size or default_size(cfg)
    noise = torch.Generator().manual_seed(seed)
    shape = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    return [dict(inputs=torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=noise),
                 data_samples=DetDataSample(metainfo=shape)) for _ in range(count)], 'random images'


def divisor(cfg: Config) -> int:
    """What the sides of an image are padded to multiples of."""
    return (cfg.model.get('data_preprocessor') or {}).get('pad_size_divisor') or 1


def default_size(cfg: Config) -> tuple[int, int]:
    """(height, width) of the test pipeline's Resize, up to a multiple of the padding; 224x224 where there is none."""
    width, height = next((step['scale'] for step in cfg.get('test_pipeline', ()) if step.get('type') == 'Resize'), (224, 224))
    return tuple(-(-side // divisor(cfg)) * divisor(cfg) for side in (height, width))


def check_size(cfg: Config, size: tuple[int, int]) -> None:
    """Raise ``ValueError`` for a side that is not a multiple of the padding."""
    step = divisor(cfg)
    if any(side % step or side <= 0 for side in size):
        fitting = 'x'.join(str(max(-(-side // step), 1) * step) for side in size)
        raise ValueError(f'the size {size[0]}x{size[1]} is no multiple of {step} (pad_size_divisor of the config): '
                         f'use {fitting}')


def example_inputs(model: nn.Module, batch: int, size: tuple[int, int], device: torch.device) -> tuple:
    """Random inputs of a classifier or a UNet: an image, and a time step where ``forward`` wants one.

    Raises:
        ValueError: when ``forward`` wants something else.
    """
    noise = torch.Generator().manual_seed(0)
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    inputs: list = [torch.randn(batch, channels, *size, generator=noise).to(device)]
    wanted = [p.name for p in inspect.signature(model.forward).parameters.values()
              if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in wanted[1:]:
        if name not in ('timestep', 'timesteps', 't'):
            raise ValueError(f'{type(model).__name__}.forward wants {name!r}: only images and time steps can be made up')
        inputs.append(torch.full((batch,), 10, device=device))
    return tuple(inputs)


def make_parts(cfg: Config, models: Models, device: torch.device) -> Callable[[int, tuple[int, int] | None], list[Part]]:
    """What :func:`profile` asks for, of a detector or of any model that takes an image."""
    from mmdet.models.detectors import BaseDetector

    def of_detector(batch: int, size: tuple[int, int] | None) -> list[Part]:
        images, others = image_samples(cfg, batch, size)[0], image_samples(cfg, batch * CALIBRATION, size, seed=1)[0]
        return Detection(models, images, others).parts()

    def of_network(batch: int, size: tuple[int, int] | None) -> list[Part]:
        inputs = example_inputs(models.twin, batch, size or default_size(cfg), device)
        return [Part('network', lambda model: model, inputs, calibration=inputs if len(inputs) == 1 else ())]
    return of_detector if isinstance(models.twin, BaseDetector) else of_network


def add_int8(models: Models, part: Part) -> None:
    """The fused model with an int8 rest, calibrated as the part says."""
    model = copy.deepcopy(models.packed)
    if any(type(module) in (nn.Conv2d, nn.Linear) for module in part.module(model).modules()):
        quantize_rest_(model, part.calibration, run=lambda model, x: part.module(model)(x))
        fuse_(model)
        models.fused_int8 = model


def benchmark(config: str, checkpoint: str | None = None, out: str | None = None, batch: Sequence[int] = (1,),
              size: Sequence[tuple[int, int]] = (), threads: Sequence[int] = (1,), backends: Sequence[str | None] = (None,),
              variants: Sequence[str] = (), parts: Sequence[str] = (), float_config: str | None = None,
              float_checkpoint: str | None = None, device: str = 'cpu', rounds: int = 15, budget: float = 20.0,
              cfg_options: dict | None = None) -> Throughput:
    """Measure the model of ``config``; writes ``throughput.csv``, ``layers.csv`` and ``throughput.html`` into ``out``.

    Args:
        config: of the binary model.
        checkpoint: its weights, ``.pth`` or packed; default random.
        out: folder for the files.
        batch: batch sizes.
        size: (height, width) of the images; default the test set's first ones, or random ones of the test pipeline's size.
        backends: of bnn_kernels, see ``bnn_kernels.available_backends()``, also ``'cpu:avx2'``; default chosen automatically.
        threads: numbers of threads.
        variants: keys of :data:`FORMS`; default all that the device can run.
        parts: ``backbone``, ``network``, ``detector``; default all.
        float_config: config of the float twin, where it cannot be derived.
        float_checkpoint: weights of the float twin; default random.
        device: ``'cpu'`` or ``'cuda'``.
        rounds: samples of each variant.
        budget: seconds for each combination and part; five samples are taken in any case.
        cfg_options: overrides of the config.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: with one sentence about what is wrong and what to do.
    """
    MMLogger.get_instance('mmengine', log_level='WARNING')
    place = torch.device(device)
    if place.type == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError('--device cuda: torch sees no GPU here; leave --device out to measure on the CPU')
    forms = tuple(variants) or (ON_CUDA if place.type == 'cuda' else ON_CPU)
    check_forms(forms, place)
    cfg, models, facts = build_models(config, checkpoint, float_config, float_checkpoint, cfg_options, place)
    for one in size:
        check_size(cfg, one)
    make = make_parts(cfg, models, place)
    sizes = tuple(size) or (None,)
    found = make(1, sizes[0])
    known = [part.name for part in found]
    if 'fused-int8' in forms and found[-1].calibration:
        add_int8(models, found[-1])
    for name in parts:
        if name not in known:
            raise ValueError(f'{config} has no part {name!r}: it has {", ".join(known)}')

    def chosen(batch: int, size: tuple[int, int] | None) -> list[Part]:
        return [part for part in make(batch, size) if not parts or part.name in parts]

    facts['Input'] = image_samples(cfg, max(batch), sizes[0])[1] if 'detector' in known else 'random images'
    plan = Plan(tuple(batch), sizes, tuple(threads), forms, tuple(backends), rounds, budget, device=place)
    result = profile(Path(config).stem, models, chosen, plan, facts)
    print_throughput(result, Console(width=max(Console().width, MIN_WIDTH)))
    if out is not None:
        for path in write_throughput(result, out):
            print(f'{path} written')
    return result
