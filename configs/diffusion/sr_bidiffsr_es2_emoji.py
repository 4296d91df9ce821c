# The same with expanding-and-shrinking: streams twice as wide, as many binary weights and operations.
_base_ = './sr_bidiffsr_emoji.py'
model = dict(expand=dict(tau=2))
train = dict(output_dir='work_dirs/sr_bidiffsr_es2_emoji')
