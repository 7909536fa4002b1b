"""A BERT-base and a ResNet-50 with random weights in bf16, served as a user would write them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Annotated, Any

import msgspec
import numpy as np
import torch

from tidegate import Array, serve

TOKENS, WIDTH, SIDE = 128, 768, 224
BATCH = int(os.environ.get("BATCH", "64"))
TINY = bool(os.environ.get("TINY"))
DTYPE = torch.float32 if TINY else torch.bfloat16


class TinyBert(torch.nn.Module):
    """In BERT's place where only the way there and back is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(30522, WIDTH)

    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(tokens))


def load_bert(device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if TINY:
        return TinyBert().to(device)
    from transformers import BertConfig, BertModel

    model: torch.nn.Module = BertModel(BertConfig(), add_pooling_layer=False).to(device, DTYPE).eval()
    return model


def embed_batch(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        device = next(model.parameters()).device
        hidden = model(tokens.to(device, non_blocking=True)).last_hidden_state
        embedded: torch.Tensor = hidden.mean(1).float()
        return embedded


def load_resnet(device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if TINY:
        tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, 16), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        return tiny.to(device)
    from torchvision.models import resnet50

    model: torch.nn.Module = resnet50()
    return model.to(device, DTYPE, memory_format=torch.channels_last).eval()


def classify_batch(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        device = next(model.parameters()).device
        images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).to(DTYPE) / 255
        classes: torch.Tensor = model(images).argmax(1)
        return classes


@serve(max_batch_size=BATCH, setup=load_bert, max_queue_size=8192)
def bert(model: torch.nn.Module, tokens: Annotated[torch.Tensor, Array("int64", (TOKENS,))]) -> torch.Tensor:
    return embed_batch(model, tokens)


@serve(max_batch_size=BATCH, setup=load_resnet, max_queue_size=8192)
def resnet(model: torch.nn.Module, pixels: Annotated[torch.Tensor, Array("uint8", (SIDE, SIDE, 3))]) -> torch.Tensor:
    return classify_batch(model, pixels)


class Picture(msgspec.Struct):
    """In JSON the bytes are base64, and are read where the request is."""

    image: bytes


def stack_pictures(pictures: list[Picture]) -> torch.Tensor:
    room = np.empty((len(pictures), SIDE, SIDE, 3), np.uint8)
    for place, picture in zip(room, pictures, strict=True):
        place[:] = np.frombuffer(picture.image, np.uint8).reshape(place.shape)
    return torch.from_numpy(room)


def one_by_one(classes: torch.Tensor) -> list[Any]:
    return classes.tolist()


@serve(max_batch_size=BATCH, setup=load_resnet, batch=stack_pictures, unbatch=one_by_one, max_queue_size=8192)
def resnet64(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return classify_batch(model, pixels)
