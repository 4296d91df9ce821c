# The 1 797 handwritten digits of scikit-learn, 8x8 pixels, enlarged to 16x16: nothing to download.
image_size = 16
image_channels = 1
num_classes = 10
train_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='bnn_plugins.DigitImages', upscale=2, part='train', held_out=237))
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='bnn_plugins.DigitImages', upscale=2, part='val', held_out=237))
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='bnn_plugins.DigitImages', upscale=2, test=True))
val_evaluator = dict(type='bnn_plugins.Accuracy')
test_evaluator = val_evaluator
data_preprocessor = dict(mean=[78.0], std=[96.0], crop_padding=1)
