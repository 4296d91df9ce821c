# Do bfloat16 gradients cost accuracy? ReCU-ResNet-20 on 20 000 images of CIFAR-10 at 32x32, 8 epochs, three seeds: here with
# float32 gradients; cpu_gradients_bfloat16 is the same with bfloat16 operands of the two products of the backward pass.
config = 'configs/classification/resnet20_recu_cifar10.py'
networks = {'resnet20': dict(type='bnn_plugins.BNNCifarResNet', depth=20)}
options = {
    'train_dataloader.batch_size': 128,
    'train_dataloader.drop_last': True,
    'train_dataloader.dataset.size': 20000,
    'log_level': 'WARNING',
    'custom_hooks': [dict(type='bnn_plugins.BinaryTrainingHook', gradients='float32'), dict(type='bnn_plugins.EpochSeedHook'),
                     dict(type='bnn_plugins.SyncStatisticsHook')],
}
peak_lr = 0.1
validations = 1
blocks = [dict(networks=['resnet20'], methods=['recu'], expansions=[None], epochs=[8], seeds=[0, 1, 2])]
