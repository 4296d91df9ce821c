"""A detector that hands the numbers of its frames to its neck."""

from mmengine.model import BaseModel
from torch import Tensor

from ...models.necks import BNNConvLSTMNeck
from ...registry import MODELS


@MODELS.register_module()
class ClipDetector(BaseModel):
    """Any detector of mmdet, whose necks are told which images are frames of which clip.

    ``video_id`` and ``frame_id`` of the data samples, mmdet's names, go to every
    :class:`bnn_plugins.models.necks.BNNConvLSTMNeck`; samples without them are images by themselves.

    Args:
        detector (dict): config of the detector, with its ``data_preprocessor``.
    """

    def __init__(self, detector: dict, init_cfg: dict | list | None = None):
        detector = MODELS.build(detector)
        super().__init__(detector.data_preprocessor, init_cfg)
        self.detector = detector

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        frames = None
        if data_samples and all('frame_id' in sample and 'video_id' in sample for sample in data_samples):
            frames = [(sample.video_id, sample.frame_id) for sample in data_samples]
        for module in self.detector.modules():
            if isinstance(module, BNNConvLSTMNeck):
                module.set_frames(frames)
        return self.detector(inputs, data_samples, mode)
