"""Guidance: the network's score plus another one, of a classifier, an energy, a likelihood or another network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype, wrong_type, wrong_value
from fastscore.control.labels import check_labels
from fastscore.control.replacement import per_row
from fastscore.ops._derivatives import inputs_only
from fastscore.samplers.base import check_number, evaluating
from fastscore.samplers.hooks import Hook, Moment
from fastscore.samplers.row_network import RowNetwork
from fastscore.score import Convention, convention_of

__all__ = [
    *("ClassifierGuidance", "Expert", "LogLikelihoodGuidance", "ScoreGuidance"),
    *("check_network", "gradient_through", "predicted"),
]


class ScoreGuidance(Hook, ABC):
    """Adds ``scale * extra_score(x, moment)`` to the score, and so sigma^2 / alpha times it to the clean image.

    Args:
        scale: finite; 1 is Bayes' rule.

    Source: Song et al., arXiv 2011.13456, section 5 and eq. 14; the clean image by Tweedie's formula.
    """

    def __init__(self, scale: float = 1.0) -> None:
        check_number(type(self).__name__, "scale", scale)
        self.scale = float(scale)

    @abstractmethod
    def extra_score(self, x: Tensor, moment: Moment) -> Tensor:
        """What is added at the states x (n, ...) of the rows of the moment; like x."""

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> Tensor:
        extra = self.extra_score(x, moment)
        if extra.shape != x.shape:
            wrong_value(type(self).__name__, "the extra score", f"be like x, {tuple(x.shape)}", tuple(extra.shape))
        alpha, sigma = moment.sde.marginal(moment.t)
        return (denoised + per_row(self.scale * sigma.square() / alpha, x) * extra).to(denoised.dtype)


class LogLikelihoodGuidance(ScoreGuidance):
    """Guidance by the gradient of a log-likelihood, or of minus an energy, of the noisy image.

    Args:
        log_likelihood: called as ``log_likelihood(x, moment)`` with x (n, ...) that takes part in autograd; returns
            nats (n,), where each depends on its own row of x. ``moment.t`` holds the times, and
            ``moment.of_rows(value, name)`` what belongs to the rows.
        scale: see `ScoreGuidance`.

    Raises:
        TypeError, ValueError: for a bad argument; when sampling, log_likelihood returns something else than a tensor
            (n,), or one that does not depend on x.
    """

    def __init__(self, log_likelihood: Callable[[Tensor, Moment], Tensor], scale: float = 1.0) -> None:
        super().__init__(scale)
        if not callable(log_likelihood):
            name = type(log_likelihood).__name__
            wrong_type(type(self).__name__, "log_likelihood", "be callable as log_likelihood(x, moment)", name)
        self.log_likelihood = log_likelihood

    def extra_score(self, x: Tensor, moment: Moment) -> Tensor:
        return _gradient(type(self).__name__, "log_likelihood", lambda point: self.log_likelihood(point, moment), x)


class ClassifierGuidance(LogLikelihoodGuidance):
    """Guidance by a classifier of noisy images: the gradient of ``log p(label | x_t)``.

    Args:
        classifier: called as ``classifier(x, times)`` with x (n, C, ...) and times (n,); returns logits (n, classes).
        labels: the class of every sample, int64 (B,), or (1,) for all of them, in [0, classes).
        classes: number of classes.
        scale: see `ScoreGuidance`. Published: 1 to 10 for ImageNet.
        convention: whose label says how the classifier is told the time; by default it is t.

    Raises:
        TypeError, ValueError: labels are not int64 or out of range, or another bad argument; when sampling, the logits
            have another shape, or there is not one label per sample.

    Source: Song et al., arXiv 2011.13456, appendix I.1; Dhariwal and Nichol, arXiv 2105.05233, section 4.
    """

    def __init__(
        self,
        classifier: Callable[[Tensor, Tensor], Tensor],
        labels: Tensor,
        classes: int,
        scale: float = 1.0,
        convention: Convention | None = None,
    ) -> None:
        check_network("ClassifierGuidance", "classifier", classifier, convention)
        super().__init__(self._log_probability, scale)
        self.labels = check_labels("ClassifierGuidance", labels, classes)
        self.classifier, self.classes = classifier, classes
        self.convention = convention or Convention(label="time")

    def _log_probability(self, x: Tensor, moment: Moment) -> Tensor:
        labels = moment.of_rows(self.labels, "ClassifierGuidance: labels").expand(len(x))
        with evaluating(self.classifier):
            logits = self.classifier(x, _times(self.convention, x, moment))
        if logits.shape != (len(x), self.classes):
            accepted = f"return logits of shape {(len(x), self.classes)}"
            wrong_value("ClassifierGuidance", "classifier", accepted, tuple(logits.shape))
        return logits.to(accumulation_dtype(logits.dtype)).log_softmax(1).gather(1, labels[:, None])[:, 0]


class Expert(ScoreGuidance):
    """Product of experts: adds the score of another network, at the price of a call of it per call of the first.

    The sum of two scores at time t is the score of the product of the two noisy densities.

    Args:
        network: called as ``network(x, labels)`` like a sampler's model.
        scale: exponent of this expert's density.
        convention: how to read the network; by default ``network.convention``, or what was published with the SDE.

    Raises:
        TypeError: network is not callable, or convention is not a `Convention`.

    Source: Hinton, Training products of experts by minimizing contrastive divergence, Neural Computation 14 (2002);
    for scores Du et al., arXiv 2302.11552, section 3.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(scale)
        check_network("Expert", "network", network, convention)
        self.network, self.convention = network, convention

    def extra_score(self, x: Tensor, moment: Moment) -> Tensor:
        return predicted(self.network, self.convention, x, moment, "score")


