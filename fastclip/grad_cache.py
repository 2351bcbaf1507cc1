"""Train on large batches in small memory: the exact gradient of a whole-batch loss, one micro-batch at a time.

A contrastive loss couples all pairs of a batch, so summing the losses of micro-batches is a different (and
worse) objective. But it couples them only through the features, and those are small. Hence three passes:

    1. features   x_i = f(a_i), y_i = g(b_i) for every micro-batch i, without a graph
    2. loss       L(x, y) over all features -> dL/dx, dL/dy, and the gradients of all else that L uses
    3. gradients  f(a_i) again, with its graph, and back-propagate (dL/dx)_i; the same for g

The parameters receive the gradient of one big step; only one micro-batch's activations are ever alive. The
price is a second forward pass of the encoders. (Gao et al., "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", 2021.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Any] | Sequence[Any]
Tower = tuple[Callable[[Any], Tensor], Inputs]
RngState = tuple[Tensor, list[Tensor] | None]  #: of the CPU, and of every GPU


def cached_backward(
    loss_fn: Callable[..., Tensor],
    *towers: Tower,
    micro_batch_size: int | None = None,
    module: nn.Module | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Back-propagate `loss_fn(f1(x1), f2(x2), …)` with one micro-batch's activations alive; return the loss.

    Gradients are accumulated into `.grad` exactly as `loss_fn(f1(x1), f2(x2)).backward()` would, to rounding:
    the encoders', and those of whatever else the loss uses (a learned scale or bias).

        loss = cached_backward(
            lambda image, text: fastclip.clip_loss(image, text, model.logit_scale.exp(), normalize=True),
            (model.encode_image, images),
            (model.encode_text, tokens),
            micro_batch_size=256,
        )

    Autocast may be on around the call or inside the encoders, and encoders may use activation checkpointing.

    Args:
        loss_fn: takes one feature tensor per tower, (B, D) each, returns a 0-d tensor.
        towers: pairs (encoder, inputs). The inputs are a tensor (B, …), or a dict or tuple of them; the
            encoder maps such inputs with b <= B rows to features (b, D) and must treat rows independently.
            Dropout draws the same masks in both passes. (Batch normalisation does not fit: its statistics
            would be the micro-batch's.)
        micro_batch_size: rows encoded at a time; None, or B and more, is a single ordinary pass.
        module: the DistributedDataParallel or FSDP2 (`fully_shard`) module that holds the encoders: ranks average
            gradients once, in the last backward pass, for which one micro-batch of every tower is alive. Encoders
            have to be called through it, as in `lambda images: ddp(images, None)["image_features"]`; the loss should
            be one over all ranks (`group=`). Under DDP ranks may have batches of different sizes, or none; under
            FSDP2, where every call moves weights, they must come to the same number of micro-batches.
        scaler: scales the loss before back-propagation, as `scaler.scale(loss).backward()`; step it as usual.

    Returns:
        The loss, detached, 0-d, not scaled.

    Raises:
        ValueError: no towers, a micro-batch below one row, inputs whose tensors differ in length, encoders that
            are not called through the DDP module, or a DDP module with find_unused_parameters or static_graph.
        TypeError: a module that is neither.
    """
    if not towers:
        raise ValueError(
            "cached_backward needs at least one (encoder, inputs) pair after loss_fn; none was given"
        )
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(
            f"micro_batch_size must be at least 1 row, got {micro_batch_size}; None encodes all at once"
        )
    lengths = [_length(inputs) for _, inputs in towers]
    averaging = _averaging(module)

    def differentiate(loss: Tensor) -> Tensor:
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss.detach()

    # Where every encoder call is a collective, a rank may not take fewer of them than others because it has less.
    if micro_batch_size is None or (micro_batch_size >= max(lengths) and not averaging.moves_weights):
        return differentiate(loss_fn(*(encode(inputs) for encode, inputs in towers)))

    with averaging.postponed():
        # 1. Features without a graph.
        with torch.no_grad(), averaging.called_through():
            cached = [_encode(*tower, micro_batch_size, wrapped=module is not None) for tower in towers]
        # Older PyTorch lets an ambient autocast reuse the weights just cast without a graph: pass 3 must cast
        # them anew.
        torch.clear_autocast_cache()

        # 2. The loss over all features, which are leaves.
        with averaging.noticing() as noticed:
            loss = differentiate(loss_fn(*(tower.features for tower in cached)))

        # 3. Each micro-batch again, with its graph. The random stream afterwards goes on as if this pass had
        # not been.
        after = _get_rng()
        last: list[_Micro] = []
        for tower in cached:
            if tower.features.grad is None:  # the loss ignores this tower, or it is frozen
                continue
            *others, final = tower.micro_batches(tower.features.grad, micro_batch_size)
            _back_propagate(others if module is not None else (*others, final))
            if module is not None:
                last.append(final)

    # Ranks average in this one pass. It must reach every parameter, those that only the loss uses too.
    if last:
        _back_propagate_together(last, noticed)
    _set_rng(after)
    return loss


@dataclass
class _Micro:
    """A micro-batch, the random state it is encoded from, and the gradient of its features."""

    encode: Callable[[Any], Tensor]
    chunk: Any
    start: RngState
    dx: Tensor

    def again(self) -> Tensor:
        """Encode it as the first time, dropout included."""
        _set_rng(self.start)
        return self.encode(self.chunk)


