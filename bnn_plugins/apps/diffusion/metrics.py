"""Quality of generated pictures without a download. Features come from a small network trained here, so nothing is an FID
but :func:`inception_distance`, for which the user gives the weights.

Distances depend on the number of pictures, so each is measured with as many real as generated ones, beside its floor: that
of real pictures from real pictures.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm.auto import tqdm

from ...integrations.diffusers.class_pipeline import classes_for
from .data import Images

CONFIDENT = 0.9


class FeatureNet(nn.Module):
    """A small classifier; :meth:`features` are what distances are measured in. uint8 ``[N, C, H, W]`` -> logits."""

    def __init__(self, channels: int, classes: int, width: int = 32):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)
        self.num_features = 64  # torchmetrics asks for it

    def features(self, images: Tensor) -> Tensor:
        return self.body(images.float() / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Features(nn.Module):
    """The feature extractor that torchmetrics takes: uint8 pictures -> ``[N, 64]``."""

    def __init__(self, net: FeatureNet):
        super().__init__()
        self.net, self.num_features = net, net.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.net.features(images)


def train_feature_net(data: Images, steps: int = 600, batch_size: int = 64, seed: int = 0) -> FeatureNet:
    """Trains on the labels, or, where there are none, on telling four rotations apart (Gidaris et al. 2018, arXiv 1803.07728).

    The same data, steps and seed give the same network: numbers of one table come from one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labelled = data.labels is not None
        net = FeatureNet(data.images.shape[1], int(data.labels.max()) + 1 if labelled else 4)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in tqdm(range(steps), desc='feature net', leave=False):
            index = torch.randint(len(data), (batch_size,))
            images = data.images[index]
            if labelled:
                target = data.labels[index]
            else:
                target = torch.randint(4, (batch_size,))
                images = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(images, target, strict=True)])
            optimizer.zero_grad()
            F.cross_entropy(net(images), target).backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def recognised(net: FeatureNet, images: Tensor) -> float:
    """Share of uint8 ``[N, C, H, W]`` that the classifier names with a probability over 0.9."""
    return float((net(images).softmax(1).amax(1) > CONFIDENT).float().mean())


def distances(net: FeatureNet, real: Tensor, generated: Tensor) -> dict[str, float]:
    """Distances of as many real as generated pictures, uint8 ``[N, C, H, W]``.

    Returns:
        ``fd_clf`` (Frechet distance), ``kid_clf`` (kernel distance, polynomial), ``c2st`` (accuracy of a classifier that tells
        both apart, cross-validated: 0.5 is indistinguishable).

    Raises:
        ValueError: for unequal numbers.
    """
    if len(real) != len(generated):
        raise ValueError(f'distances depend on the number of pictures: got {len(real)} real and {len(generated)} generated')
    extractor = Features(net)
    frechet = FrechetInceptionDistance(feature=extractor, normalize=False)
    kernel = KernelInceptionDistance(feature=extractor, subsets=20, subset_size=min(len(real), 200))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for metric in (frechet, kernel):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        kid = kernel.compute()[0]
    features = torch.cat([net.features(real), net.features(generated)]).numpy()
    names = np.repeat([0, 1], len(real))
    judge = make_pipeline(StandardScaler(), PCA(min(32, features.shape[1])), LogisticRegression(max_iter=500))
    return dict(fd_clf=float(frechet.compute()), kid_clf=float(kid),
                c2st=float(cross_val_score(judge, features, names, cv=5).mean()))


def inception_distance(weights: str, real: Tensor, generated: Tensor, batch_size: int = 64) -> float:
    """The real FID (Heusel et al. 2017, arXiv 1706.08500), of uint8 ``[N, C, H, W]``, grey or coloured.

    Args:
        weights: file with the weights of Inception v3 as torch-fidelity distributes them (``pt_inception-2015-12-05...pth``);
            nothing is downloaded.

    Raises:
        FileNotFoundError: when there is no such file. ModuleNotFoundError: without torch-fidelity, which has the network.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f'there are no Inception weights at {weights}: give the file of torch-fidelity, or leave the '
                                'FID out')
    try:
        metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=weights)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the FID needs the network of torch-fidelity: pip install torch-fidelity') from error
    for images, is_real in ((real, True), (generated, False)):
        for batch in images.split(batch_size):
            metric.update(batch.expand(-1, 3, -1, -1), real=is_real)
    return float(metric.compute())


@torch.no_grad()
def noise_prediction(unet: nn.Module, scheduler, data: Images, buckets: int = 10, seed: int = 0) -> dict[str, float]:
    """Error of the noise prediction on held-out pictures, by bucket of timesteps, and what it costs in bits.

    Returns:
        ``mse`` (mean over all timesteps), ``mse_0`` ... (by bucket, falling noise last), ``vlb`` (the weighted sum of the
        variational bound's terms for t > 1 in bits per dimension, Ho et al. 2020, eq. 8).
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.stack([data[i]['input'] for i in range(len(data))])
    condition = torch.stack([data[i]['condition'] for i in range(len(data))]) if data.conditions is not None else None
    classes = classes_for(unet, dict(label=data.labels))
    total = scheduler.config.num_train_timesteps
    alphas = scheduler.alphas_cumprod.double()
    errors, bits = [], []
    for bucket in range(buckets):
        t = torch.randint(bucket * total // buckets, (bucket + 1) * total // buckets, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, t)
        out = unet(noisy if condition is None else torch.cat([noisy, condition], 1), t, **classes).sample
        error = (as_noise(out, noisy, alphas[t].float(), scheduler.config.prediction_type) - noise).square().mean((1, 2, 3))
        before = torch.where(t > 0, alphas[(t - 1).clamp(min=0)], torch.ones((), dtype=torch.float64))
        beta = 1 - alphas[t] / before
        weight = beta / (2 * (1 - beta) * (1 - before).clamp(min=1e-12))  # posterior variance as in DDPM
        errors.append(float(error.mean()))
        bits.append(float((weight * error.double())[t > 1].mean()) / math.log(2) * total / buckets if (t > 1).any() else 0.0)
    return dict(mse=float(np.mean(errors)), vlb=float(np.sum(bits)), **{f'mse_{i}': e for i, e in enumerate(errors)})


def as_noise(out: Tensor, noisy: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """The predicted noise, whatever the UNet predicts. ``alpha``: cumulated, ``[N]``."""
    alpha = alpha.view(-1, 1, 1, 1)
    if prediction_type == 'epsilon':
        return out
    if prediction_type == 'sample':
        return (noisy - alpha.sqrt() * out) / (1 - alpha).sqrt()
    return alpha.sqrt() * out + (1 - alpha).sqrt() * noisy


def psnr(images: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over float ``[N, C, H, W]`` in [0, 1]."""
    return float(PeakSignalNoiseRatio(data_range=1.0, reduction='elementwise_mean', dim=(1, 2, 3))(images, target))


def restoration(images: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR and SSIM of float ``[N, 3, H, W]`` in [0, 1], of 11 pixels at least."""
    return dict(psnr=psnr(images, target), ssim=float(StructuralSimilarityIndexMeasure(data_range=1.0)(images, target)))