def check_network(owner: str, name: str, network: object, convention: object) -> None:
    """Raise unless the network is callable and the convention is one, or None."""
    if not callable(network):
        wrong_type(owner, name, f"be callable as {name}(x, times)", type(network).__name__)
    if convention is not None and not isinstance(convention, Convention):
        wrong_type(owner, "convention", "be a fastscore.Convention or None", type(convention).__name__)


def _times(convention: Convention, x: Tensor, moment: Moment) -> Tensor:
    """What a network is told of the times of x, as samplers tell it."""
    labels = convention.labels(moment.sde, moment.t)
    return labels.to(accumulation_dtype(x.dtype)) if labels.is_floating_point() else labels


def predicted(
    network: Callable[[Tensor, Tensor], Tensor], convention: Convention | None, x: Tensor, moment: Moment, target: str
) -> Tensor:
    """Score or clean image (n, ...) that a network predicts at x; ``target`` as in `Convention.coefficients`."""
    read = convention or convention_of(network, moment.sde)
    if isinstance(network, RowNetwork) and moment.rows is not None:
        network = network.select(moment.rows)
    scale = read.input_scale(moment.sde, moment.t) if read.prediction == "edm" else None
    with evaluating(network):
        h = network(x if scale is None else (per_row(scale, x) * x).to(x.dtype), _times(read, x, moment))
    if h.shape != x.shape:
        raise ValueError(f"the network must return a tensor like its input, {tuple(x.shape)}, got {tuple(h.shape)}")
    if x.requires_grad and not h.requires_grad:
        raise ValueError("the network must be differentiable in x, got an output without gradient")
    p, q = (per_row(value, x) for value in read.coefficients(moment.sde, moment.t, target))
    return p * x + q * h


def gradient_through(
    network: Callable[[Tensor, Tensor], Tensor],
    convention: Convention | None,
    x: Tensor,
    moment: Moment,
    pull: Callable[[Tensor], Tensor],
) -> Tensor:
    """``(dD/dx)^T pull(D)`` at x (n, ...), where D is the clean image that the network predicts; like x."""
    with torch.inference_mode(False), torch.enable_grad(), inputs_only():
        point = x.clone().requires_grad_()
        clean = predicted(network, convention, point, moment, "denoised")
        return torch.autograd.grad(clean, point, pull(clean.detach()).to(clean.dtype))[0]


def _gradient(owner: str, name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient at x (n, ...) of a function that gives (n,), each from its own row."""
    with torch.inference_mode(False), torch.enable_grad(), inputs_only():
        point = x.clone().requires_grad_()
        value = function(point)
        if not isinstance(value, Tensor):
            wrong_type(owner, name, f"return a tensor of shape ({len(x)},)", type(value).__name__)
        if value.shape != (len(x),):
            wrong_value(owner, name, f"return a tensor of shape ({len(x)},), one value per sample", tuple(value.shape))
        if not value.requires_grad:
            wrong_value(owner, name, "depend on x by differentiable operations", "a value without gradient")
        return torch.autograd.grad(value.sum(), point)[0]
