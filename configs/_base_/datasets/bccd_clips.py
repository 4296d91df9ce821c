# Clips of BCCD, 8 frames of 160x160; `tools/make_clips.py data/bccd/BCCD work_dirs/bccd_clips` makes them in seconds.
data_root = 'work_dirs/bccd_clips/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'), palette=[(220, 20, 60), (72, 61, 209), (0, 128, 0)])
clip_length = 8
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'video_id', 'frame_id', 'instances')

# Frames of one clip must see the same augmentation: there is none.
train_pipeline = [
    dict(type='bnn_plugins.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='bnn_plugins.LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=2 * clip_length,
    num_workers=1,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='bnn_plugins.ClipBatchSampler', length=clip_length),
    dataset=dict(
        type='bnn_plugins.ClipDataset',
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='bnn_plugins.ClipDataset',
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
