# The published numbers of ReCU-ResNet-20 and its expansions, with the full recipe; for a GPU. Resumes from checkpoints.
config = 'configs/classification/resnet20_recu_cifar10.py'
networks = dict(resnet20=dict(type='bnn_plugins.BNNCifarResNet', depth=20))
options = {
    'train_dataloader.dataset.part': 'all',
    # Nothing is held out of the training, so the halves of the test images choose for each other.
    'val_dataloader.dataset': dict(type='bnn_plugins.ParquetImages', path='data/cifar10/test.parquet', _delete_=True),
    'val_evaluator.folds': 2,
    'default_hooks.checkpoint.save_best': None,
    'log_level': 'WARNING',
}
validations = 60
blocks = [
    dict(networks=['resnet20'], methods=['recu'], epochs=[600], seeds=[0, 1, 2],
         expansions=[None, dict(tau=2, style='rep'), dict(tau=2), dict(tau=4, style='rep'), dict(tau=4)]),
]
