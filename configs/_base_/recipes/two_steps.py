# Binary activations first, with real weights, then everything binary: each step takes half of 40 epochs.
half = dict(
    train_cfg=dict(max_epochs=20, val_interval=20),
    param_scheduler={'1': dict(T_max=20)})
real_weights = dict(method=dict(binarize_weights=False))
steps = [dict(half, model=dict(backbone=real_weights, neck=real_weights)), half]
