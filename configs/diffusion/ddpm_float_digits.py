# The float twin: the same blocks, widths and budget without a binary layer.
model = dict(
    type='UNet2DModel', sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64),
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'), norm_num_groups=8)
noise_scheduler = dict(type='DDPMScheduler', beta_schedule='squaredcos_cap_v2')
dataset = dict(type='digits')
pipeline = dict(type='DDPMPipeline')  # noise in every step corrects what the steps before got wrong
train = dict(
    output_dir='work_dirs/ddpm_float_digits', resolution=8, train_batch_size=64, eval_batch_size=64, num_epochs=120,
    learning_rate=1e-3, lr_warmup_steps=100, use_ema=True, ema_max_decay=0.999, ddpm_num_inference_steps=100,
    save_images_epochs=40, save_model_epochs=60, checkpointing_steps=1000, checkpoints_total_limit=2, holdout=0.2)
