"""The optimizers: the paper's Adam (PyTorch's own), or Muon, which gets more out of a step. Not here: learning rates."""

import torch

from devices import quickest_precision


def build_optimizer(name, network, learning_rate):
    """The optimizer of that name, "adam" or "muon", for all parameters of the network."""
    if name == "muon":
        return Muon(network, learning_rate)
    return torch.optim.Adam(network.parameters(), learning_rate, fused=True)


def set_learning_rate(optimizer, learning_rate):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class Muon:
    """Adam for most parameters; the kernels between the first and the last convolution go a step of the same length each way.

    The mean of the gradients of such a kernel, as a matrix with a row for each output channel, is replaced by the nearest one
    with orthogonal rows: what the network hardly uses yet learns as fast as what it uses most (Jordan et al. 2024, "Muon: an
    optimizer for hidden layers in neural networks"). The step is scaled to be as long as one of Adam's, so the learning rates
    of Adam suit it (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    """

    def __init__(self, network, learning_rate):
        kernels = [weights for weights in network.parameters() if weights.ndim == 4][1:-1]
        others = [weights for weights in network.parameters() if all(weights is not kernel for kernel in kernels)]
        self.adam = torch.optim.Adam(others, learning_rate, fused=True)
        self.group = {"params": kernels, "lr": learning_rate}
        self.momenta = [torch.zeros_like(kernel) for kernel in kernels]

    @property
    def param_groups(self):
        return [*self.adam.param_groups, self.group]

    def zero_grad(self, set_to_none=True):
        self.adam.zero_grad(set_to_none)
        for kernel in self.group["params"]:
            kernel.grad = None

    @torch.no_grad()
    def step(self):
        self.adam.step()
        kernels = self.group["params"]
        for momentum, kernel in zip(self.momenta, kernels, strict=True):
            momentum.lerp_(kernel.grad, 0.05)
        for shape in dict.fromkeys(kernel.shape for kernel in kernels):  # those of one shape together
            alike = [(kernel, momentum) for kernel, momentum in zip(kernels, self.momenta) if kernel.shape == shape]
            ahead = torch.stack([kernel.grad.lerp(momentum, 0.95).flatten(1) for kernel, momentum in alike])  # Nesterov's
            length = 0.2 * max(ahead.shape[1:]) ** 0.5
            for (kernel, _), direction in zip(alike, orthogonal(ahead)):
                kernel.sub_(direction.view(shape), alpha=self.group["lr"] * length)

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state):
        self.adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def orthogonal(matrices):
    """Matrices (n, rows, columns) with their singular values brought near 1, by five steps of Newton and Schulz.

    To between about .7 and 1.2, but for the smallest: the polynomial of Jordan et al. is quick, and need not be exact. So bf16
    will do, but only where the hardware has units for it: elsewhere a CPU takes many times as long for it as for fp32.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    x = x if x.shape[1] <= x.shape[2] else x.mT
    if quickest_precision(x.device) == "bf16":
        x = x.bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if matrices.shape[1] <= matrices.shape[2] else x.mT).to(matrices.dtype)
