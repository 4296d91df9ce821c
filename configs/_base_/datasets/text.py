# One text file, character by character; the last tenth is held out. For example
# https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt as data/text/tinyshakespeare.txt.
path = 'data/text/tinyshakespeare.txt'
vocabulary = 65
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='bnn_plugins.TextWindows', path=path, part='train', length=100))
# Every held-out character counts once, behind at least 100 others.
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='bnn_plugins.TextWindows', path=path, part='val', length=500, stride=400))
test_dataloader = val_dataloader
val_evaluator = dict(type='bnn_plugins.BitsPerCharacter')
test_evaluator = val_evaluator
