"""A detector with a teacher."""

from mmengine.model import BaseModel
from torch import Tensor

from ...models.classifiers.teacher import Taps, Teacher
from ...models.losses import Outputs
from ...registry import MODELS


@MODELS.register_module()
class DistilledDetector(BaseModel):
    """Any detector of mmdet, to whose losses those between some of its layers and those of a teacher are added.

    Args:
        detector (dict): config of the detector, with its ``data_preprocessor``.
        teacher (dict): arguments of :class:`.Teacher`: ``model``, ``checkpoint``, and ``layers``, which must be as many.
        layers (Sequence[str]): dotted names of submodules of the detector.
        losses (list[dict]): ``bnn_plugins.FeatureLoss``, ``LayerwiseLoss``, ``AttentionLoss``, ...

    Checkpoints hold the detector alone, under ``detector.``; the teacher is not saved.

    Raises:
        ValueError: for layers that a network does not have.
    """

    def __init__(self, detector: dict, teacher: dict, layers: list[str], losses: list[dict],
                 init_cfg: dict | list | None = None):
        detector = MODELS.build(detector)
        super().__init__(detector.data_preprocessor, init_cfg)
        self.detector = detector
        self.teacher = Teacher(**teacher)
        self.taps = Taps(detector, layers, 'detector')
        self.distill_losses = [MODELS.build(dict(loss)) for loss in losses]

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        if mode != 'loss':
            return self.detector(inputs, data_samples, mode)
        with self.taps:
            losses = dict(self.detector(inputs, data_samples, mode))
        student, teacher = Outputs(None, *self.taps.take()), self.teacher(inputs)
        return losses | {f'loss_{type(loss).__name__}': loss(student, teacher) for loss in self.distill_losses}
