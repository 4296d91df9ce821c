# Handwritten digits of scikit-learn on small canvases, COCO format; `tools/make_digits.py work_dirs/digits` makes them in
# seconds. Another folder: --cfg-options {train,val,test}_dataloader.dataset.data_root=... (all three; the evaluator takes the
# ground truth from the dataset). The variable data_root alone is resolved before --cfg-options.
data_root = 'work_dirs/digits/'
metainfo = dict(
    classes=tuple('0123456789'),
    palette=[(230, 25, 75), (60, 180, 75), (255, 190, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 160, 160),
             (240, 50, 230), (128, 128, 0), (170, 110, 40)])
img_scale = (128, 128)

train_pipeline = [
    dict(type='bnn_plugins.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=img_scale, ratio_range=(0.85, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=img_scale),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='bnn_plugins.LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='bnn_plugins.CocoDataset',
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='bnn_plugins.CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = dict(val_dataloader, dataset=dict(
    val_dataloader['dataset'], ann_file='annotations/test.json', data_prefix=dict(img='test/')))

val_evaluator = dict(type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator
