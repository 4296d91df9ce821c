"""A grid of trainings: which methods, networks, expansions, lengths and seeds, and what each run is called."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mmengine.config import Config

GRIDS = Path(__file__).parent / 'grids'


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        network: a key of the grid's ``networks``. method, expand: as a config takes them; method ``None``: the float twin.
        epochs: length of the training, which the schedules span. seed: of everything.
    """

    grid: str
    network: str
    method: dict | None
    expand: dict | None
    epochs: int
    seed: int

    @property
    def method_name(self) -> str:
        return 'float' if self.method is None else spelled(self.method, self.method['type'])

    @property
    def expand_name(self) -> str:
        return 'none' if self.expand is None else spelled(self.expand, self.expand.get('style', 'es'))

    @property
    def key(self) -> str:
        """Name of the folder of the run, and of its row."""
        return f'{self.network}-{self.method_name}-{self.expand_name}-{self.epochs}-{self.seed}'

    def overrides(self, grid: Config) -> dict:
        """What the run changes in the grid's config."""
        epochs = self.epochs
        overrides = {
            'model.backbone': dict(**copy.deepcopy(grid.networks[self.network].to_dict()), method=self.method,
                                   expand=self.expand, _delete_=True),
            'randomness.seed': self.seed,
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': max(1, epochs // grid.get('validations', 10)),
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': 2,  # the oldest is deleted before the next is written
        }
        if 'peak_lr' in grid:
            overrides['param_scheduler'] = [dict(type='OneCycleLR', eta_max=grid.peak_lr, total_steps=epochs, pct_start=0.25,
                                                 by_epoch=True, convert_to_iter_based=True)]
        return overrides


def spelled(options: dict, name: str) -> str:
    """``name`` and the other options, fit for a file name: ``es tau=2`` is ``es_tau=2``."""
    rest = [f'{key}={value}' for key, value in options.items() if key not in ('type', 'style')]
    return '_'.join([name, *rest]).replace(' ', '')


def load_grid(name: str) -> Config:
    """A grid of this folder, or the path of one.

    Raises:
        FileNotFoundError: with the names of those that there are.
    """
    path = Path(name) if name.endswith('.py') else GRIDS / f'{name}.py'
    if not path.is_file():
        known = ', '.join(sorted(file.stem for file in GRIDS.glob('*.py')))
        raise FileNotFoundError(f'there is no grid {name!r}; there are {known}, or give the path of a file')
    return Config.fromfile(path)


def runs(grid: Config, name: str) -> Iterator[Run]:
    """All runs, seed by seed, so that an interrupted grid has every method before it has any twice."""
    found = {}
    for block in grid.blocks:
        for network, method, expand, epochs, seed in product(*(block[axis] for axis in ('networks', 'methods', 'expansions',
                                                                                        'epochs', 'seeds'))):
            method = dict(type=method) if isinstance(method, str) else method and dict(method)
            run = Run(name, network, method, None if expand is None else dict(expand), epochs, seed)
            found.setdefault(run.key, run)
    return iter(sorted(found.values(), key=lambda run: (run.seed, run.epochs)))
