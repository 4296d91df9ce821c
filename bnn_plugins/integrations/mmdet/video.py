"""Clips for detectors: frames with their numbers, batches of whole clips."""

from collections.abc import Iterator

from torch.utils.data import BatchSampler, Sampler

from ...registry import DATA_SAMPLERS, DATASETS
from .datasets import CocoDataset


@DATASETS.register_module()
class ClipDataset(CocoDataset):
    """COCO annotations of videos, as mmdet's tracking sets have them, frame by frame.

    ``images`` have ``video_id`` and ``frame_id``, annotations may have ``instance_id``; all three are in the data samples
    (``meta_keys`` of ``PackDetInputs``, and ``instances``). Frames of a video follow each other.
    """

    def parse_data_info(self, raw_data_info: dict) -> dict:
        info = super().parse_data_info(raw_data_info)
        image = raw_data_info['raw_img_info']
        info.update(video_id=image['video_id'], frame_id=image['frame_id'])
        return info


@DATA_SAMPLERS.register_module()
class ClipBatchSampler(BatchSampler):
    """Batches of whole clips: where the sampler draws the first frame of a clip, its other frames follow.

    Args:
        sampler: draws frames; its dataset has ``video_id`` and ``frame_id``.
        batch_size: frames in a batch.
        length: frames of a clip; longer videos give several clips.
        drop_last: leave out the last, smaller batch.

    Raises:
        ValueError: for a batch size that is no multiple of ``length``, and for a dataset without clips of this length.
    """

    def __init__(self, sampler: Sampler, batch_size: int, length: int, drop_last: bool = False):
        if batch_size % length:
            raise ValueError(f'a batch holds whole clips: batch_size={batch_size} is no multiple of their length {length}')
        super().__init__(sampler, batch_size, drop_last)
        self.length = length
        dataset = sampler.dataset
        frames = [(info['video_id'], info['frame_id']) for info in map(dataset.get_data_info, range(len(dataset)))]
        self.starts = {place for place, (video, frame) in enumerate(frames) if frame % length == 0
                       and frames[place:place + length] == [(video, frame + i) for i in range(length)]}
        if not self.starts:
            raise ValueError(f'the dataset has no {length} frames of one video in a row')

    def __iter__(self) -> Iterator[list[int]]:
        batch = []
        for place in self.sampler:
            if place in self.starts:
                batch.extend(range(place, place + self.length))
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        """Of one process (the sampler may have drawn a few clips more or less)."""
        clips = round(len(self.starts) * len(self.sampler) / len(self.sampler.dataset))
        per_batch = self.batch_size // self.length
        return clips // per_batch if self.drop_last else -(-clips // per_batch)
