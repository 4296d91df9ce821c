# ImageNet in folders: data/imagenet/train/<class>/*.JPEG and data/imagenet/val/<class>/*.JPEG.
data_root = 'data/imagenet/'
image_size = 224
num_classes = 1000
train_dataloader = dict(
    batch_size=256,
    num_workers=16,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='bnn_plugins.ImageFolder', path=data_root + 'train', image_size=image_size, train=True))
val_dataloader = dict(
    batch_size=256,
    num_workers=16,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='bnn_plugins.ImageFolder', path=data_root + 'val', image_size=image_size))
test_dataloader = val_dataloader
val_evaluator = dict(type='bnn_plugins.Accuracy')
test_evaluator = val_evaluator
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], flip=True, channels_last=True)
