# Which methods are better after equal numbers of steps? A reduced network (ResNet-8 of width 16 with Bi-Real shortcuts),
# 20 000 images of CIFAR-10 at 16x16, Adam, one cycle; everything but the method is the same. Minutes of one core per run.
config = 'configs/classification/resnet20_reactnet_cifar10.py'
networks = dict(resnet8=dict(type='bnn_plugins.BNNCifarResNet', depth=8, base_channels=16))
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
epochs = [8]
blocks = [
    dict(networks=['resnet8'], expansions=[None], epochs=epochs, seeds=[0],
         methods=['binarynet', 'reactnet', 'xnor', 'bireal', 'recu', 'irnet', 'xnorpp', 'dorefa']),
    dict(networks=['resnet8'], expansions=[None], epochs=epochs, seeds=[1, 2], methods=['binarynet', 'reactnet']),
]
