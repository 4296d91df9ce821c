from .bnn_fpn import BNNFPN

__all__ = ['BNNFPN']
