"""A text tower in the place of Hugging Face's, as diffusion pipelines call it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from .config import TextTowerConfig
from .loading import load
from .text import TextTower
from .weights.files import write_tensors
from .weights.fit import shell
from .weights.hf import write_hf


class TextEncoderOutput(dict[str, Any]):
    """Hold outputs under their names; also as attributes, by position, and as a tuple, as Hugging Face's do.

    What was not computed has the attribute None and takes no position.
    """

    NAMES = ("text_embeds", "last_hidden_state", "pooler_output", "hidden_states", "attentions")

    def __getattr__(self, name: str) -> Any:
        if name in self.NAMES:
            return self.get(name)
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the outputs that were computed."""
        return tuple(self.values())


class TextEncoder(nn.Module):
    """Give a text tower the call and the outputs of CLIPTextModel, or of CLIPTextModelWithProjection.

        pipe = StableDiffusionPipeline.from_pretrained(…, text_encoder=TextEncoder(tower))

    Args:
        tower: a causal text tower. Of a CLIP the text tower's part is taken, and its weights are shared.
        projection: give `text_embeds`, the pooled vector in the shared space, as CLIPTextModelWithProjection does
            (Stable Diffusion XL's second encoder); otherwise `pooler_output`, before the projection.

    Raises:
        ValueError: projection is asked for and the tower has none, or the tower is not like CLIP's.
    """

    def __init__(self, tower: TextTower, *, projection: bool = False) -> None:
        super().__init__()
        text = tower.config.text
        if projection and not text.projection:
            raise ValueError(
                "projection is True, but the tower has no projection; load one that has, or pass False"
            )
        if not text.causal or text.projection_bias:
            raise ValueError(
                "tower must be like CLIP's, causal and without projection_bias, got a SigLIP-style one"
            )
        width = tower.config.embed_dim if projection else text.width
        own = TextTowerConfig(replace(text, projection=projection), width, tower.config.activation)
        part = shell(own)
        weights = tower.state_dict()
        part.load_state_dict({name: weights[name] for name in part.state_dict()}, assign=True)
        self.tower = part
        self.eval()
        _, values, _ = write_hf(weights, own)
        self.config = _Config(**values, output_hidden_states=False, return_dict=True)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, projection: bool = False) -> Self:
        """Load what fastclip.models.load can load, the text tower alone."""
        return cls(load(path, towers="text").model, projection=projection)

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write config.json and model.safetensors, which Hugging Face's classes load; their options have no effect."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        tensors, values, _ = write_hf(self.tower.state_dict(), self.tower.config)
        write_tensors(place / "model.safetensors", tensors)
        (place / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.tower.ln_final.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tower.ln_final.weight.device

    @property
    def text_model(self) -> TextEncoder:
        """The encoder itself; pipelines look for `text_model.final_layer_norm`."""
        return self

    @property
    def final_layer_norm(self) -> nn.LayerNorm:
        """The layer norm behind the last block, for pipelines that skip blocks (clip_skip) and apply it themselves."""
        return self.tower.ln_final

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.tower.token_embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TextEncoderOutput | tuple[Any, ...]:
        """Encode token rows.

        Args:
            input_ids: (B, L) integer ids.
            attention_mask: (B, L), 0 for tokens that no other may look at.
            position_ids: (B, L) or (1, L), in place of 0, 1, …
            output_attentions: must not be True: fused attention does not have its weights.
            output_hidden_states: also give the input of the first block and the output of every block.
            return_dict: False gives a plain tuple.

        Returns:
            last_hidden_state (B, L, width), behind the final norm, and pooler_output (B, width); with projection
            text_embeds (B, embed_dim) and last_hidden_state. hidden_states, if asked for: layers + 1 of (B, L, width).

        Raises:
            ValueError: attention weights are asked for.
        """
        if output_attentions:
            raise ValueError("output_attentions must be False: fused attention does not have its weights")
        tower = self.tower
        x = tower.token_embedding(input_ids)
        positions = tower.positional_embedding
        x = x + (positions[: x.shape[1]] if position_ids is None else positions[position_ids])
        if output_hidden_states:
            states: tuple[Tensor, ...] = tuple(tower.transformer.states(x, attention_mask))
            last = states[-1]
        else:
            states, last = (), tower.transformer(x, attention_mask)
        last = tower.ln_final(last)
        pooled = last[torch.arange(len(last), device=last.device), tower.find_end(input_ids)]
        if tower.config.text.projection:
            outputs = TextEncoderOutput(text_embeds=tower.project_text(pooled), last_hidden_state=last)
        else:
            outputs = TextEncoderOutput(last_hidden_state=last, pooler_output=pooled)
        if states:
            outputs["hidden_states"] = states
        return outputs.to_tuple() if return_dict is False else outputs


class _Config(SimpleNamespace):
    """Settings by Hugging Face's names, as attributes."""

    def to_dict(self) -> dict[str, Any]:
        """Return them by name."""
        return dict(vars(self))
