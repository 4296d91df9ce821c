# CIFAR-10 as a parquet file of images (the schema of the Hugging Face hub). 5 000 of the 50 000 training images are held out
# for choosing; the test images are for one evaluation at the end. Flips and crops happen in the data preprocessor, batch-wise.
data_root = 'data/cifar10/'
image_size = 32
num_classes = 10
train_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='bnn_plugins.ParquetImages', path=data_root + 'train.parquet', part='train', held_out=5000))
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='bnn_plugins.ParquetImages', path=data_root + 'train.parquet', part='val', held_out=5000))
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='bnn_plugins.ParquetImages', path=data_root + 'test.parquet'))
val_evaluator = dict(type='bnn_plugins.Accuracy')
test_evaluator = val_evaluator
data_preprocessor = dict(
    mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], crop_padding=4, flip=True, channels_last=True)
