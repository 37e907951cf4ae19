"""The device: a person's text, the model that learns from it, and the answers that may leave it.

Text never leaves this package. What does leave goes through `privacy.answer` as a clipped and noised
vector, or is read by the person it belongs to.
"""

import logging

# transformers imports torchao where it is installed, and that warns of kernels for cards that are not there.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
