"""Contrastive training of transformers' CLIP models without the matrix of logits.

    model = fastclip.hf.fuse(CLIPModel.from_pretrained("openai/clip-vit-base-patch32"))
    loss = model(**batch, return_loss=True).loss

A transformers model builds ``logits_per_image`` (N, N) in its forward pass, loss or no loss, so no loss
function that a `Trainer` calls afterwards can save it. `fuse` therefore gives the model another forward pass
for ``return_loss=True``: features, then the fused loss, and no logits in the output. Without ``return_loss``
the model answers as ever. It stays an instance of its class, with its parameters, configuration and
checkpoints, so `Trainer`, accelerate, DistributedDataParallel and `save_pretrained` work as before.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastclip.functional import clip_loss, siglip_loss


class Family(NamedTuple):
    """The models of one ``config.model_type``: their output class, and the loss that their forward computes."""

    output: str
    loss: Callable[..., Tensor]


FAMILIES = {
    "clip": Family("CLIPOutput", clip_loss),
    "chinese_clip": Family("ChineseCLIPOutput", clip_loss),
    "metaclip_2": Family("MetaClip2Output", clip_loss),
    "siglip": Family("SiglipOutput", siglip_loss),
    "siglip2": Family("Siglip2Output", siglip_loss),
}

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, *, workspace: float | None = None, backend: str = "auto") -> Model:
    """Make a transformers model compute its contrastive loss without logits, in place; return the model.

    Its forward pass then takes ``pair_ids``, (N,) integers, beside its own arguments: pairs that share an id
    (duplicate captions, several captions of an image) are no negatives of each other.

    Args:
        model: a CLIPModel, SiglipModel or another of `FAMILIES`, before anything (PEFT, DDP) wraps it.
        workspace, backend: as for `fastclip.clip_loss`.

    Raises:
        TypeError: another kind of model, or one whose class has a forward pass of its own.
    """
    target: Any = model
    if not isinstance(model, _Fused):
        target.__class__ = _fused_class(_checked_class(model))
    loss = FAMILIES[target.config.model_type].loss
    target.fused_loss = functools.partial(loss, normalize=True, workspace=workspace, backend=backend)
    return model


class ContrastiveTrainerMixin:
    """Make a `Trainer` use the fused loss: ``class MyTrainer(ContrastiveTrainerMixin, Trainer)``.

    The trainer's model is fused, and every batch trains and evaluates on the model's own loss, whether or not
    the data collator says ``return_loss=True``.
    """

    def __init__(self, model: nn.Module | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(_fused_once(model), *args, **kwargs)  # type: ignore[call-arg]
        self.can_return_loss = True  # or else evaluation asks for a loss only where there are labels

    def call_model_init(self, trial: Any = None) -> nn.Module | None:
        """Return the model that the trainer's ``model_init`` makes, fused."""
        return _fused_once(super().call_model_init(trial))  # type: ignore[misc]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, or (loss, outputs): `Trainer.compute_loss` with ``return_loss=True``."""
        return super().compute_loss(model, {**inputs, "return_loss": True}, *args, **kwargs)  # type: ignore[misc]


def _fused_once(model: nn.Module | None) -> nn.Module | None:
    return model if model is None or isinstance(model, _Fused) else fuse(model)


def _checked_class(model: nn.Module) -> type:
    """Return the model's class, if its forward pass is one that the fused one can stand in for."""
    cls, kind = type(model), getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES or not hasattr(model, "get_image_features"):
        raise TypeError(
            f"model must be a transformers model with two towers ({', '.join(FAMILIES)}), got {cls.__name__}; "
            "fuse it before anything wraps it, or hand its features to fastclip.clip_loss"
        )
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    if not owner.__module__.startswith("transformers."):
        raise TypeError(
            f"{owner.__name__} has a forward pass of its own, which the fused one would replace; "
            "hand its features to fastclip.clip_loss there"
        )
    return cls


class _Fused:
    """What the class of a fused model has beside the model's own."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class exists in this process alone; copies and pickles make it anew from the model's own.
        classes = type(self).__mro__
        return _blank, (classes[classes.index(_Fused) + 1],), self.__dict__


def _blank(cls: type) -> Any:
    return object.__new__(_fused_class(cls))


@functools.cache
def _fused_class(cls: type) -> type:
    """Return a subclass of a model's class, of the same name, whose ``return_loss=True`` builds no logits."""
    signature = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    parameters = signature.parameters
    names = [name for name in parameters if name != "self"]
    of_image = inspect.signature(cls.get_image_features).parameters  # type: ignore[attr-defined]
    of_text = inspect.signature(cls.get_text_features).parameters  # type: ignore[attr-defined]

    def forward(self: Any, *args: Any, pair_ids: Tensor | None = None, **kwargs: Any) -> Any:
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        if not inputs.pop("return_loss", None):
            return cls.forward(self, **inputs)  # type: ignore[attr-defined]
        as_dict = inputs.pop("return_dict", None)
        unknown = [name for name in inputs if name not in parameters and not _takes_more(parameters)]
        if unknown:
            raise TypeError(f"{cls.__name__}.forward() got unexpected arguments: {', '.join(unknown)}")
        image, vision_output = _features(self.get_image_features(**_choose(inputs, of_image, parameters)))
        text, text_output = _features(self.get_text_features(**_choose(inputs, of_text, parameters)))
        image = image.to(text.device)
        bias = {"logit_bias": self.logit_bias} if hasattr(self, "logit_bias") else {}
        output = _output_class(cls, self.config.model_type)(
            loss=self.fused_loss(image, text, self.logit_scale.exp(), labels=pair_ids, **bias),
            text_embeds=F.normalize(text, dim=-1),
            image_embeds=F.normalize(image, dim=-1),
            text_model_output=text_output,
            vision_model_output=vision_output,
        )
        return output if as_dict or (as_dict is None and self.config.return_dict) else output.to_tuple()

    # Trainer reads from the signature which columns of a data set the model wants.
    pair_ids = inspect.Parameter("pair_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    ordered = sorted([*parameters.values(), pair_ids], key=lambda parameter: parameter.kind)
    forward.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Fused, cls), {**about, "forward": forward})


def _takes_more(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _choose(
    inputs: dict[str, Any],
    accepted: Mapping[str, inspect.Parameter],
    of_forward: Mapping[str, inspect.Parameter],
) -> dict[str, Any]:
    """Return the inputs of one tower: those it names, and those it takes as the model's own forward passes on."""
    more = _takes_more(accepted)
    return {
        name: value for name, value in inputs.items() if name in accepted or (more and name not in of_forward)
    }


def _features(output: Any) -> tuple[Tensor, Any]:
    """Return the projected features, and the tower's whole output where there is one (transformers 5)."""
    if isinstance(output, Tensor):
        return output, None
    # A tuple where the configuration says return_dict=False.
    return (output[1], None) if isinstance(output, tuple) else (output.pooler_output, output)


def _output_class(cls: type, model_type: str) -> Callable[..., Any]:
    name = FAMILIES[model_type].output
    modules = (sys.modules[base.__module__] for base in cls.__mro__)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
