"""The rules by which weights follow gradients, and clipping.

Keras's own differ from what the recipes of papers were found with: its SGD has the learning rate
within the velocity and the decay outside of it, its RMSprop starts its averages at 0, its LAMB
leaves the decay out of the trust ratio. Those here follow PyTorch's and timm's classes, which the
tests compare them with.

Whatever the rule, only kernels decay: `decays`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from kapps._errors import unknown
from kapps.tools.distribution import update_each

Rate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


def decays(variable: Any) -> bool:
    """Whether weight decay acts on it: on kernels, and not on biases and normalization."""
    return len(variable.shape) >= 2


class SGD(keras.optimizers.Optimizer):
    """Momentum SGD as in He et al. 2015, section 3.4, and as PyTorch has it.

    v = momentum v + g + weight_decay w; w = w - rate v. The decay is a term of the gradient, so
    that momentum amplifies it to 1 / (1 - momentum) times its size; the learning rate acts on the
    velocity as a whole, also on what has been collected at another rate. With `nesterov`, the step
    is that of the velocity a step ahead.
    """

    def __init__(
        self, learning_rate: Rate, *, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        super().__init__(learning_rate)  # whose decay passes by the momentum
        self.momentum, self.nesterov, self.decay = momentum, nesterov, weight_decay

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        velocity = self._velocities[self._get_variable_index(variable)]
        force = self._force(gradient, variable)
        self.assign(velocity, self.momentum * velocity + force)
        step = self.momentum * velocity + force if self.nesterov else velocity
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)

    def _force(self, gradient: Any, variable: Any) -> Any:
        """What the velocity collects."""
        return gradient + self.decay * variable if decays(variable) else gradient


class LARS(SGD):
    """You et al. 2017, "Large Batch Training of Convolutional Networks", algorithm 1.

    SGD whose gradient and decay are scaled, for each kernel, by
    trust |w| / (|g| + weight_decay |w| + epsilon). What does not decay is not scaled either: then
    it is SGD.
    """

    def __init__(
        self,
        learning_rate: Rate,
        *,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        trust: float = 1e-3,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(
            learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
        self.trust, self.epsilon = trust, epsilon

    def _force(self, gradient: Any, variable: Any) -> Any:
        force = super()._force(gradient, variable)
        if not (self.decay and decays(variable)):
            return force
        weights, size = _norm(variable), _norm(gradient)
        ratio = self.trust * weights / (size + self.decay * weights + self.epsilon)
        return _if_both(weights, size, ratio) * force


class RMSprop(keras.optimizers.Optimizer):
    """RMSprop with momentum as TensorFlow 1 had it, for EfficientNet, MobileNetV3 and their like.

    m = rho m + (1 - rho) g^2, beginning at 1; v = momentum v + rate g / sqrt(m + epsilon);
    w = w - v. The decay is a term of the gradient.
    """

    def __init__(
        self,
        learning_rate: Rate,
        *,
        momentum: float,
        rho: float,
        weight_decay: float,
        epsilon: float,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum, self.rho, self.decay = momentum, rho, weight_decay
        self.epsilon = epsilon

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")
        self._squares = self.add_optimizer_variables(variables, "square", initializer="ones")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        velocity, square = self._velocities[index], self._squares[index]
        rate = ops.cast(learning_rate, variable.dtype)
        if decays(variable):
            gradient = gradient + self.decay * variable
        self.assign_add(square, (1 - self.rho) * (ops.square(gradient) - square))
        scaled = gradient / ops.sqrt(square + self.epsilon)
        self.assign(velocity, self.momentum * velocity + rate * scaled)
        self.assign_sub(variable, velocity)


class AdamW(keras.optimizers.Optimizer):
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.

    As in PyTorch, epsilon is added to the root after its bias is corrected; Keras adds it before,
    where the same epsilon weighs up to 30 times as much in the first steps.
    """

    def __init__(
        self,
        learning_rate: Rate,
        *,
        beta_1: float,
        beta_2: float,
        weight_decay: float,
        epsilon: float,
    ) -> None:
        super().__init__(learning_rate)
        self.beta_1, self.beta_2, self.decay = beta_1, beta_2, weight_decay
        self.epsilon = epsilon

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self._means = self.add_optimizer_variables(variables, "mean")
        self._squares = self.add_optimizer_variables(variables, "square")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * self._direction(gradient, variable))

    def _direction(self, gradient: Any, variable: Any) -> Any:
        """Where to go at a rate of 1; takes the gradient into the averages."""
        index = self._get_variable_index(variable)
        mean, square = self._means[index], self._squares[index]
        self.assign_add(mean, (1 - self.beta_1) * (gradient - mean))
        self.assign_add(square, (1 - self.beta_2) * (ops.square(gradient) - square))
        root = ops.sqrt(square / self._collected(self.beta_2, variable.dtype))
        direction = mean / self._collected(self.beta_1, variable.dtype) / (root + self.epsilon)
        return direction + self.decay * variable if decays(variable) else direction

    def _collected(self, beta: float, dtype: Any) -> Any:
        """The share of an average that is no longer its start, which is 0."""
        steps = ops.cast(self.iterations, "float64") + 1  # 0.999 as float32 would be off by 1e-5
        return ops.cast(1 - ops.power(ops.convert_to_tensor(beta, "float64"), steps), dtype)


