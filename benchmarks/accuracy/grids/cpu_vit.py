# What does tau buy a binary Transformer after equal numbers of steps? The small pyramid of bnnvit_binaryvit_cifar10.py, 20 000
# images of CIFAR-10, Adam, one cycle of 8 epochs; at most 10 minutes of one core per run.
config = 'configs/classification/bnnvit_binaryvit_cifar10.py'
networks = dict(vit=dict(
    type='bnn_plugins.BNNViT', probability=dict(type='elastic', initial=0.125), image_size=32, base_channels=32,
    depths=(1, 2, 2), heads=(1, 2, 4), ratios=(4, 4, 4), pools=(2, 1, 1), windows=(0, 0, 0), out_indices=(2,)))
options = {
    'train_dataloader.batch_size': 128,
    'train_dataloader.drop_last': True,
    'train_dataloader.dataset.size': 20000,
    'log_level': 'WARNING',
}
peak_lr = 3e-3
validations = 4
blocks = [dict(networks=['vit'], methods=['binaryvit'], expansions=[None, dict(tau=2)], epochs=[8], seeds=[0])]
