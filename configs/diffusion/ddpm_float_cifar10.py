# The UNet of DDPM for CIFAR-10 (arXiv 2006.11239) as diffusers configures it (google/ddpm-cifar10-32), with its rate, batches,
# flips and averaged weights, for an eighth of its 800,000 steps.
model = dict(
    type='UNet2DModel', sample_size=32, in_channels=3, out_channels=3, layers_per_block=2,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)
noise_scheduler = dict(type='DDPMScheduler', beta_schedule='linear', variance_type='fixed_large')
dataset = dict(type='parquet', path='data/cifar10/train.parquet')
pipeline = dict(type='DDPMPipeline')
train = dict(
    output_dir='work_dirs/ddpm_float_cifar10', resolution=32, train_batch_size=128, eval_batch_size=64, random_flip=True,
    max_train_steps=100_000, learning_rate=2e-4, lr_scheduler='constant_with_warmup', lr_warmup_steps=5000, adam_beta1=0.9,
    use_ema=True, ema_max_decay=0.9999, ddpm_num_inference_steps=100, save_images_epochs=20, save_model_epochs=20,
    checkpointing_steps=5000, checkpoints_total_limit=2, holdout=0.0)
