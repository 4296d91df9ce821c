# 4x super-resolution of 32-pixel emoji: the UNet sees the enlarged picture and diffuses what is missing. Few steps that begin
# at the last timestep ('trailing'), where the picture is nothing but noise, as in the first step of sampling.
model = dict(
    type='UNet2DModel', in_channels=6, out_channels=3, layers_per_block=1, block_out_channels=(32, 64, 64),
    down_block_types=('DownBlock2D', 'DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'UpBlock2D', 'UpBlock2D'),
    add_attention=False, norm_num_groups=8)
dataset = dict(type='sr_folders', low='data/emoji/png/32', high='data/emoji/png/128')
pipeline = dict(type='SuperResolutionPipeline', residual=True)
noise_scheduler = dict(type='DDIMScheduler', clip_sample=False, timestep_spacing='trailing')
train = dict(
    output_dir='work_dirs/sr_float_emoji', resolution=128, crop=32, train_batch_size=8, eval_batch_size=16,
    max_train_steps=1000, num_epochs=1000, learning_rate=1e-3, lr_warmup_steps=50, use_ema=True, ema_max_decay=0.999,
    prediction_type='sample', residual=True, random_flip=True, ddpm_num_inference_steps=5, save_images_epochs=10,
    save_model_epochs=20, checkpointing_steps=500, checkpoints_total_limit=1, holdout=0.1)
