"""What a training left out."""

import logging
from collections.abc import Iterator

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..registry import HOOKS

NAMED = 10


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Counts and names the images that the datasets left out with ``on_unreadable='skip'``, at the end of each epoch.

    ``bnn train`` has it; other programs add ``custom_hooks=[dict(type='bnn_plugins.UnreadableImagesHook')]``.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        paths = [path for dataset in leaves(runner.train_dataloader.dataset) for path in left_out_(dataset)]
        paths = sorted({path for of_process in all_gather_object(paths) for path in of_process})
        if paths:
            more = f' and {len(paths) - NAMED} more' if len(paths) > NAMED else ''
            print_log(f'left {len(paths)} image{"s" * (len(paths) > 1)} that cannot be read out of this epoch: '
                      f'{", ".join(paths[:NAMED])}{more}', logger='current', level=logging.WARNING)

    after_train = after_train_epoch  # a training that counts iterations


def leaves(dataset) -> Iterator:
    """The datasets inside of datasets that concatenate, repeat or mix others."""
    inner = getattr(dataset, 'datasets', None) or [one for one in [getattr(dataset, 'dataset', None)] if one is not None]
    if not inner:
        yield dataset
    for one in inner:
        yield from leaves(one)


def left_out_(dataset) -> list[str]:
    """The files that could not be read since the last call."""
    flags = getattr(dataset, 'unreadable', None)
    if flags is None:
        return []
    paths = [dataset.get_data_info(index)['img_path'] for index in flags.nonzero().flatten().tolist()]
    flags.zero_()
    return paths
