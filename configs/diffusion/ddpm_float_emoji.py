# Unconditional diffusion of 32-pixel emoji.
model = dict(
    type='UNet2DModel', in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64, 64),
    down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D'),
    up_block_types=('AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'), norm_num_groups=8)
noise_scheduler = dict(type='DDPMScheduler', beta_schedule='squaredcos_cap_v2')
dataset = dict(type='imagefolder', path='data/emoji/png/32')
pipeline = dict(type='DDIMPipeline')
train = dict(
    output_dir='work_dirs/ddpm_float_emoji', resolution=32, train_batch_size=16, eval_batch_size=64, max_train_steps=1500,
    num_epochs=1000, learning_rate=1e-3, lr_warmup_steps=100, prediction_type='v_prediction', use_ema=True,
    ema_max_decay=0.999, random_flip=True, ddpm_num_inference_steps=50, save_images_epochs=10, save_model_epochs=20,
    checkpointing_steps=1000, checkpoints_total_limit=2, holdout=0.1)
