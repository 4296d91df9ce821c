"""The metric of character models."""

import math
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from ....registry import METRICS


@METRICS.register_module()
class BitsPerCharacter(BaseMetric):
    """``{'bpc': ...}``, the mean of ``-log2 p(character)`` over all labels that are not skipped."""

    default_prefix = None

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        self.results.extend((float(sample['nats']), int(sample['count'])) for sample in data_samples)

    def compute_metrics(self, results: list[tuple[float, int]]) -> dict[str, float]:
        nats, counts = zip(*results, strict=True)
        return dict(bpc=sum(nats) / sum(counts) / math.log(2))
