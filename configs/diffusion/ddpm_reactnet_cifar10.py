# Blocks are swapped; what stays real is as in the papers: the first and the last layer, embeddings, scores of the attention.
_base_ = './ddpm_float_cifar10.py'
model = dict(
    type='BinaryUNet2DModel', method='reactnet',
    down_block_types=('BinaryDownBlock2D', 'BinaryAttnDownBlock2D', 'BinaryDownBlock2D', 'BinaryDownBlock2D'),
    mid_block_type='BinaryUNetMidBlock2D',
    up_block_types=('BinaryUpBlock2D', 'BinaryUpBlock2D', 'BinaryAttnUpBlock2D', 'BinaryUpBlock2D'))
train = dict(output_dir='work_dirs/ddpm_reactnet_cifar10')
