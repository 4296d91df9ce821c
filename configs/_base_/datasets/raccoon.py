# Raccoons: 200 photographs of many sizes, one class, mostly one large animal in natural surroundings, in Pascal VOC layout
# (https://github.com/datitran/raccoon_dataset, MIT; split 140/20/40). Set data_root to the folder that holds JPEGImages.
_base_ = './bccd.py'
data_root = 'data/raccoon/RACCOON/'
metainfo = dict(classes=('raccoon',), palette=[(220, 20, 60)])
img_scale = (160, 160)

train_pipeline = [
    dict(type='bnn_plugins.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=img_scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=img_scale[::-1]),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion', brightness_delta=16, contrast_range=(0.8, 1.2), saturation_range=(0.8, 1.2),
         hue_delta=8),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='bnn_plugins.LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