class LAMB(AdamW):
    """You et al. 2020, "Large Batch Optimization for Deep Learning", algorithm 2.

    The step of Adam with its decay, scaled for each kernel to the norm of the kernel. As in timm,
    what does not decay is not scaled either: then it is Adam.
    """

    def _direction(self, gradient: Any, variable: Any) -> Any:
        direction = super()._direction(gradient, variable)
        if not (self.decay and decays(variable)):
            return direction
        weights, size = _norm(variable), _norm(direction)
        return _if_both(weights, size, weights / size) * direction


def _norm(x: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(x)))


def _if_both(a: Any, b: Any, ratio: Any) -> Any:
    """The ratio where both numbers are above 0, and else 1."""
    return ops.where(ops.logical_and(a > 0, b > 0), ratio, ops.ones_like(ratio))


def make_optimizer(
    name: str,
    learning_rate: Rate,
    variables: list[Any],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    rho: float = 0.9,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float | None = None,
    rates: Sequence[float] | None = None,
) -> keras.optimizers.Optimizer:
    """An optimizer for these variables. To be made in the devices' scope.

    Args:
        name: "adamw", "lamb", "lars", "rmsprop" or "sgd".
        learning_rate: by step, or for all of them.
        variables: what is trained: of Keras, or TensorFlow's own, which tf_keras has.
        momentum: of sgd, lars and rmsprop.
        nesterov: of sgd and lars.
        weight_decay: see the classes; of kernels only.
        rho: memory of rmsprop's squared gradients.
        beta_1: memory of adamw's and lamb's gradients.
        beta_2: memory of their squares.
        epsilon: what is added to a divisor; None: 1e-8 for adamw and lars, 1e-6 for lamb (as in
            timm), 1e-3 for rmsprop (as in EfficientNet's code). sgd has none.
        rates: what the learning rate is multiplied by, for each variable.

    Raises:
        InputError: there is no optimizer of that name.
    """
    rate = float(learning_rate) if isinstance(learning_rate, int | float) else learning_rate

    def or_else(default: float) -> float:
        return default if epsilon is None else epsilon

    makers: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "adamw": lambda: AdamW(
            rate, beta_1=beta_1, beta_2=beta_2, weight_decay=weight_decay, epsilon=or_else(1e-8)
        ),
        "lamb": lambda: LAMB(
            rate, beta_1=beta_1, beta_2=beta_2, weight_decay=weight_decay, epsilon=or_else(1e-6)
        ),
        "lars": lambda: LARS(
            rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            epsilon=or_else(1e-8),
        ),
        "rmsprop": lambda: RMSprop(
            rate, momentum=momentum, rho=rho, weight_decay=weight_decay, epsilon=or_else(1e-3)
        ),
        "sgd": lambda: SGD(rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay),
    }
    if name not in makers:
        raise unknown("optimizer", name, makers)
    optimizer = makers[name]()
    optimizer.build(variables)
    optimizer.rates = None if rates is None else tuple(rates)
    return optimizer


