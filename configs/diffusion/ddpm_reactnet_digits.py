# Blocks are swapped as in detection configs: another type, Binary before the block names.
_base_ = './ddpm_float_digits.py'
model = dict(
    type='BinaryUNet2DModel', method='reactnet', down_block_types=('BinaryDownBlock2D', 'BinaryAttnDownBlock2D'),
    mid_block_type='BinaryUNetMidBlock2D', up_block_types=('BinaryAttnUpBlock2D', 'BinaryUpBlock2D'))
train = dict(output_dir='work_dirs/ddpm_reactnet_digits')
