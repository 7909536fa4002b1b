"""The models on tidegate, each with a maximum batch of 64 and of 256."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import gpu_models
import msgspec
import numpy as np
import torch

from tidegate import Array, Handler, serve

Tokens = Annotated[torch.Tensor, Array("int64", (gpu_models.TOKENS,))]
Image = Annotated[torch.Tensor, Array("uint8", (gpu_models.SIDE, gpu_models.SIDE, 3))]


class Base64Image(msgspec.Struct):
    """An image in JSON; msgspec reads the base64 where the request is read."""

    image: bytes


def stack(items: list[Base64Image]) -> torch.Tensor:
    shape = (len(items), gpu_models.SIDE, gpu_models.SIDE, 3)
    cuda = torch.cuda.is_available() and not gpu_models.TINY
    batch = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
    rows = batch.numpy().reshape(len(items), -1)
    for row, item in zip(rows, items, strict=True):
        row[:] = np.frombuffer(item.image, np.uint8)
    return batch


def _bert(size: int) -> Handler[..., Any]:
    @serve(name=f"bert_{size}", max_batch_size=size, setup=partial(gpu_models.load, "bert"))
    def bert(model: gpu_models.Bert, tokens: Tokens) -> torch.Tensor:
        return model(tokens)

    return bert


def _image(size: int) -> Handler[..., Any]:
    @serve(name=f"image_{size}", max_batch_size=size, setup=partial(gpu_models.load, "resnet"))
    def image(model: gpu_models.ResNet, pixels: Image) -> torch.Tensor:
        return model(pixels)

    return image


def _image64(size: int) -> Handler[..., Any]:
    @serve(name=f"image64_{size}", max_batch_size=size, setup=partial(gpu_models.load, "resnet"), batch=stack)
    def image64(model: gpu_models.ResNet, items: list[Base64Image]) -> torch.Tensor:
        return model(items)  # stacked by now

    return image64


bert_64, bert_256 = _bert(64), _bert(256)
image_64, image_256 = _image(64), _image(256)
image64_64, image64_256 = _image64(64), _image64(256)
HANDLERS = (bert_64, bert_256, image_64, image_256, image64_64, image64_256)
