# The headline of RepBNN and ES-BNN: ReCU-ResNet-20 on CIFAR-10, all 50 000 images at 32x32, with the recipe of ReCU's released
# code (batch 256, SGD 0.1 with momentum 0.9, decay 5e-4 of everything, warm-up of 5 epochs, cosine; crops, flips). All but the
# method and the expansion is the same: the norm before the classifier, the shortcut around each convolution. The float twin is
# the ResNet-20 of He et al., whose numbers the papers print: a shortcut around two convolutions, every other pixel. 200 epochs
# for all, then the papers' 600 for ReCU and Rep-ReCU.
config = 'configs/classification/resnet20_recu_cifar10.py'
networks = {'resnet20': dict(type='bnn_plugins.BNNCifarResNet', depth=20),
            'resnet20-single': dict(type='bnn_plugins.BNNCifarResNet', depth=20, skips='single', shortcut='slice')}
options = {
    'train_dataloader.dataset.part': 'all',
    # Nothing is held out of the training, so the halves of the test images choose for each other.
    'val_dataloader.dataset': dict(type='bnn_plugins.ParquetImages', path='data/cifar10/test.parquet', _delete_=True),
    'val_evaluator.folds': 2,
    'default_hooks.checkpoint.save_best': None,
    'log_level': 'WARNING',
}
validations = 100
es, rep, control = dict(tau=2), dict(tau=2, style='rep'), dict(style='thresholds', tau=2)


def block(method, expand, epochs=200, network='resnet20'):
    return dict(networks=[network], methods=[method], expansions=[expand], epochs=[epochs], seeds=[0])


# The most telling first.
blocks = [
    block('recu', None), block('recu', rep), block(None, None, network='resnet20-single'), block('recu', es),
    block('recu', control), block('reactnet', None), block('reactnet', es), block('bireal', None), block('bireal', es),
    block('recu', None, 600), block('recu', rep, 600),
]
