# What does tau buy, and when? The gain over the length of the training: 2 000 images of CIFAR-10 at 8x8, ResNet-8 of width
# 16, three methods; the base network, tau=2, tau=2 with copies that start apart, and the control: the base network with two
# thresholds in front of each sign.
config = 'configs/classification/resnet20_reactnet_cifar10.py'
networks = dict(resnet8=dict(type='bnn_plugins.BNNCifarResNet', depth=8, base_channels=16))
options = {
    'train_dataloader.batch_size': 128,
    'train_dataloader.drop_last': True,
    'train_dataloader.dataset.size': 2000,
    'train_dataloader.dataset.shrink': 4,
    'val_dataloader.dataset.shrink': 4,
    'test_dataloader.dataset.shrink': 4,
    'model.data_preprocessor.crop_padding': 1,
    'log_level': 'WARNING',
}
peak_lr = 5e-3
validations = 5
variants = [None, dict(tau=2), dict(style='thresholds', tau=2)]
methods = ['reactnet', 'recu', 'bireal']
blocks = [
    dict(networks=['resnet8'], methods=methods, expansions=variants, epochs=[10, 40], seeds=[0, 1]),
    dict(networks=['resnet8'], methods=methods, expansions=variants, epochs=[160], seeds=[0]),
    dict(networks=['resnet8'], methods=['reactnet'], expansions=[dict(tau=2, spread=0.5)], epochs=[10, 40, 160], seeds=[0]),
]