@dataclass
class _Cached:
    """A tower's features (B, D), a leaf, and the random state that each micro-batch started from."""

    encode: Callable[[Any], Tensor]
    inputs: Inputs
    features: Tensor
    starts: list[RngState]

    def micro_batches(self, grad: Tensor, size: int) -> list[_Micro]:
        """Return all micro-batches, each with its part of the features' gradient (B, D)."""
        pieces = zip(_chunks(self.inputs, size), self.starts, grad.split(size), strict=True)
        return [_Micro(self.encode, *piece) for piece in pieces]


def _encode(encode: Callable[[Any], Tensor], inputs: Inputs, size: int, *, wrapped: bool) -> _Cached:
    """Encode all micro-batches; features of a frozen tower need no gradient, and then cost none."""
    parts: list[Tensor] = []
    starts, needs_grad = [], True
    for chunk in _chunks(inputs, size):
        starts.append(_get_rng())
        # One micro-batch with a graph tells whether the tower is frozen. (Wrapped modules prepare a backward
        # pass for every graph, and have to be asked in pass 3.)
        asking = not parts and not wrapped
        with torch.set_grad_enabled(asking):
            out = encode(chunk)
        if asking:
            needs_grad = out.requires_grad
        parts.append(out.detach())
        del out  # or its activations would live on beside the next micro-batch's
    return _Cached(encode, inputs, torch.cat(parts).requires_grad_(needs_grad), starts)


def _back_propagate(micro_batches: Iterable[_Micro]) -> None:
    for micro in micro_batches:
        out = micro.again()
        if not out.requires_grad:  # a frozen tower has nothing to receive
            break
        out.backward(micro.dx)
        del out  # or its activations would live on beside the next micro-batch's


def _back_propagate_together(micro_batches: Iterable[_Micro], noticed: Iterable[nn.Parameter]) -> None:
    outputs, gradients = [], []
    for micro in micro_batches:
        out = micro.again()
        if out.requires_grad:
            outputs.append(out)
            gradients.append(micro.dx)
    outputs += [parameter.view_as(parameter) for parameter in noticed]
    gradients += [torch.zeros_like(parameter) for parameter in noticed]
    torch.autograd.backward(outputs, gradients)


class _Averaging:
    """How the ranks of a module average gradients: not at all here, in one process."""

    moves_weights = False  #: whether calling an encoder is a collective

    def postponed(self) -> AbstractContextManager[object]:
        """Return a context in which gradients are only accumulated."""
        return nullcontext()

    def called_through(self) -> AbstractContextManager[object]:
        """Return a context that checks, at its end, that encoders were called in a way that averages."""
        return nullcontext()

    @contextmanager
    def noticing(self) -> Iterator[list[nn.Parameter]]:
        """Collect the parameters that a backward pass reaches and the last one would leave out."""
        yield []


class _DataParallel(_Averaging):
    """DDP averages a parameter when a backward pass reaches it, and its buckets wait for every one."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def postponed(self) -> AbstractContextManager[object]:
        return self.module.no_sync()

    @contextmanager
    def called_through(self) -> Iterator[None]:
        calls: list[object] = []
        hook = self.module.register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            yield
        finally:
            hook.remove()
        if not calls:
            raise ValueError(
                "the encoders bypass module, so that ranks would never average their gradients: call the wrapped "
                "module itself, as in lambda images: ddp(images, None), not a method of ddp.module"
            )

    @contextmanager
    def noticing(self) -> Iterator[list[nn.Parameter]]:
        noticed: list[nn.Parameter] = []
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(noticed.append) for p in parameters]
        try:
            yield noticed
        finally:
            for hook in hooks:
                hook.remove()


class _FullySharded(_Averaging):
    """FSDP2 gathers weights for every call; the end of a backward pass sees to all parameters."""

    moves_weights = True

    def __init__(self, module: Any) -> None:
        self.module = module

    @contextmanager
    def postponed(self) -> Iterator[None]:
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def _averaging(module: nn.Module | None) -> _Averaging:
    if module is None:
        return _Averaging()
    if hasattr(module, "set_requires_gradient_sync"):
        return _FullySharded(module)
    if isinstance(module, nn.parallel.DistributedDataParallel):
        for option in ("find_unused_parameters", "static_graph"):
            if getattr(module, option):
                raise ValueError(
                    f"module was made with {option}=True, under which DDP expects one call of the module per backward "
                    "pass, but every tower's micro-batches are calls of their own; make it without"
                )
        return _DataParallel(module)
    raise TypeError(
        "module must be a DistributedDataParallel or fully_shard-ed module, or None in one process, "
        f"got {type(module).__name__}"
    )


def _tensors(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [value for value in values if isinstance(value, Tensor)]


def _length(inputs: Inputs) -> int:
    lengths = {len(tensor) for tensor in _tensors(inputs)}
    if len(lengths) != 1:
        raise ValueError(
            f"a tower's inputs must be tensors with one number of rows, got lengths {sorted(lengths)}; "
            "pass a tensor (B, …), or a dict or tuple of tensors (B, …)"
        )
    return lengths.pop()


def _chunks(inputs: Inputs, size: int) -> Iterator[Any]:
    """Yield the inputs in slices of `size` rows, in their own container; non-tensors are passed through."""

    def cut(value: Any, start: int) -> Any:
        return value[start : start + size] if isinstance(value, Tensor) else value

    for start in range(0, max(1, _length(inputs)), size):  # one chunk at least: a rank may have no rows
        if isinstance(inputs, Tensor):
            yield cut(inputs, start)
        elif isinstance(inputs, Mapping):
            yield {key: cut(value, start) for key, value in inputs.items()}
        else:
            yield tuple(cut(value, start) for value in inputs)


def _get_rng() -> RngState:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _set_rng(state: RngState) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
