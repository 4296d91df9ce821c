"""The training loop of diffusion models, on accelerate, with the checkpoints and folders of diffusers' example.

Noise, timesteps, flips and crops of an image are drawn from (seed, its place in the order of all epochs), so that they depend
neither on an interruption nor on the number of processes. What the network itself draws (dropout) is seeded anew in every step
from (seed, step, process).
"""

import contextlib
import logging
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, gather_object
from diffusers import AutoModel, ModelMixin
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ...binarize import TrainingUpdates, set_parts
from ...engine.processes import check_restart, from_first
from ...engine.sharding import shard_, whole_state_
from ...integrations.diffusers.class_pipeline import (
    ClassConditionalPipeline,
    check_labels,
    classes_for,
    classes_of,
)
from ...integrations.diffusers.distill import BlockFeatures, LowRankMimicking, space_patched_loss
from ...integrations.diffusers.ema import BNNEMAModel
from ...layers.parameters import parameter_kinds
from ...layers.training import training_report
from .build import build, build_model
from .checkpoints import Checkpoints
from .data import Images, build_dataset, split
from .draws import ImageDraws
from .flags import parse_args
from .grid import picture_grid
from .lazy import LazyImages

logger = logging.getLogger('bnn_plugins')


class Trainer(Checkpoints):
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
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True), step_scheduler_with_optimizer=False)
        torch.manual_seed(args.seed)
        source = args.dataset if args.train_data_dir is None else dict(type='imagefolder', path=args.train_data_dir)
        if source is None:
            raise ValueError('there is nothing to train on: give a config with a dataset, or --train_data_dir')
        self.data, self.heldout = split(build_dataset(source, args.resolution, args.center_crop), args.holdout)
        unet = build_model(args)
        check_channels(unet, self.data)
        check_classes(unet, self.data, args.pipeline)
        self.noise_scheduler = build(args.noise_scheduler or dict(type='DDPMScheduler'),
                                     num_train_timesteps=args.ddpm_num_steps, beta_schedule=args.ddpm_beta_schedule,
                                     prediction_type=args.prediction_type)
        self.prepare_teacher(unet)
        self.unet_class = type(unet)  # a sharded model has one of torch's
        if args.shard:
            shard_(unet.to(self.accelerator.device))
        self.ema = BNNEMAModel(unet.parameters(), decay=args.ema_max_decay, use_ema_warmup=True, foreach=not args.shard,
                               inv_gamma=args.ema_inv_gamma, power=args.ema_power, model_cls=self.unet_class,
                               model_config=unet.config) if args.use_ema else None
        self.accelerator.register_save_state_pre_hook(self.save_models)
        self.accelerator.register_load_state_pre_hook(self.load_models)

        order = self.data.sampler(args.seed) if isinstance(self.data, LazyImages) else None
        loader = DataLoader(self.data, args.train_batch_size, shuffle=order is None, sampler=order,
                            drop_last=len(self.data) >= args.train_batch_size, num_workers=args.dataloader_num_workers)
        optimizer = torch.optim.AdamW(parameter_groups(unet, args.adam_weight_decay), lr=args.learning_rate,
                                      betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True)
        self.loader = self.accelerator.prepare(loader)
        if not len(self.loader):
            raise ValueError(f'{len(self.data)} images are no batch of {args.train_batch_size} for each of '
                             f'{self.accelerator.num_processes} processes: lower --train_batch_size')
        self.steps_per_epoch = math.ceil(len(self.loader) / args.gradient_accumulation_steps)
        self.total_steps = args.max_train_steps or args.num_epochs * self.steps_per_epoch
        schedule = get_scheduler(args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps,
                                 num_training_steps=self.total_steps)
        if args.shard:
            whole_state_(optimizer)
        self.unet = self.accelerator.prepare_model(unet, evaluation_mode=args.shard)  # shards need no other wrapper
        self.optimizer, self.schedule = self.accelerator.prepare(optimizer, schedule)
        self.accelerator.register_for_checkpointing(self)
        set_parts(unet, args.gradient_accumulation_steps)
        self.updates = TrainingUpdates(self.bare_unet)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.step = self.position = self.epoch = self.batches = 0
        self.reported = False
        self.last_loss = math.nan

    @property
    def bare_unet(self) -> ModelMixin:
        return self.accelerator.unwrap_model(self.unet)

    def prepare_teacher(self, unet: ModelMixin) -> None:
        args = self.args
        self.teacher, self.mimicking = None, LowRankMimicking()
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

    # --- training ---------------------------------------------------------------------------------------------

    def run(self) -> Path:
        args = self.args
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            if args.logger != 'none':
                self.accelerator.init_trackers('train_diffusion')
        if args.resume_from_checkpoint:
            self.resume()
            if self.position >= self.total_steps:
                self.save_pipeline()  # stopped between the last checkpoint and this
        bar = tqdm(total=self.total_steps, initial=self.position, desc='training',
                   disable=not self.accelerator.is_local_main_process)
        while self.position < self.total_steps:
            epoch = self.epoch
            self.train_epoch(bar)
            last = self.position >= self.total_steps
            if last or (epoch + 1) % args.save_images_epochs == 0:
                self.save_grid(epoch)
            if last or (epoch + 1) % args.save_model_epochs == 0:
                self.save_pipeline()
            self.accelerator.wait_for_everyone()
        bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.folder

    def train_epoch(self, bar: tqdm) -> None:
        self.unet.train()
        self.loader.set_epoch(self.epoch)
        if not self.batches:
            self.updates.start_epoch()
        loader = self.accelerator.skip_first_batches(self.loader, self.batches) if self.batches else self.loader
        for batch in loader:
            self.seed()
            with self.accelerator.accumulate(self.unet):
                self.updates.set_progress(self.position / self.total_steps)
                loss = self.loss(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.unet.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                    self.schedule.step()
                self.optimizer.zero_grad()
            self.batches += 1
            if self.batches == len(self.loader):
                self.epoch, self.batches = self.epoch + 1, 0
            if self.accelerator.sync_gradients:
                self.after_step(loss, bar)
                if self.position >= self.total_steps:
                    return

    def seed(self) -> None:
        index = self.epoch * len(self.loader) + self.batches
        torch.manual_seed((self.args.seed * 1_000_003 + index) * 4096 + self.accelerator.process_index)

    def draws(self, images: Tensor) -> ImageDraws:
        batch = self.batches * self.accelerator.num_processes + self.accelerator.process_index
        first = self.epoch * len(self.data) + batch * self.args.train_batch_size
        return ImageDraws(first, len(images), self.args.seed, images.device)

    def after_step(self, loss: Tensor, bar: tqdm) -> None:
        args = self.args
        self.updates.after_step(clip=args.latent_clip)
        if self.ema is not None:
            self.ema.step(self.unet.parameters())
        if not self.reported:
            self.reported = True
            logger.info(training_report(self.bare_unet))
        self.step += 1
        self.position += 1
        bar.update(1)
        if self.step % args.log_every == 0 or self.position == self.total_steps:
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
        draw = self.draws(clean)
        if args.random_flip:
            clean, condition = draw.flipped(clean, condition)
        if args.crop:
            clean, condition = draw.cropped(args.crop, clean, condition)
        if args.residual:
            clean = clean - condition
        noise = draw(torch.randn, clean.shape[1:])
        t = draw(torch.randint, scheduler.config.num_train_timesteps, ())

        def model_input(timesteps: Tensor) -> Tensor:
            noisy = scheduler.add_noise(clean, noise, timesteps)
            return noisy if condition is None else torch.cat([noisy, condition], 1)

        inputs, classes = model_input(t), classes_for(self.bare_unet, batch)
        connection = getattr(self.bare_unet, 'cross_timestep_connection', None)
        if connection is None:
            prediction = self.unet(inputs, t, **classes).sample
        else:
            with connection.training_step():
                before = (t + 1).clamp(max=scheduler.config.num_train_timesteps - 1)  # as in sampling
                with torch.no_grad():
                    self.unet(model_input(before), before, **classes)
                prediction = self.unet(inputs, t, **classes).sample
        target = {'epsilon': lambda: noise, 'sample': lambda: clean,
                  'v_prediction': lambda: scheduler.get_velocity(clean, noise, t)}[scheduler.config.prediction_type]()
        loss = F.mse_loss(prediction.float(), target.float())
        return loss if self.teacher is None else loss + self.distillation(inputs, t, prediction, batch)

    def distillation(self, inputs: Tensor, t: Tensor, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        args = self.args
        with torch.no_grad():
            expected = self.teacher(inputs, t, **classes_for(self.teacher, batch)).sample
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
        default = dict(type='ClassConditionalPipeline' if classes_of(unet) else 'DDPMPipeline')
        return build(self.args.pipeline or default, unet=unet, scheduler=self.noise_scheduler)

    def save_grid(self, epoch: int) -> None:
        """Each process draws its share: none waits for another one's pictures."""
        share = math.ceil(self.args.eval_batch_size / self.accelerator.num_processes)
        mine = range(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        with self.averaged_weights() as unet:
            pipe = self.pipeline(unet)
            pipe.set_progress_bar_config(disable=True)
            options = dict(generator=[torch.Generator().manual_seed(index) for index in mine],
                           num_inference_steps=self.args.ddpm_num_inference_steps)
            if isinstance(pipe, ClassConditionalPipeline):
                images = pipe(torch.tensor(mine) % classes_of(unet), **options).images
            elif self.heldout.conditions is None:
                images = pipe(batch_size=share, **options).images
            else:
                images = pipe(torch.stack([self.heldout[i % len(self.heldout)]['condition'] for i in mine]), **options).images
        grid = picture_grid(gather_object(images)[:self.args.eval_batch_size])
        if not self.accelerator.is_main_process:
            return
        path = self.folder / 'samples' / f'{epoch:04d}.png'
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        if self.args.logger == 'tensorboard':
            tracker = self.accelerator.get_tracker('tensorboard', unwrap=True)
            tracker.add_image('samples', np.asarray(grid), epoch, dataformats='HWC')

    def save_pipeline(self) -> None:
        with self.averaged_weights():
            unet = self.whole_unet()
            if self.accelerator.is_main_process:
                self.pipeline(unet).save_pretrained(self.folder)


def parameter_groups(unet: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for the weights of real layers alone: see :func:`bnn_plugins.layers.parameters.parameter_kinds`."""
    weights = {id(module.weight) for module in unet.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)}
    chosen = weights - parameter_kinds(unet).keys()
    trained = [p for p in unet.parameters() if p.requires_grad]
    return [dict(params=[p for p in trained if id(p) in chosen], weight_decay=weight_decay),
            dict(params=[p for p in trained if id(p) not in chosen], weight_decay=0.0)]


def check_channels(unet: ModelMixin, data: Images | LazyImages) -> None:
    expected = len(data[0]['input']) * (1 if data.conditions is None else 2)
    if unet.config.in_channels != expected:
        raise ValueError(f'the UNet takes {unet.config.in_channels} channels, the pictures give {expected}: set in_channels '
                         'of the model, or channels of the dataset')


def check_classes(unet: ModelMixin, data: Images | LazyImages, pipeline: dict | None) -> None:
    """Labels are needed for a UNet with ``num_class_embeds``; for another one they are left unread."""
    if not classes_of(unet):
        return
    if 'label' not in data[0]:
        raise ValueError(f'the UNet has {classes_of(unet)} classes (num_class_embeds), but the pictures have no labels: give '
                         'one folder for each class, or label_column of the dataset')
    if isinstance(data, Images):
        check_labels(data.labels, classes_of(unet))
    if pipeline is not None and pipeline['type'] != ClassConditionalPipeline.__name__:
        raise ValueError("a UNet with classes needs pipeline=dict(type='ClassConditionalPipeline'), but got "
                         f'{pipeline["type"]!r}')


def sharding_asked() -> bool:
    """Whether ``accelerate launch --use_fsdp`` started this process. Its plugin needs GPUs and saves shards, so that it is not
    used: torch's ``fully_shard`` does the same with whole checkpoints.

    Raises:
        ValueError: for DeepSpeed.
    """
    if os.environ.get('ACCELERATE_USE_DEEPSPEED', 'false').lower() == 'true':
        raise ValueError('DeepSpeed keeps weights in buffers of its own, which the rules of binary layers do not reach: use '
                         'accelerate launch --use_fsdp, or --shard')
    return os.environ.pop('ACCELERATE_USE_FSDP', 'false').lower() == 'true'


def main(argv: list[str] | None = None) -> Path:
    """``tools/train_diffusion.py``."""
    logging.basicConfig(format='%(levelname)s %(message)s', level=logging.INFO)
    args = parse_args(argv)
    args.shard = sharding_asked() or args.shard
    check_restart()
    state = PartialState(cpu=not torch.cuda.is_available())
    if args.teacher_config and from_first(lambda: not (Path(args.teacher_model or '') / 'model_index.json').is_file()):
        logger.info('training the float twin first: %s', args.teacher_config)
        twin = parse_args([args.teacher_config, '--seed', str(args.seed), '--logger', args.logger])
        twin.output_dir, twin.shard = args.teacher_model or twin.output_dir, args.shard
        args.teacher_model = str(Trainer(twin).run())
        for shared in (GradientState, AcceleratorState):  # of the twin's Accelerator; the processes stay together
            shared._reset_state()
    folder = Trainer(args).run()
    state.destroy_process_group()
    return folder
