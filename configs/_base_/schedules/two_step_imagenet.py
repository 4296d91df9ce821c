# ReActNet's and AdamBNN's recipe: one command trains binary activations with real weights, then everything binary.
_base_ = './adam_linear_imagenet.py'
steps = [
    dict(model=dict(backbone=dict(method=dict(binarize_weights=False))),
         optim_wrapper=dict(optimizer=dict(weight_decay=5e-6), paramwise_cfg=dict(latent_decay_mult=1.0))),
    dict(),
]
