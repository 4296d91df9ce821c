"""Checkpoints of diffusion training: whole ones, which resume on any number of processes."""

import logging
import re
import shutil
from pathlib import Path

from accelerate.utils import gather_object
from diffusers import ModelMixin

from ...engine.processes import from_first
from ...engine.sharding import is_sharded, like
from ...integrations.diffusers.ema import BNNEMAModel
from ...integrations.diffusers.loading import from_config

logger = logging.getLogger('bnn_plugins')


class Checkpoints:
    """The part of a trainer that saves and resumes.

    Attributes:
        step (int): optimizer steps since the start, the name of a checkpoint.
        position (int): those that these processes would have taken to be where the run is, of ``total_steps``.
        epoch (int): complete ones.
        batches (int): of this process, in this epoch.
    """

    def state_dict(self) -> dict:
        return dict(step=self.step, epoch=self.epoch, images=self.batches * self.images_per_batch,
                    directions=self.mimicking.directions)

    def load_state_dict(self, state: dict) -> None:
        parts = self.args.gradient_accumulation_steps
        self.step, self.epoch = state['step'], state['epoch']
        if state['directions'] is not None:
            self.mimicking.directions = [v.to(self.accelerator.device) for v in state['directions']]
        self.batches = min(state['images'] // self.images_per_batch, len(self.loader)) // parts * parts
        self.position = self.step if self.args.max_train_steps else (
            self.epoch * self.steps_per_epoch + self.batches // parts)

    @property
    def images_per_batch(self) -> int:
        """Of all processes."""
        return self.args.train_batch_size * self.accelerator.num_processes

    def save_models(self, models: list, weights: list, output_dir: str) -> None:
        unet, main = self.whole_unet(), self.accelerator.is_main_process
        if self.ema is not None:
            self.ema.save_pretrained(Path(output_dir) / 'unet_ema', is_main_process=main)
        if main:
            unet.save_pretrained(Path(output_dir) / 'unet')
        weights.clear()  # else accelerate writes them as well

    def load_models(self, models: list, input_dir: str) -> None:
        if self.ema is not None:
            loaded = BNNEMAModel.from_pretrained(Path(input_dir) / 'unet_ema', self.unet_class)
            self.ema.load_state_dict(loaded.state_dict())
            self.ema.to(self.accelerator.device)
            self.ema.shadow_params = [like(average, p) for average, p in zip(self.ema.shadow_params, self.unet.parameters(),
                                                                              strict=True)]
        models.clear()  # else accelerate loads them as well
        self.bare_unet.load_state_dict(self.unet_class.from_pretrained(Path(input_dir) / 'unet').state_dict())

    def whole_unet(self) -> ModelMixin | None:
        """The UNet; a sharded one is gathered by all processes for the first."""
        unet = self.bare_unet
        if not is_sharded(unet):
            return unet
        state_dict = unet.state_dict()
        if not self.accelerator.is_main_process:
            return None
        gathered = from_config(self.unet_class, unet.config)
        gathered.load_state_dict(state_dict)
        return gathered

    def checkpoints(self) -> list[Path]:
        found = [path for path in self.folder.glob('checkpoint-*') if re.fullmatch(r'checkpoint-\d+', path.name)]
        return sorted(found, key=lambda path: int(path.name.rpartition('-')[2]))

    def save_checkpoint(self) -> None:
        """Under its final name once it is whole; only then are older ones removed."""
        whole = self.folder / f'checkpoint-{self.step}'
        partial = whole.with_name(f'{whole.name}.part')
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(whole, ignore_errors=True)  # of a run that was resumed before it
            partial.rename(whole)
            if self.args.checkpoints_total_limit:
                for old in self.checkpoints()[:-self.args.checkpoints_total_limit]:
                    shutil.rmtree(old)

    def resume(self) -> None:
        path = from_first(self.checkpoint_to_resume)
        if path is None:
            return
        seen = gather_object([path.is_dir()])
        if not all(seen):
            raise FileNotFoundError(f'process {seen.index(False)} does not see {path}: all machines must share its disk')
        self.accelerator.load_state(str(path))
        self.accelerator.step = 0  # checkpoints are written between optimizer steps
        schedule = self.schedule.scheduler
        schedule.last_epoch = self.position - 1
        schedule.step()
        logger.info('resumed from %s', path)

    def checkpoint_to_resume(self) -> Path | None:
        name = self.args.resume_from_checkpoint
        if name == 'latest':
            found = self.checkpoints()
            if not found:
                logger.warning('there is no checkpoint in %s: training starts anew', self.folder)
            return found[-1] if found else None
        path = self.folder / Path(name).name if (self.folder / Path(name).name).is_dir() else Path(name)
        if not path.is_dir():
            raise FileNotFoundError(f'there is no checkpoint {path}: there are '
                                    f'{", ".join(p.name for p in self.checkpoints()) or "none"} in {self.folder}')
        return path
