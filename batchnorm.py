"""Batch normalisation of a network that does not begin at random: frozen, or fitted to the statistics of the crops.

Not here: its fold into the convolutions, for upscaling (inference.py).
"""

import math

import torch


def norms_of(network):
    """The layers of batch normalisation, synchronised ones too."""
    return [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def freeze_bn(network, frozen=True):
    """Let batch normalisation use the statistics it has, and leave them as they are; or, not `frozen`, those of each batch."""
    for norm in norms_of(network):
        norm.train(not frozen)


def rebase(norm, mean, var):
    """Give a layer other running statistics, and the scale and shift with which it computes the same by them: (C,) each."""
    with torch.no_grad():
        old, new = ((v.double() + norm.eps).sqrt() for v in (norm.running_var, var))
        norm.bias += (norm.weight * (mean.double() - norm.running_mean) / old).float()
        norm.weight *= (new / old).float()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


def statistics_on(network, lr_imgs):
    """The mean and variance of each channel that enters each layer when the network, as in use, upscales LR images."""
    found, training, norms = {}, network.training, norms_of(network)

    def measure(norm, inputs):
        found[norm] = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    modes = [norm.training for norm in norms]
    with torch.no_grad():
        network.eval()(lr_imgs)
    network.train(training)
    for norm, mode, hook in zip(norms, modes, hooks, strict=True):
        norm.train(mode)
        hook.remove()
    return found


def fit_statistics(network, lr_imgs) -> bool:
    """Let a trained network know the statistics of LR images (N, 3, h, w) in [0, 1], if it knows quite others.

    Returns whether it did. A network that was trained with frozen statistics, as those that ship, knows them from long
    before, and by those of a batch it is another one: the shipped SRResNet, at 25 dB on a batch, is at 11 dB then. What it
    computes in use stays the same. Layers that nothing has been trained of stay as they are.
    """
    found = {norm: known for norm, known in statistics_on(network, lr_imgs).items() if norm.running_mean.any()}

    def far(norm, mean, var):
        off = (mean - norm.running_mean).square() / (norm.running_var + norm.eps)
        factor = (var + norm.eps).log() / 2 - (norm.running_var + norm.eps).log() / 2
        return off.mean() > 1 or factor.square().mean() > math.log(2) ** 2

    if not any(far(norm, *known) for norm, known in found.items()):
        return False
    for norm, known in found.items():
        rebase(norm, *known)
    return True
