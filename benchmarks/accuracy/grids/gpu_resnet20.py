# The published numbers of ReCU-ResNet-20 and its expansions, with the full recipe; for a GPU. Resumes from checkpoints.
config = 'configs/classification/resnet20_recu_cifar10.py'
networks = dict(resnet20=dict(type='bnn_plugins.BNNCifarResNet', depth=20))
options = {
    'train_dataloader.dataset.part': 'all',  # as the papers train; the held-out images of the validation are among them
    'log_level': 'WARNING',
}
validations = 60
track_test = True
blocks = [
    dict(networks=['resnet20'], methods=['recu'], epochs=[600], seeds=[0, 1, 2],
         expansions=[None, dict(tau=2, style='rep'), dict(tau=2), dict(tau=4, style='rep'), dict(tau=4)]),
]
