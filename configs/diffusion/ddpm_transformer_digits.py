# Attention layers become blocks of a binary Transformer, in which scores and sums of values are binary, too.
_base_ = './ddpm_reactnet_digits.py'
model = dict(
    down_block_types=('BinaryDownBlock2D', 'BinaryTransformerDownBlock2D'), mid_block_type='BinaryTransformerMidBlock2D',
    up_block_types=('BinaryTransformerUpBlock2D', 'BinaryUpBlock2D'))
train = dict(output_dir='work_dirs/ddpm_transformer_digits')
