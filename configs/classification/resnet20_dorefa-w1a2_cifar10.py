# DoReFa-Net (arXiv 1606.06160), two bits for the activations.
_base_ = './resnet20_dorefa_cifar10.py'
model = dict(backbone=dict(method=dict(_delete_=True, type='dorefa', w_bits=1, a_bits=2)))
