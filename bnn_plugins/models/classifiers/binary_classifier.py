"""A classifier for mmengine's Runner."""

from mmengine.model import BaseModel
from torch import Tensor

from ...binarize import check_keys
from ...binarize.lookup import checked_arguments
from ...registry import MODELS
from ..losses import Outputs
from .teacher import Taps, Teacher


@MODELS.register_module()
class BinaryClassifier(BaseModel):
    """Backbone and head; with ``distill``, also a teacher. Any backbone that returns a tuple of maps fits.

    Args:
        backbone (dict): with an attribute ``feat_dim``, or a head that has ``in_channels``.
        head (dict): default type :class:`ClassifierHead`.
        data_preprocessor (dict): default type :class:`ImagePreprocessor`.
        distill (dict): ``teacher``: arguments of :class:`Teacher`; ``losses``: a list of configs of distillation losses;
            ``label_weight``: weight of the loss on the labels beside them, default 0 (ReActNet's recipe); ``layers``: dotted
            names of submodules of the student whose outputs are its features, default the maps of the backbone.
        compile (bool | dict): ``torch.compile`` the backbone, with these arguments.

    Raises:
        ValueError: for an unknown key of ``distill``, for layers that the student does not have (or cannot show, compiled),
            and where no number of channels is known.
    """

    @checked_arguments
    def __init__(self, backbone: dict, head: dict, data_preprocessor: dict | None = None, distill: dict | None = None,
                 compile: bool | dict = False, init_cfg: dict | list | None = None):
        super().__init__(dict(type='bnn_plugins.ImagePreprocessor', **(data_preprocessor or {})), init_cfg)
        self.backbone = MODELS.build(backbone)
        head = dict(dict(type='bnn_plugins.ClassifierHead', in_channels=getattr(self.backbone, 'feat_dim', None)), **head)
        if head['in_channels'] is None:
            raise ValueError(f'{type(self.backbone).__name__} does not say its feat_dim: give head.in_channels')
        self.head = MODELS.build(head)
        self.teacher, self.distill_losses, self.label_weight, self.distill_layers = None, [], 1.0, ()
        if distill is not None:
            check_keys('key of distill', distill, ('teacher', 'losses', 'label_weight', 'layers'))
            self.teacher = Teacher(**distill['teacher'])
            self.distill_losses = [MODELS.build(dict(loss)) for loss in distill['losses']]
            self.label_weight = distill.get('label_weight', 0.0)
            self.distill_layers = Taps(self, distill.get('layers', ()), 'student').layers
            if self.distill_layers and compile:
                raise ValueError('layers of distill are seen by hooks, which a compiled backbone does not call: leave out '
                                 'one of both')
        if compile:
            self.backbone.compile(**(compile if isinstance(compile, dict) else {}))

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor') -> Tensor | dict | list:
        """Normalised images ``[N, C, H, W]`` and ``int64 [N]``.

        ``mode='tensor'``: logits ``[N, K]``. ``'loss'``: a dict of scalars. ``'predict'``: a list with one dict for the whole
        batch, ``scores`` ``[N, K]`` and ``labels``.
        """
        taps = Taps(self, self.distill_layers if mode == 'loss' else (), 'student')
        with taps:
            features = self.backbone(inputs)
        logits = self.head(features)
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            return [dict(scores=logits.float().softmax(1), labels=labels)]
        if mode != 'loss':
            raise ValueError(f"mode is 'tensor', 'loss' or 'predict', but got {mode!r}")
        tapped, layers = taps.take()
        return self.losses(Outputs(logits.float(), tapped or features, layers), inputs, labels)

    def losses(self, student: Outputs, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss on the labels and those of the distillation; ``accuracy`` is logged, but not added."""
        losses = dict(accuracy=(student.logits.argmax(1) == labels).float().mean())
        if self.label_weight:
            losses['loss'] = self.label_weight * self.head.loss(student.logits, labels)
        if self.teacher is not None:
            teacher = self.teacher(inputs)
            for loss in self.distill_losses:
                name = f'loss_{type(loss).__name__}'  # several of a kind, of other features, are one
                losses[name] = losses.get(name, 0) + loss(student, teacher)
        return losses

