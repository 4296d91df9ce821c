"""A teacher beside a detector."""

import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ...layers import BinaryConv2d
from ...models.classifiers.teacher import Taps, Teacher
from ...models.losses import Outputs
from ...registry import HOOKS, MODELS
from ..mmengine.run import read_config

HEADS = ('bbox_head', 'rpn_head')
# What counts as a proposal: the best boxes of either network that do not overlap, as in IDa-Det's released code.
PROPOSALS = dict(nms_pre=200, score_thr=0.1, min_bbox_size=4, nms=dict(type='nms', iou_threshold=0.1), max_per_img=8)


@HOOKS.register_module()
class TeacherHook(Hook):
    """Adds to the losses of a detector those between it and a trained float one.

    For the detectors of mmdet that have a dense head. The teacher is built when the training begins and is no part of the
    model: checkpoints, evaluation and packed files are those of the detector alone. It reads the same normalised images.

    Example:
        >>> default_hooks = dict(teacher=dict(type='bnn_plugins.TeacherHook',
        ...                                   losses=dict(response=dict(type='bnn_plugins.ResponseLoss'))))

    Args:
        losses (dict[str, dict]): configs by name, ``dict(lws=dict(type='bnn_plugins.LayerwiseLoss'))``; each is
            ``loss_<name>`` in the log. Features are the maps that the dense head (of a two-stage detector its RPN) reads.
        config (str): of the teacher; default ``float_twin.config`` of the detector's config.
        checkpoint (str): of the teacher; default ``float_twin.checkpoint``.
        layers (list[str] | None): dotted names of the convolutions that ``LayerwiseLoss`` compares; default: all binary ones
            outside of heads.

    Raises:
        ValueError: without a teacher; for a detector without a dense head; for layers that one of both does not have.
    """

    def __init__(self, losses: dict[str, dict], config: str | None = None, checkpoint: str | None = None,
                 layers: list[str] | None = None):
        self.losses, self.config, self.checkpoint, self.layers = losses, config, checkpoint, layers
        self.handles = []

    def before_train(self, runner) -> None:
        twin = runner.cfg.get('float_twin', {})
        config, checkpoint = self.config or twin.get('config'), self.checkpoint or twin.get('checkpoint')
        if not config or not checkpoint:
            raise ValueError("TeacherHook needs float_twin=dict(config='...', checkpoint='...') in the config: the teacher")
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.head = dense_head(model)
        losses = {name: MODELS.build(dict(loss)) for name, loss in self.losses.items()}
        layers = self.layers
        if layers is None:
            layers = [name for name, module in model.named_modules()
                      if isinstance(module, BinaryConv2d) and name.partition('.')[0] not in (*HEADS, 'roi_head')]
        self.model, self.distill_losses = model, losses
        self.taps = Taps(model, [*layers, self.head], 'detector')
        cfg = read_config(config).model
        self.teacher = Teacher(MODELS.build(ConfigDict(cfg)), checkpoint, layers)
        self.handles = [model.register_forward_pre_hook(self.enter, with_kwargs=True),
                        model.register_forward_hook(self.add, with_kwargs=True)]

    def after_train(self, runner) -> None:
        for handle in self.handles:
            handle.remove()

    def enter(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if kwargs.get('mode') == 'loss':
            self.taps.__enter__()

    def add(self, model: nn.Module, args: tuple, kwargs: dict, output):
        if kwargs.get('mode') != 'loss':
            return output
        self.taps.__exit__()
        inputs = args[0] if args else kwargs['inputs']
        samples = args[1] if len(args) > 1 else kwargs['data_samples']
        features, outputs = self.taps.seen(self.head)
        _, layers = self.taps.take()
        student = self.outputs(model, features, outputs, layers[:-1], samples)
        teacher = self.teach(inputs, samples)
        return dict(output) | {f'loss_{name}': loss(student, teacher) for name, loss in self.distill_losses.items()}

    @torch.no_grad()
    def teach(self, inputs: Tensor, samples: list) -> Outputs:
        model = self.teacher.model.to(inputs.device)
        with self.teacher.taps:
            features = model.extract_feat(inputs)
        return self.outputs(model, features, model.get_submodule(self.head)(features), self.teacher.taps.take()[1], samples)

    def outputs(self, model: nn.Module, features, outputs, layers, samples: list) -> Outputs:
        head, proposals = model.get_submodule(self.head), ()
        if any(getattr(loss, 'needs_proposals', False) for loss in self.distill_losses.values()):
            detached = [[x.detach() for x in out] for out in outputs]
            with torch.no_grad():
                found = head.predict_by_feat(*detached, batch_img_metas=[sample.metainfo for sample in samples],
                                             cfg=ConfigDict(PROPOSALS), rescale=False)
            proposals = tuple(instances.bboxes.detach() for instances in found)
        strides = tuple(stride[0] for stride in head.prior_generator.strides)
        return Outputs(None, tuple(features), layers, tuple(outputs[0]), tuple(outputs[1]), proposals, strides)


def dense_head(model: nn.Module) -> str:
    """The name of the head whose maps are compared."""
    for name in HEADS:
        if hasattr(getattr(model, name, None), 'prior_generator'):
            return name
    raise ValueError(f'{type(model).__name__} has no dense head with a grid of priors: TeacherHook is for detectors like '
                     'RetinaNet, FCOS and Faster R-CNN')
