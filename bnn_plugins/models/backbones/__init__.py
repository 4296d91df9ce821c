from .bnn_resnet import BNNResNet

__all__ = ['BNNResNet']
