# Which methods are better after equal numbers of steps? A reduced network (ResNet-8 of width 16), 20 000 images of CIFAR-10
# at 16x16, Adam, one cycle; minutes of one core per run. Once in the network of Bi-Real Net, with a shortcut around each
# convolution, everything but the method the same; and the methods that were published before it in the network of their time,
# with a shortcut around two.
config = 'configs/classification/resnet20_reactnet_cifar10.py'
resnet8 = dict(type='bnn_plugins.BNNCifarResNet', depth=8, base_channels=16)
networks = {'resnet8': resnet8, 'resnet8-single': dict(**resnet8, skips='single')}
options = {
    'train_dataloader.batch_size': 128,
    'train_dataloader.drop_last': True,
    'train_dataloader.dataset.size': 20000,
    'train_dataloader.dataset.shrink': 2,
    'val_dataloader.dataset.shrink': 2,
    'test_dataloader.dataset.shrink': 2,
    'model.data_preprocessor.crop_padding': 2,
    'log_level': 'WARNING',
}
peak_lr = 5e-3
validations = 4
epochs = [24]
common = dict(expansions=[None], epochs=epochs)
blocks = [
    dict(networks=['resnet8'], seeds=[0], **common,
         methods=['binarynet', 'reactnet', 'xnor', 'bireal', 'recu', 'irnet', 'xnorpp', 'dorefa']),
    dict(networks=['resnet8-single'], seeds=[0], methods=['binarynet', 'xnor', 'dorefa'], **common),
    dict(networks=['resnet8-single'], seeds=[1, 2], methods=['binarynet'], **common),
    dict(networks=['resnet8'], seeds=[1, 2], methods=['reactnet'], **common),
]
