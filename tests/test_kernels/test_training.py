"""Training operators against autograd through plain float64 operators, on every instruction set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bnn_kernels.cpu.engine import TILES, available_isas, set_isa
from bnn_kernels.geometry import Conv2dGeometry, linear_geometry
from bnn_kernels.training import Latent, Norm, SignProduct, Surrogate, sign_conv2d, sign_conv2d_norm, sign_linear, supported

pytestmark = pytest.mark.sanitize
SURROGATES = {
    'ste': Surrogate(),
    'clipped': Surrogate(limit=1.0),
    'box': Surrogate(peak=0.5, limit=0.75),
    'approx': Surrogate(2.0, 1.0),
    'triangle': Surrogate(1.5, 0.4, 2.0),
    'tanh': lambda x: 1 - torch.tanh(x).square(),
}


TRIANGLES = [name for name, surrogate in SURROGATES.items() if isinstance(surrogate, Surrogate)]


def surrogate_of(surrogate, x: Tensor) -> Tensor:
    if not isinstance(surrogate, Surrogate):
        return surrogate(x)
    factor = surrogate.peak * (1 - surrogate.steepness * x.abs()).clamp(min=0)
    return torch.where(x.abs() <= surrogate.limit, factor, 0.0)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, surrogate):
        ctx.save_for_backward(surrogate_of(surrogate, x))
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


class Unscaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(scale)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.saved_tensors[0].clamp(min=1e-30).view(-1, 1, 1, 1), None


def signs_of(weight: Tensor, latent: Latent | None, scale: Tensor | None = None) -> Tensor:
    if latent is None:
        return weight
    signs = Sign.apply(weight, latent.surrogate)
    return signs if latent.through_scale or scale is None else Unscaled.apply(signs, scale.detach())


def image(vector: Tensor | None) -> Tensor | float:
    return 0.0 if vector is None else vector.view(-1, 1, 1)


def sums_of(x: Tensor, signs: Tensor, product: SignProduct, shift: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """As the docstrings of the operators say, operation by operation."""
    x, signs = x + image(shift), signs_of(signs, product.latent, scale)
    if product.standardize:
        x = x / (x.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    _, _, _, stride, padding, dilation, groups, pad_value, *_ = product.geometry
    levels = F.pad(Sign.apply(x, product.surrogate), (padding[1], padding[1], padding[0], padding[0]), value=pad_value)
    return F.conv2d(levels, signs, None, stride, 0, dilation, groups)


def block_of(x, signs, product, norm, *, shift=None, scale=None, weight=None, bias=None, running_mean=None, running_var=None,
             shortcut=None, gamma=None, slope=None, zeta=None):
    y = sums_of(x, signs, product, shift, scale)
    y = y if scale is None else y * image(scale)
    y = y.repeat(1, len(running_mean) // len(signs), 1, 1)
    y = F.batch_norm(y, running_mean, running_var, weight, bias, not norm.frozen, norm.momentum, norm.eps)
    y = y if shortcut is None else y + shortcut
    if norm.act == 'prelu':
        y = y - image(gamma)
        y = torch.where(y > 0 if gamma is None else y >= 0, y, image(slope) * y) + image(zeta)
    return {'relu': F.relu, 'hardtanh': F.hardtanh}.get(norm.act, lambda v: v)(y)


def leaves(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: value if value is None else value.detach().clone().requires_grad_(not name.startswith('running'))
            for name, value in tensors.items()}


def assert_close(one: Tensor, other: Tensor, name: str, size: float = 0.0) -> None:
    """Equal but for the rounding of float32 sums; `size` of what was summed, where it cancels."""
    assert torch.allclose(one.double(), other, rtol=0, atol=2e-5 * max(other.abs().amax().item(), size)), name


@st.composite
def products(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 35)), groups * draw(st.integers(1, 35))
    kernel, stride, padding = (draw(st.tuples(st.integers(low, low + n), st.integers(low, low + n)))
                               for low, n in ((1, 2), (1, 1), (0, 2)))
    dilation = draw(st.sampled_from([1, 1, 2]))
    if draw(st.booleans()):  # the shape stays, so that the input can be its own shortcut
        outputs, kernel, stride, padding = channels, (3, 3), 1, dilation
    pad_value = draw(st.sampled_from([0, 0, -1, 1]))
    geometry = Conv2dGeometry(channels, outputs, kernel, stride, padding, dilation, groups, pad_value)
    surrogate, triangle = (SURROGATES[draw(st.sampled_from(sorted(kinds)))] for kinds in (SURROGATES, TRIANGLES))
    latent = draw(st.sampled_from([None, Latent(triangle), Latent(triangle, through_scale=False)]))
    return SignProduct(geometry, surrogate, draw(st.booleans()), latent=latent)


def weights(generator: torch.Generator, product: SignProduct) -> Tensor:
    """Signs, or latents, in one of two memory formats."""
    geometry = product.geometry
    x = numbers(generator, geometry.outputs, geometry.channels // geometry.groups, *geometry.kernel)
    x = x if product.latent else torch.where(x >= 0, 1.0, -1.0)
    return x.contiguous(memory_format=torch.channels_last) if geometry.channels % 2 else x


def numbers(generator: torch.Generator, *shape: int) -> Tensor:
    """With exact zeros, the edges of the surrogates, and values far out."""
    x = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.1, x.sign() * 1.0, x) * (x.abs() > 0.05)


@settings(max_examples=60, deadline=None)
@given(product=products(), data=st.data(), isa=st.sampled_from(available_isas()))
def test_blocks(product, data, isa):
    geometry, generator = product.geometry, torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    batch, height, width = data.draw(st.tuples(st.integers(2, 3), st.integers(5, 9), st.integers(5, 9)))
    copies = data.draw(st.sampled_from([1, 1, 2, 4]))
    act, gamma = data.draw(st.sampled_from(['identity', 'relu', 'hardtanh', 'prelu'])), data.draw(st.booleans())
    outputs, size = geometry.outputs * copies, geometry.size((height, width))
    norm = Norm(act, 1e-3, 0.3, frozen=data.draw(st.booleans()))
    own = (outputs, *size) == (geometry.channels, height, width) and data.draw(st.booleans())
    use = {name: data.draw(st.booleans()) for name in ('shift', 'scale', 'affine', 'shortcut')}

    def vector(given=True, of=outputs):
        return numbers(generator, of) if given else None

    x = numbers(generator, batch, geometry.channels, height, width)
    product = product._replace(standardize=product.standardize and not use['shift'])
    scale = vector(use['scale'], geometry.outputs)
    scale = scale.abs() if use['scale'] and product.latent else scale  # a magnitude of latents
    tensors = dict(
        x=x, signs=weights(generator, product), shift=vector(use['shift'], geometry.channels),
        scale=scale, weight=vector(use['affine']), bias=vector(use['affine']),
        running_mean=vector(), running_var=vector().square() + 0.1,
        shortcut=numbers(generator, batch, outputs, *size) if use['shortcut'] and not own else None,
        gamma=vector(act == 'prelu' and gamma), slope=vector(act == 'prelu'), zeta=vector(act == 'prelu' and gamma))
    grad = torch.randn((batch, outputs, *size), generator=generator)
    given_ = leaves(tensors)
    expected = leaves({name: value if value is None else value.double() for name, value in tensors.items()})
    runs = []
    for function, arguments in ((sign_conv2d_norm, given_), (block_of, expected)):
        others = {name: value for name, value in arguments.items() if name not in ('x', 'signs')}
        if own:
            others['shortcut'] = arguments['x']
        with set_isa(isa):
            y = function(arguments['x'], arguments['signs'], product, norm, **others)
            y.backward(grad.to(y.dtype))
        runs.append(y)
    assert runs[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(runs[0], runs[1], 'y', 1.0)
    for name, value in given_.items():
        if value is not None:
            one, other = (value, expected[name]) if name.startswith('running') else (value.grad, expected[name].grad)
            # Behind a norm the gradients of a channel add up to nothing.
            assert_close(one, other, name, grad.abs().sum().item() / 50 if name == 'shift' else 1.0)


@pytest.mark.parametrize('own', [True, False])
@pytest.mark.parametrize('act', ['relu', 'hardtanh'])
def test_gradients_of_a_shortcut_stop_where_the_act_is_flat(act, own):
    product = SignProduct(Conv2dGeometry(20, 20, 3, padding=1), SURROGATES['clipped'])
    tensors = dict(x=torch.randn(2, 20, 6, 6), running_mean=torch.zeros(20), running_var=torch.ones(20))
    tensors |= {} if own else dict(shortcut=torch.randn(2, 20, 6, 6))
    signs, grad, found = torch.randn(20, 20, 3, 3).sign(), torch.randn(2, 20, 6, 6), []
    for function, dtype in ((sign_conv2d_norm, torch.float32), (block_of, torch.float64)):
        arguments = leaves({name: value.to(dtype) for name, value in tensors.items()})
        x, shortcut = arguments.pop('x'), arguments.pop('shortcut', None)
        y = function(x, signs.to(dtype), product, Norm(act), shortcut=x if own else shortcut, **arguments)
        found.append(torch.autograd.grad(y, [x] if own else [x, shortcut], grad.to(dtype)))
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 'gradient', 1.0)


@pytest.mark.parametrize('surrogate', TRIANGLES)
@pytest.mark.parametrize('through_scale', [True, False])
def test_latents_are_signs_with_a_gradient_of_their_own(surrogate, through_scale):
    latent, scale = Latent(SURROGATES[surrogate], through_scale), torch.rand(24) + 0.1
    product = SignProduct(Conv2dGeometry(20, 24, 3, padding=1), SURROGATES['clipped'])
    x, w, grad, found = torch.randn(2, 20, 6, 6), torch.randn(24, 20, 3, 3, requires_grad=True), torch.randn(2, 24, 6, 6), []
    for weight, kind in ((w, product._replace(latent=latent)), (signs_of(w, latent, scale), product)):
        y = sign_conv2d_norm(x, weight, kind, Norm(), scale=scale)
        found.append((y, *torch.autograd.grad(y, w, grad)))
    (one, gradient), (other, expected) = found
    assert torch.equal(one, other)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(product=products(), seed=st.integers(0, 2**31), shifted=st.booleans(), isa=st.sampled_from(available_isas()))
def test_convolutions(product, seed, shifted, isa):
    generator, geometry = torch.Generator().manual_seed(seed), product.geometry
    product = product._replace(standardize=product.standardize and not shifted)
    tensors = dict(x=numbers(generator, 2, geometry.channels, 7, 6), signs=weights(generator, product),
                   shift=numbers(generator, geometry.channels) if shifted else None)
    given_ = leaves(tensors)
    expected = leaves({name: value if value is None else value.double() for name, value in tensors.items()})
    with set_isa(isa):
        y, other = sign_conv2d(given_['x'], given_['signs'], product, given_['shift']), sums_of(product=product, **expected)
        assert torch.equal(y.double(), other)
        grad = torch.randn(y.shape, generator=generator)
        y.backward(grad)
    other.backward(grad.double())
    for name, value in given_.items():
        if value is not None:
            assert_close(value.grad, expected[name].grad, name, 1.0)


@pytest.mark.parametrize('gradients', ['float32', 'bfloat16'])
@pytest.mark.parametrize('lead', [(5,), (3, 7), (2, 3, 4)])
def test_linear_layers(lead, gradients):
    x, signs = torch.randn(*lead, 45, requires_grad=True), torch.randn(33, 45).sign().requires_grad_()
    shift = torch.randn(45, requires_grad=True)
    product = SignProduct(linear_geometry(45, 33), SURROGATES['approx'], gradients=gradients)
    y = sign_linear(x, signs, product, shift)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, signs, shift), grad)
    other = F.linear(Sign.apply(x + shift, SURROGATES['approx']), signs)
    assert torch.equal(y, other)
    for one, two in zip(found, torch.autograd.grad(other, (x, signs, shift), grad), strict=True):
        bound = 1e-5 if gradients == 'float32' else 1e-2  # two numbers of 8 bits in each product, many in each sum
        assert (one - two).abs().amax() <= bound * two.abs().amax()


def test_sums_over_rows_do_not_depend_on_threads():
    """Nor does a second run differ: resumed trainings must repeat themselves."""
    x, signs = torch.randn(8, 20, 40, 41), torch.randn(20, 20, 3, 3).sign()
    product, weight = SignProduct(Conv2dGeometry(20, 20, 3, padding=1), Surrogate(2.0, 1.0)), torch.ones(20)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        one = leaves(dict(x=x, weight=weight, shift=torch.zeros(20), running=torch.zeros(20)))
        y = sign_conv2d_norm(one['x'], signs, product, Norm('hardtanh'), shift=one['shift'], weight=one['weight'],
                             shortcut=one['x'])
        torch.set_num_threads(1)  # the products of the backward pass are torch's
        y.square().sum().backward()
        torch.set_num_threads(before)
        results.append((y, one['x'].grad, one['weight'].grad, one['shift'].grad))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_only_the_first_derivative():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    y = sign_conv2d(x, torch.ones(4, 4, 3, 3), SignProduct(Conv2dGeometry(4, 4, 3), SURROGATES['approx']))
    gradient, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@pytest.mark.parametrize(('surrogate', 'kept'), [(Surrogate(), 0), (Surrogate(limit=1.0), 4), (Surrogate(2.0, 1.0), 128)])
def test_what_is_kept_of_an_activation(surrogate, kept):
    """Bytes per pixel of 32 channels, besides one word of signs: nothing, a bit, or the input itself."""
    x, saved = torch.randn(2, 32, 16, 16, requires_grad=True).to(memory_format=torch.channels_last), {}
    pack = lambda tensor: saved.setdefault(tensor.data_ptr(), tensor)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sign_conv2d_norm(x, torch.ones(32, 32, 3, 3), SignProduct(Conv2dGeometry(32, 32, 3, padding=1), surrogate), Norm(),
                         shortcut=x)
    weights = [tensor for tensor in saved.values() if tensor.shape == (32, 32, 3, 3) or tensor.dtype == torch.uint8]
    assert sum(tensor.nbytes for tensor in saved.values() if tensor.numel() >= 512) == 512 * (4 + kept) + sum(
        tensor.nbytes for tensor in weights)


def test_refusals():
    assert supported(torch.ones(1)) == (True, '')
    assert supported(torch.ones(1).double()) == (False, 'training operators take float32, got torch.float64')
    assert not supported(torch.ones(1, device='meta'))[0]
    assert math.isinf(Surrogate().limit)


@pytest.mark.parametrize('isa', [isa for isa in available_isas() if isa in TILES])
def test_tiles_keep_every_bit_of_a_gradient(isa):
    """Products with signs are exact; mutations: two pieces of bfloat16 instead of three, a gradient that is rounded."""
    torch.manual_seed(0)
    grad = torch.zeros(1, 1, 9, 5)
    grad[..., ::3, ::3] = torch.randn(3, 2)
    x, signs = torch.ones(1, 1, 10, 6, requires_grad=True), torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]], requires_grad=True)
    with set_isa(isa):
        sign_conv2d(x, signs, SignProduct(Conv2dGeometry(1, 1, 2))).backward(grad)
    expected = sum(F.pad(grad, (right, 1 - right, down, 1 - down)) * signs[0, 0, down, right]
                   for down in (0, 1) for right in (0, 1))
    assert torch.equal(x.grad, expected.detach())

    single = torch.zeros_like(grad)
    single[..., 4, 2] = grad[..., 3, 3]
    signs.grad = None
    with set_isa(isa):
        sign_conv2d(x.detach(), signs, SignProduct(Conv2dGeometry(1, 1, 2))).backward(single)
    assert torch.equal(signs.grad, single[..., 4, 2].expand_as(signs))


@pytest.mark.parametrize('isa', [isa for isa in available_isas() if isa in TILES])
@pytest.mark.parametrize('shape', [(5, 17, 24, 24), (9, 33, 16, 15), (40, 3, 2, 3)])
@pytest.mark.parametrize('samples', [None, 1])
def test_images_in_several_units_and_threads(isa, shape, samples):
    """The products of tiles against those of torch; mutations: a unit that begins at another's images, deviations of images
    where the whole input is one sample."""
    generator, threads, found = torch.Generator().manual_seed(0), torch.get_num_threads(), []
    geometry = Conv2dGeometry(shape[1], 20, 3, (2, 1), 1, pad_value=-1)
    x, signs = torch.randn(shape, generator=generator), torch.randn(20, shape[1], 3, 3, generator=generator).sign()
    shift = None if samples else torch.randn(shape[1], generator=generator)
    grad = torch.randn(shape[0], 20, *geometry.size(shape[2:]), generator=generator)
    product = SignProduct(geometry, Surrogate(2.0, 1.0), standardize=samples is not None, samples=samples)
    try:
        for name, count in (isa, 1), (isa, 2), ('portable', 1):
            torch.set_num_threads(count)
            inputs = [None if v is None else v.clone().requires_grad_() for v in (x, signs, shift)]
            with set_isa(name):
                sign_conv2d(inputs[0], inputs[1], product, inputs[2]).backward(grad)
            found.append([v.grad for v in inputs if v is not None])
    finally:
        torch.set_num_threads(threads)
    for one, two, other in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert torch.equal(found[0][0], found[1][0]), 'gradients of images do not depend on threads'
