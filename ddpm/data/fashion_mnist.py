"""Zalando's articles of clothing (arXiv:1708.07747)."""

from typing import ClassVar

from ddpm.data.idx import IDXData


class FashionMNIST(IDXData):
    """60,000 (train) or 10,000 (test) grey articles of 28x28 pixels."""

    name = "fashion_mnist"
    class_names: ClassVar[list[str]] = [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ]
    dataset = "FashionMNIST"
    source = "https://github.com/zalandoresearch/fashion-mnist (data/fashion)"
