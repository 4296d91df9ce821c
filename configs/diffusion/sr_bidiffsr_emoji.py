# BI-DiffSR (arXiv 2406.05723): channel-preserving sampling, shuffled fusion, thresholds by bucket of timesteps.
_base_ = './sr_float_emoji.py'
model = dict(
    type='BinaryUNet2DModel', method='reactnet', time_buckets=5,
    down_block_types=('BIDiffSRDownBlock2D', 'BIDiffSRDownBlock2D', 'BIDiffSRDownBlock2D'),
    mid_block_type='BinaryUNetMidBlock2D', up_block_types=('BIDiffSRUpBlock2D', 'BIDiffSRUpBlock2D', 'BIDiffSRUpBlock2D'))
train = dict(output_dir='work_dirs/sr_bidiffsr_emoji')
