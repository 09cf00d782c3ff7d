"""Segmentation losses; torch.py and keras.py compute the same functions of logits and masks.

p is softmax(logits) over K classes, t the one-hot mask; sums run over the pixels that are not IGNORE:

    cross_entropy  mean over pixels of -log p[mask]
    dice           mean over images and classes of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)
    both           cross_entropy + dice
    bce            mean over pixels and outputs of -t log q - (1 - t) log(1 - q), q = sigmoid(logits);
                   one output predicts class 1 of two; K outputs predict each class against the rest
    focal_tversky  mean over images and classes of (1 - TI)^(1 / GAMMA),
                   TI = (sum(p t) + 1) / (sum(p t) + ALPHA sum((1 - p) t) + BETA sum(p (1 - t)) + 1)

`both` is a sum of two terms, the others have one. With class weights w, the losses WEIGHTED multiply the loss of each
pixel by w[mask] and divide the sum by that of w[mask] instead of the number of pixels, as torch's cross_entropy does.

Each term is a sum divided by a count, and devices that share a batch sum the counts. Images in which every pixel is
IGNORE are left out; a batch of such images has the loss 0.

Source: Dice: Milletari et al., "V-Net", 3DV 2016, arXiv:1606.04797v1, section 3, here with p in place of p^2 and with 1
added to both sides of the fraction. Focal Tversky: Abraham & Khan, "A Novel Focal Tversky Loss Function with Improved
Attention U-Net for Lesion Segmentation", ISBI 2019, arXiv:1810.07842v1, eq. 3 and 4 with alpha 0.7, beta 0.3 and
gamma 4/3 (so the power is 0.75), there summed over classes.
"""

from typing import Final

from ...data import IGNORE as IGNORE

SUMS: Final = {"both": ("cross_entropy", "dice")}   # losses that are sums of other losses
WEIGHTED: Final = ("cross_entropy", "bce")          # losses of pixels, which class weights multiply
TINY: Final = 1e-30      # lower bound of a count, so that a sum of 0 over no pixels gives 0
ALPHA: Final = 0.7       # weight of false negatives
BETA: Final = 0.3        # weight of false positives
GAMMA: Final = 4 / 3
SMALLEST: Final = 1e-7   # lower bound of 1 - TI: the derivative of its power is infinite at 0
