"""The training loop of diffusion models, on accelerate, with the checkpoints and folders of diffusers' example.

Every step seeds the random numbers anew from (seed, process, step), so that a run that was interrupted and resumed ends with
the weights of one that was not.
"""

import contextlib
import logging
import math
import re
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration
from diffusers import AutoModel, ModelMixin
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ...binarize import after_step_, set_progress, start_epoch_
from ...integrations.diffusers.distill import BlockFeatures, LowRankMimicking, space_patched_loss
from ...integrations.diffusers.ema import BNNEMAModel
from ...layers.parameters import parameter_kinds
from ...layers.training import training_report
from .build import build, build_model
from .data import Images, build_dataset
from .flags import parse_args
from .grid import picture_grid

logger = logging.getLogger('bnn_plugins')


class Trainer:
    """One training run. ``run()`` returns the folder of the saved pipeline.

    Args:
        args: of :func:`bnn_plugins.apps.diffusion.flags.parse_args`.

    Raises:
        FileExistsError: when the output folder has a pipeline already. FileNotFoundError: for missing data, teacher or
            checkpoint. ValueError: for what does not fit together.
    """

    def __init__(self, args):
        self.args = args
        self.folder = Path(args.output_dir)
        if (self.folder / 'model_index.json').exists() and not (args.overwrite_output_dir or args.resume_from_checkpoint):
            raise FileExistsError(f'{self.folder} has a pipeline already: pass --overwrite_output_dir, '
                                  '--resume_from_checkpoint latest, or another --output_dir')
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps, mixed_precision=args.mixed_precision,
            log_with=None if args.logger == 'none' else args.logger, cpu=not torch.cuda.is_available(),
            project_config=ProjectConfiguration(project_dir=args.output_dir,
                                                logging_dir=str(self.folder / args.logging_dir)),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
        torch.manual_seed(args.seed)
        source = args.dataset if args.train_data_dir is None else dict(type='imagefolder', path=args.train_data_dir)
        if source is None:
            raise ValueError('there is nothing to train on: give a config with a dataset, or --train_data_dir')
        self.data, self.heldout = build_dataset(source, args.resolution, args.center_crop).split(args.holdout)
        unet = build_model(args)
        check_channels(unet, self.data)
        self.noise_scheduler = build(args.noise_scheduler or dict(type='DDPMScheduler'),
                                     num_train_timesteps=args.ddpm_num_steps, beta_schedule=args.ddpm_beta_schedule,
                                     prediction_type=args.prediction_type)
        self.prepare_teacher(unet)
        self.ema = BNNEMAModel(unet.parameters(), decay=args.ema_max_decay, use_ema_warmup=True, foreach=True,
                               inv_gamma=args.ema_inv_gamma, power=args.ema_power, model_cls=type(unet),
                               model_config=unet.config) if args.use_ema else None
        self.accelerator.register_save_state_pre_hook(self.save_models)
        self.accelerator.register_load_state_pre_hook(self.load_models)

        loader = DataLoader(self.data, args.train_batch_size, shuffle=True, drop_last=len(self.data) >= args.train_batch_size,
                            num_workers=args.dataloader_num_workers)
        optimizer = torch.optim.AdamW(parameter_groups(unet, args.adam_weight_decay), lr=args.learning_rate,
                                      betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True)
        steps_per_epoch = math.ceil(len(loader) / self.accelerator.num_processes / args.gradient_accumulation_steps)
        self.total_steps = args.max_train_steps or args.num_epochs * steps_per_epoch
        # accelerate steps the scheduler once for every process
        schedule = get_scheduler(args.lr_scheduler, optimizer,
                                 num_warmup_steps=args.lr_warmup_steps * self.accelerator.num_processes,
                                 num_training_steps=self.total_steps * self.accelerator.num_processes)
        self.unet, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(unet, optimizer, loader, schedule)
        self.steps_per_epoch = math.ceil(len(self.loader) / args.gradient_accumulation_steps)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.step = 0
        self.reported = False
        self.last_loss = math.nan

    @property
    def bare_unet(self) -> ModelMixin:
        return self.accelerator.unwrap_model(self.unet)

    def prepare_teacher(self, unet: ModelMixin) -> None:
        args = self.args
        self.teacher = None
        weights = dict(teacher_weight=args.teacher_weight, spd_weight=args.spd_weight, lrm_weight=args.lrm_weight)
        if args.teacher_model is None:
            asked = [name for name, weight in weights.items() if weight]
            if asked:
                raise ValueError(f'{asked[0]} needs --teacher_model: the folder of a float UNet')
            return
        if not (Path(args.teacher_model) / 'unet').is_dir():
            raise FileNotFoundError(f'there is no teacher in {args.teacher_model}: train the float twin first, name its '
                                    'config with --teacher_config, or leave teacher_model out')
        teacher = AutoModel.from_pretrained(str(args.teacher_model), subfolder='unet')
        self.teacher = teacher.to(self.accelerator.device).requires_grad_(False)
        self.student_features, self.teacher_features = BlockFeatures(unet), BlockFeatures(self.teacher)
        self.mimicking = LowRankMimicking()

    # --- checkpoints ------------------------------------------------------------------------------------------

    def save_models(self, models: list, weights: list, output_dir: str) -> None:
        if self.accelerator.is_main_process:
            if self.ema is not None:
                self.ema.save_pretrained(Path(output_dir) / 'unet_ema')
            for model in models:
                self.accelerator.unwrap_model(model).save_pretrained(Path(output_dir) / 'unet')
        weights.clear()  # else accelerate writes them as well

    def load_models(self, models: list, input_dir: str) -> None:
        cls = type(self.bare_unet)
        if self.ema is not None:
            loaded = BNNEMAModel.from_pretrained(Path(input_dir) / 'unet_ema', cls)
            self.ema.load_state_dict(loaded.state_dict())
            self.ema.to(self.accelerator.device)
        for _ in range(len(models)):
            model = self.accelerator.unwrap_model(models.pop())
            model.load_state_dict(cls.from_pretrained(Path(input_dir) / 'unet').state_dict())

    def checkpoints(self) -> list[Path]:
        found = [path for path in self.folder.glob('checkpoint-*') if re.fullmatch(r'checkpoint-\d+', path.name)]
        return sorted(found, key=lambda path: int(path.name.rpartition('-')[2]))

    def save_checkpoint(self) -> None:
        if self.accelerator.is_main_process and self.args.checkpoints_total_limit:
            for old in self.checkpoints()[:-(self.args.checkpoints_total_limit - 1) or None]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(self.folder / f'checkpoint-{self.step}'))

    def resume(self) -> None:
        name = self.args.resume_from_checkpoint
        if name == 'latest':
            found = self.checkpoints()
            if not found:
                logger.warning('there is no checkpoint in %s: training starts anew', self.folder)
                return
            path = found[-1]
        else:
            path = self.folder / Path(name).name if (self.folder / Path(name).name).is_dir() else Path(name)
        if not path.is_dir():
            raise FileNotFoundError(f'there is no checkpoint {path}: there are '
                                    f'{", ".join(p.name for p in self.checkpoints()) or "none"} in {self.folder}')
        self.accelerator.load_state(str(path))
        self.step = int(path.name.rpartition('-')[2])
        logger.info('resumed from %s', path)

    # --- training ---------------------------------------------------------------------------------------------

    def run(self) -> Path:
        args = self.args
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            if args.logger != 'none':
                self.accelerator.init_trackers('train_diffusion')
        if args.resume_from_checkpoint:
            self.resume()
            if self.step >= self.total_steps and self.accelerator.is_main_process:
                self.save_pipeline()  # stopped between the last checkpoint and this
        bar = tqdm(total=self.total_steps, initial=self.step, desc='training',
                   disable=not self.accelerator.is_local_main_process)
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch
            self.train_epoch(epoch, bar)
            last = self.step >= self.total_steps
            if self.accelerator.is_main_process:
                if last or (epoch + 1) % args.save_images_epochs == 0:
                    self.save_grid(epoch)
                if last or (epoch + 1) % args.save_model_epochs == 0:
                    self.save_pipeline()
            self.accelerator.wait_for_everyone()
        bar.close()
        self.accelerator.end_training()
        return self.folder

    def train_epoch(self, epoch: int, bar: tqdm) -> None:
        self.unet.train()
        done = (self.step - epoch * self.steps_per_epoch) * self.args.gradient_accumulation_steps
        self.loader.set_epoch(epoch)
        if not done:
            start_epoch_(self.bare_unet)
        loader = self.accelerator.skip_first_batches(self.loader, done) if done else self.loader
        for index, batch in enumerate(loader, start=done):
            self.seed(epoch * len(self.loader) + index)
            with self.accelerator.accumulate(self.unet):
                set_progress(self.bare_unet, self.step / self.total_steps)
                loss = self.loss(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.unet.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.after_step(loss, bar)
                if self.step >= self.total_steps:
                    return

    def seed(self, index: int) -> None:
        torch.manual_seed((self.args.seed * 1_000_003 + index) * 4096 + self.accelerator.process_index)

    def after_step(self, loss: Tensor, bar: tqdm) -> None:
        args = self.args
        after_step_(self.bare_unet, clip=args.latent_clip)
        if self.ema is not None:
            self.ema.step(self.unet.parameters())
        if not self.reported:
            self.reported = True
            logger.info(training_report(self.bare_unet))
        self.step += 1
        bar.update(1)
        if self.step % args.log_every == 0 or self.step == self.total_steps:
            self.last_loss = self.accelerator.gather(loss.detach()).mean().item()
            if not math.isfinite(self.last_loss):
                raise FloatingPointError(f'the loss is {self.last_loss} at step {self.step}: lower the learning rate, or '
                                         'resume from an earlier checkpoint')
            rate = self.schedule.get_last_lr()[0]
            bar.set_postfix(loss=f'{self.last_loss:.4f}', lr=f'{rate:.2e}')
            self.accelerator.log(dict(loss=self.last_loss, lr=rate), step=self.step)
        if self.step % args.checkpointing_steps == 0:
            self.save_checkpoint()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        args, scheduler = self.args, self.noise_scheduler
        clean, condition = batch['input'], batch.get('condition')
        if args.random_flip:
            flip = torch.rand(len(clean), 1, 1, 1, device=clean.device) < 0.5
            clean = torch.where(flip, clean.flip(3), clean)
            condition = None if condition is None else torch.where(flip, condition.flip(3), condition)
        if args.crop:
            top, left = (int(torch.randint(size - args.crop + 1, ())) for size in clean.shape[2:])
            clean, condition = (x if x is None else x[:, :, top:top + args.crop, left:left + args.crop]
                                for x in (clean, condition))
        if args.residual:
            clean = clean - condition
        noise = torch.randn_like(clean)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)

        def model_input(timesteps: Tensor) -> Tensor:
            noisy = scheduler.add_noise(clean, noise, timesteps)
            return noisy if condition is None else torch.cat([noisy, condition], 1)

        connection = getattr(self.bare_unet, 'cross_timestep_connection', None)
        if connection is not None:  # the step before, as in sampling
            connection.reset()
            before = (t + 1).clamp(max=scheduler.config.num_train_timesteps - 1)
            with torch.no_grad():
                self.unet(model_input(before), before)
        inputs = model_input(t)
        prediction = self.unet(inputs, t).sample
        if connection is not None:
            connection.reset()
        target = {'epsilon': lambda: noise, 'sample': lambda: clean,
                  'v_prediction': lambda: scheduler.get_velocity(clean, noise, t)}[scheduler.config.prediction_type]()
        loss = F.mse_loss(prediction.float(), target.float())
        return loss if self.teacher is None else loss + self.distillation(inputs, t, prediction)

    def distillation(self, inputs: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        args = self.args
        with torch.no_grad():
            expected = self.teacher(inputs, t).sample
        loss = prediction.new_zeros(())
        if args.teacher_weight:
            loss = loss + args.teacher_weight * F.mse_loss(prediction.float(), expected.float())
        features = self.student_features.features, self.teacher_features.features
        if args.spd_weight:
            loss = loss + args.spd_weight * space_patched_loss(*features)
        if args.lrm_weight:
            loss = loss + args.lrm_weight * self.mimicking(*features)
        return loss

    # --- results ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_weights(self):
        unet = self.bare_unet.eval()
        if self.ema is not None:
            self.ema.store(unet.parameters())
            self.ema.copy_to(unet.parameters())
        try:
            yield unet
        finally:
            if self.ema is not None:
                self.ema.restore(unet.parameters())
            unet.train()

    def pipeline(self, unet: ModelMixin):
        return build(self.args.pipeline or dict(type='DDPMPipeline'), unet=unet, scheduler=self.noise_scheduler)

    def save_grid(self, epoch: int) -> None:
        count = self.args.eval_batch_size
        generator = torch.Generator().manual_seed(0)
        with self.averaged_weights() as unet:
            pipe = self.pipeline(unet)
            pipe.set_progress_bar_config(disable=True)
            options = dict(generator=generator, num_inference_steps=self.args.ddpm_num_inference_steps)
            if self.heldout.conditions is None:
                images = pipe(batch_size=count, **options).images
            else:
                images = pipe(torch.stack([self.heldout[i]['condition'] for i in range(count)]), **options).images
        grid = picture_grid(images)
        path = self.folder / 'samples' / f'{epoch:04d}.png'
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        if self.args.logger == 'tensorboard':
            tracker = self.accelerator.get_tracker('tensorboard', unwrap=True)
            tracker.add_image('samples', np.asarray(grid), epoch, dataformats='HWC')

    def save_pipeline(self) -> None:
        with self.averaged_weights() as unet:
            self.pipeline(unet).save_pretrained(self.folder)


def parameter_groups(unet: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for the weights of real layers alone: see :func:`bnn_plugins.layers.parameters.parameter_kinds`."""
    weights = {id(module.weight) for module in unet.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)}
    chosen = weights - parameter_kinds(unet).keys()
    trained = [p for p in unet.parameters() if p.requires_grad]
    return [dict(params=[p for p in trained if id(p) in chosen], weight_decay=weight_decay),
            dict(params=[p for p in trained if id(p) not in chosen], weight_decay=0.0)]


def check_channels(unet: ModelMixin, data: Images) -> None:
    expected = data.images.shape[1] * (1 if data.conditions is None else 2)
    if unet.config.in_channels != expected:
        raise ValueError(f'the UNet takes {unet.config.in_channels} channels, the pictures give {expected}: set in_channels '
                         'of the model, or channels of the dataset')


def main(argv: list[str] | None = None) -> Path:
    """``tools/train_diffusion.py``."""
    logging.basicConfig(format='%(levelname)s %(message)s', level=logging.INFO)
    args = parse_args(argv)
    if args.teacher_config and not (Path(args.teacher_model or '') / 'model_index.json').is_file():
        logger.info('training the float twin first: %s', args.teacher_config)
        twin = parse_args([args.teacher_config, '--seed', str(args.seed), '--logger', args.logger])
        twin.output_dir = args.teacher_model or twin.output_dir
        args.teacher_model = str(Trainer(twin).run())
    return Trainer(args).run()