def apply_summed(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[Any],
    *,
    when: Any = None,
) -> None:
    """A step by gradients that all replicas have in common. In a replica's step only.

    Keras's `apply` sums over the replicas itself, and so leaves no place between the sum and the
    step, where clipping belongs.

    Args:
        optimizer: one of this module, which needs nothing but its `update_step`.
        gradients: one for each variable, as `distribution.summed` makes them.
        variables: those that it was built for.
        when: whether to do so at all; a step that is left out does not count.
    """

    rates = getattr(optimizer, "rates", None)

    def change(variable: Any, gradient: Any, learning_rate: Any) -> None:
        if rates is not None:
            learning_rate = learning_rate * rates[optimizer._get_variable_index(variable)]
        optimizer.update_step(gradient, variable, learning_rate)

    update_each(change, variables, gradients, optimizer.learning_rate, when=when)
    steps = optimizer.iterations
    steps.assign_add(1 if when is None else ops.cast(when, steps.dtype))


def clip_by_global_norm(gradients: Sequence[Any], norm: float) -> list[Any]:
    """The gradients, all scaled by the same factor if their norm as one vector is above `norm`.

    Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    total = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
    scale = norm / ops.maximum(total, norm)
    return [gradient * scale for gradient in gradients]


def unit_axes(model: keras.Model) -> list[tuple[int, ...] | None]:
    """For `clip_adaptive`: the axes that one unit's weights lie along, for each trainable variable.

    A unit is an output channel, and the whole of a vector (a bias, a scale). None, which is not
    clipped: the classifier (Brock et al. 2021, section 4.1), which is the last layer with weights
    where the model is not of kapps.
    """
    # Of frozen batch norm, scale and shift may be trained: then its variables say so, not it.
    found = [(layer, [v for v in layer.variables if v.trainable]) for layer in model.layers]
    trained = [(layer, variables) for layer, variables in found if variables]
    layers = [layer for layer, _ in trained]
    heads = [layer for layer in layers if getattr(layer, "checkpoint_head", False)] or layers[-1:]
    axes: dict[str, tuple[int, ...] | None] = {}
    for layer, variables in trained:
        outputs = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1  # channel, multiplier
        for variable in variables:
            rank = len(variable.shape)
            inner = tuple(range(rank - outputs)) if rank > 1 else (0,)
            axes[variable.path] = None if layer in heads else inner
    return [axes[variable.path] for variable in model.trainable_variables]


def clip_adaptive(
    gradients: Sequence[Any],
    variables: Sequence[Any],
    axes: Sequence[tuple[int, ...] | None],
    factor: float = 0.01,
    epsilon: float = 1e-3,
) -> list[Any]:
    """The gradients, each unit's scaled to at most `factor` times the norm of its weights.

    Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization",
    equation 3.

    Args:
        gradients: one for each variable.
        variables: the weights.
        axes: `unit_axes` of the model that they are from.
        factor: largest norm of a gradient, in norms of its weights.
        epsilon: the norm that weights have at least, so that zeros can begin to move.
    """

    def clip(gradient: Any, weights: Any, along: tuple[int, ...] | None) -> Any:
        if along is None:
            return gradient
        most = factor * ops.maximum(_unit_norm(weights, along), epsilon)
        return gradient * (most / ops.maximum(_unit_norm(gradient, along), most))

    return [clip(*each) for each in zip(gradients, variables, axes, strict=True)]


def _unit_norm(x: Any, axes: tuple[int, ...]) -> Any:
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
