# Binary LSTMs along rows and columns in the place of attention.
_base_ = './ddpm_reactnet_digits.py'
model = dict(
    down_block_types=('BinaryDownBlock2D', 'BinaryScanDownBlock2D'), mid_block_type='BinaryScanMidBlock2D',
    up_block_types=('BinaryScanUpBlock2D', 'BinaryUpBlock2D'))
train = dict(output_dir='work_dirs/ddpm_scan_digits')
