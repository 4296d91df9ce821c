"""The convolutions of ResNet-18/34/50 and ReActNet-A, written out from their papers, at any image size."""

from typing import NamedTuple

WIDTHS = (64, 128, 256, 512)
RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks per stage
REACTNET = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)  # outputs of the stem and of the 13 blocks, arXiv 2003.03488
REACTNET_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


class Convolution(NamedTuple):
    channels: int
    outputs: int
    kernel: int
    stride: int
    size: int  # of the input image, height and width

    @property
    def out_size(self) -> int:
        return -(-self.size // self.stride)

    def operations(self, batch: int) -> int:
        """Multiplications and additions."""
        return 2 * batch * self.out_size**2 * self.outputs * self.kernel**2 * self.channels

    def bytes(self, batch: int, bits_in: int, bits_weight: int, bits_out: int, bits_shortcut: int = 0) -> int:
        """What has to be read and written once."""
        outputs = batch * self.out_size**2 * self.outputs
        return (batch * self.size**2 * self.channels * bits_in + self.outputs * self.kernel**2 * self.channels * bits_weight
                + outputs * (bits_out + bits_shortcut)) // 8


def resnet(depth: int, image: int) -> list[Convolution]:
    """Those that a binary network binarizes: all but the stem and the shortcuts."""
    layers, channels, size = [], 64, -(-image // 4)
    for stage, (width, blocks) in enumerate(zip(WIDTHS, RESNETS[depth], strict=True)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if depth == 50:
                layers += [Convolution(channels, width, 1, 1, size), Convolution(width, width, 3, stride, size)]
                size = -(-size // stride)
                layers.append(Convolution(width, 4 * width, 1, 1, size))
                channels = 4 * width
            else:
                layers.append(Convolution(channels, width, 3, stride, size))
                size = -(-size // stride)
                layers.append(Convolution(width, width, 3, 1, size))
                channels = width
    return layers


def reactnet(image: int) -> list[Convolution]:
    """A block is a 3x3 convolution and, of the same width, one 1x1 convolution or two whose results are concatenated."""
    layers, size = [], -(-image // 2)
    for width, outputs, stride in zip(REACTNET, REACTNET[1:], REACTNET_STRIDES, strict=False):
        layers.append(Convolution(width, width, 3, stride, size))
        size = -(-size // stride)
        layers += [Convolution(width, width, 1, 1, size)] * (outputs // width)
    return layers


def networks(image: int) -> dict[str, list[Convolution]]:
    return {f'ResNet-{depth}': resnet(depth, image) for depth in RESNETS} | {'ReActNet-A': reactnet(image)}
