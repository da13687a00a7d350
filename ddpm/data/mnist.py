"""Handwritten digits of LeCun, Cortes and Burges."""

from typing import ClassVar

from ddpm.data.idx import IDXData


class MNIST(IDXData):
    """60,000 (train) or 10,000 (test) grey digits of 28x28 pixels."""

    name = "mnist"
    class_names: ClassVar[list[str]] = list("0123456789")
    dataset = "MNIST"
    source = "https://ossci-datasets.s3.amazonaws.com/mnist/"
