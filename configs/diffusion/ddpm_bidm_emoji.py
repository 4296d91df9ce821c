_base_ = './ddpm_float_emoji.py'
model = dict(
    type='BinaryUNet2DModel', method='bidm',
    down_block_types=('BinaryDownBlock2D', 'BinaryDownBlock2D', 'BinaryAttnDownBlock2D'),
    mid_block_type='BinaryUNetMidBlock2D', up_block_types=('BinaryAttnUpBlock2D', 'BinaryUpBlock2D', 'BinaryUpBlock2D'))
train = dict(output_dir='work_dirs/ddpm_bidm_emoji')
