"""The widget of chapter 03: the inputs of a layer by channel, as trained and with the outliers of a large model.

The inputs are computed once, when the widget is made. Moving a slider only draws.
"""

import copy

import ipywidgets
import torch

from qtutor.calibration.statistics import layer_inputs
from qtutor.course.widgets.explorer import Explorer, explore, html_table
from qtutor.decoder.outliers import add_outliers
from qtutor.families import decoder_blocks, family_of
from qtutor.measure.distributions import outlier_ratio
from qtutor.plots.distributions import tokens_and_channels


def activation_outliers(model: torch.nn.Module, token_ids: torch.Tensor) -> Explorer:
    """The inputs of any layer of ``model`` (a float decoder) while it reads ``token_ids``, int64 ``[1, length]``.

    Controls: the layer (one of those that share an input), with or without :func:`qtutor.add_outliers`, a linear or
    logarithmic axis, and the number of tokens.
    """
    length, family = token_ids.shape[1], family_of(model)
    inputs = {
        outliers: layer_inputs(decoder, token_ids, samples=length)
        for outliers, decoder in ((False, model), (True, add_outliers(copy.deepcopy(model))))
    }
    layers = [f"{i}.{names[0]}" for i in range(len(decoder_blocks(model))) for names in family.shared]

    def draw(layer, outliers, logarithmic, tokens):
        x = inputs[outliers][f"{family.blocks}.{layer}"].samples[:tokens]
        largest = x.abs().amax(dim=0)
        title = f"inputs of {layer}, {tokens} tokens{', with add_outliers' if outliers else ''}"
        return tokens_and_channels(x, title, log=logarithmic), html_table(
            ["largest |x|", "in channel", "of the median channel", "largest / median", "largest |x| of token 0"],
            [
                f"{largest.max():.2f}",
                int(largest.argmax()),
                f"{largest.median():.2f}",
                f"{outlier_ratio(largest).item():.1f}",
                f"{x[0].abs().max():.2f}",
            ],
        )

    def describe(layer, outliers, logarithmic, tokens):
        return (
            f"Inputs of {layer} for {tokens} tokens{', with add_outliers' if outliers else ''}: above, the largest of "
            f"each channel on a {'logarithmic' if logarithmic else 'linear'} axis; below, all inputs as a picture of "
            "tokens by channels. The numbers are in the table."
        )

    counts = sorted({min(count, length) for count in (1, 4, 16, 64, 256, length)})
    return explore(
        draw,
        frames={
            "layer": [layers[0], layers[-1]],
            "outliers": [False, True],
            "logarithmic": [False, True],
            "tokens": sorted({min(count, length) for count in (4, 64)}),
        },
        alt=describe,
        layer=ipywidgets.Dropdown(options=layers, index=0, description="layer"),
        outliers=ipywidgets.Checkbox(value=False, description="with add_outliers"),
        logarithmic=ipywidgets.Checkbox(value=False, description="logarithmic"),
        tokens=ipywidgets.SelectionSlider(options=counts, value=min(64, length), description="tokens"),
    )
