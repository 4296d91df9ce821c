"""The command line of ``tools/train_diffusion.py``: that of diffusers' example, and ours. A config file sets the defaults."""

import argparse

from ...binarize.lookup import check_keys
from ...integrations.mmengine.run import read_config

# name -> (default, help). A default of None takes text; tuples are choices, the first one the default.
FLAGS = {
    'train_data_dir': (None, 'folder of pictures to train on, instead of the dataset of the config'),
    'model_config_name_or_path': (None, 'config.json of the UNet, instead of the model of the config'),
    'output_dir': ('work_dirs/diffusion', 'where checkpoints, samples and the pipeline go'),
    'overwrite_output_dir': (False, 'accept an output folder that has a pipeline already'),
    'resolution': (64, 'pixels of a side'),
    'center_crop': (False, 'cut the middle instead of squeezing the picture'),
    'random_flip': (False, 'mirror pictures at random'),
    'train_batch_size': (16, 'per process'),
    'eval_batch_size': (16, 'pictures in a sample grid'),
    'dataloader_num_workers': (0, ''),
    'num_epochs': (100, ''),
    'max_train_steps': (None, 'stop after so many optimizer steps, whatever num_epochs says'),
    'save_images_epochs': (10, 'a sample grid every so many epochs'),
    'save_model_epochs': (10, 'save the pipeline every so many epochs'),
    'gradient_accumulation_steps': (1, ''),
    'learning_rate': (1e-4, ''),
    'lr_scheduler': ('cosine', ''),
    'lr_warmup_steps': (500, ''),
    'adam_beta1': (0.95, ''),
    'adam_beta2': (0.999, ''),
    'adam_weight_decay': (1e-6, 'of float weights; latent weights have none'),
    'adam_epsilon': (1e-8, ''),
    'max_grad_norm': (1.0, ''),
    'use_ema': (False, 'sample from and save an average of the weights'),
    'ema_inv_gamma': (1.0, ''),
    'ema_power': (0.75, ''),
    'ema_max_decay': (0.9999, ''),
    'logger': (('tensorboard', 'wandb', 'none'), ''),
    'logging_dir': ('logs', 'below output_dir'),
    'mixed_precision': (('no', 'fp16', 'bf16'), ''),
    'prediction_type': (('epsilon', 'sample', 'v_prediction'), ''),
    'ddpm_num_steps': (1000, ''),
    'ddpm_num_inference_steps': (1000, ''),
    'ddpm_beta_schedule': ('linear', ''),
    'checkpointing_steps': (500, ''),
    'checkpoints_total_limit': (None, 'keep only the newest so many'),
    'resume_from_checkpoint': (None, 'a folder checkpoint-N, or latest'),
    'seed': (0, ''),
    # ours
    'holdout': (0.1, 'share of the pictures that is never trained on'),
    'teacher_model': (None, 'folder of a pipeline with a float UNet of the same block widths'),
    'teacher_config': (None, 'config of the float twin: trained first where teacher_model is not there yet'),
    'teacher_weight': (0.0, 'of the squared error to what the teacher predicts'),
    'spd_weight': (0.0, 'of space patched distillation (BiDM uses 1e-2)'),
    'lrm_weight': (0.0, 'of low-rank representation mimicking (BinaryDM uses 1e-4)'),
    'latent_clip': (True, 'clip latent weights where the method says so'),
    'residual': (False, 'super-resolution: diffuse the difference to the enlarged picture'),
    'crop': (0, 'train on random crops of so many pixels, 0 for whole pictures'),
    'shard': (False, 'spread weights, gradients and the optimizer over the processes (fully_shard)'),
    'log_every': (50, 'steps between two lines in the log'),
}
INTEGERS = ('max_train_steps', 'checkpoints_total_limit')
NO_DEFAULT = dict(dataset=None, model=None, noise_scheduler=None, pipeline=None)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags over the ``train`` section of the config over the defaults; the other sections of the config as attributes.

    Raises:
        FileNotFoundError: for a config that does not exist. ValueError: for an unknown key of it.
    """
    parser = argparse.ArgumentParser('train_diffusion.py', description='Trains a binary (or float) diffusion model.',
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', nargs='?', help='config with model, noise_scheduler, dataset, pipeline, train: a file, or a '
                                                  'name like bnn_plugins::diffusion/ddpm_reactnet_digits.py')
    for name, (default, text) in FLAGS.items():
        if isinstance(default, bool):
            parser.add_argument(f'--{name}', action=argparse.BooleanOptionalAction, default=default, help=text)
        elif isinstance(default, tuple):
            parser.add_argument(f'--{name}', choices=default, default=default[0], help=text)
        else:
            kind = int if name in INTEGERS else str if default is None else type(default)
            parser.add_argument(f'--{name}', type=kind, default=default, help=text or ' ')
    parser.set_defaults(**NO_DEFAULT)
    config = parser.parse_known_args(argv)[0].config
    if config is not None:
        sections = read_config(config).to_dict()
        check_keys(f'section of {config}', sections, [*NO_DEFAULT, 'train'])
        train = sections.pop('train', {})
        check_keys(f'flag in train of {config}', train, FLAGS)
        parser.set_defaults(**train, **sections)
    return parser.parse_args(argv)
