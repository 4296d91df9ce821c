"""The metric."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric

from ....registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Top-k accuracy in percent, ``{'top1': ..., 'top5': ...}``, and the mean cross entropy ``loss``.

    Args:
        topk: the k; those that are not below the number of classes are left out (100 % would be no news).
        folds: with more than one, ``top1_fold0``, ... too: of every ``folds``-th image, from image 0, 1, ... on.
    """

    default_prefix = None

    def __init__(self, topk: Sequence[int] = (1, 5), folds: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.topk, self.folds = tuple(topk), folds

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            scores, labels = sample['scores'].cpu(), sample['labels'].cpu()
            right = scores.gather(1, labels[:, None])
            # The place of the right class; where scores are equal, the worst that this can mean.
            ranks = (scores >= right).sum(1)
            losses = -right[:, 0].clamp(min=torch.finfo(scores.dtype).tiny).log()
            # Image by image: where processes share a dataset, mmengine drops the images that were dealt twice.
            self.results.extend(zip(ranks.tolist(), losses.tolist(), [scores.shape[1]] * len(scores), strict=True))

    def compute_metrics(self, results: list[tuple[int, float, int]]) -> dict[str, float]:
        ranks, losses, classes = zip(*results, strict=True)
        metrics = {f'top{k}': 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in self.topk if k < classes[0]}
        if self.folds > 1:
            parts = [ranks[fold::self.folds] for fold in range(self.folds)]
            metrics |= {f'top1_fold{fold}': 100 * part.count(1) / len(part) for fold, part in enumerate(parts)}
        return dict(metrics, loss=sum(losses) / len(losses))
