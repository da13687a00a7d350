"""What a GPU could compute at most."""

import re

# TFLOP/s of dense matrix products in bfloat16 with sums in float32, from NVIDIA's data sheets (not
# the doubled figures for sparse ones), by words of a card's name: the first entry counts whose
# words are all in it.
PEAKS = {
    "B200": 2250.0,
    "GH200": 990.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 150.0,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "RTX 5090": 209.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def peak(name: str) -> float | None:
    """FLOP/s of the card of this name; None: it is not in the table."""
    words = set(re.split(r"[\s-]+", name.lower()))
    for card, tflops in PEAKS.items():
        if words.issuperset(card.lower().split()):
            return tflops * 1e12
    return None
