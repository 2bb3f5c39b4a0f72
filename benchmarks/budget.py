"""Which prediction of a layer's loss chooses bits best? Tried on the embedded decoder, at a mean of 2.5 and 3.5 bits.

    python benchmarks/budget.py

There are three predictions, from the calibration text alone:

    output error   |X (W - Q)^T|^2 / |X W^T|^2 of the layer; every layer counts alike
    weighted       output error weighted by squared gradients of the model's own predictions (qtutor.budget.sensitivity)
    layer by layer KL of the model in which only this layer is rounded, measured for each layer and each number of bits

The script prints three things for each prediction: its correlation with the KL on held-out code (of logarithms, over
layers at 3 and 4 bits); its processor time on one thread; and the KL on held-out code of the model whose bits it chose,
rounded to nearest and with GPTQ, as a share of the KL that interpolation between the two nearest whole numbers of bits
gives. It takes about ten minutes.
"""

import copy
import time

import torch

import qtutor
from qtutor import budget
from qtutor.decoder.text import calibration_tokens
from qtutor.families import linear_layers
from qtutor.methods import rtn

GROUP = 64
TOKENS = 4096  # of the calibration text; used for the predictions that are measured
BITS = (2.5, 3.5)


def main():
    torch.set_num_threads(1)
    model, tokenizer = qtutor.load_decoder()
    calibration, held_out = calibration_tokens(), qtutor.evaluate.held_out_tokens(tokenizer, 16_384)
    recipes = qtutor.Recipe(group_size=GROUP).of_layers(linear_layers(model))
    read = calibration.flatten()[:TOKENS]
    tables, seconds = {}, {}
    for name, predict in {
        "output error": lambda: output_errors(model, read),
        "weighted": lambda: budget.losses(model, calibration, recipes),
        "layer by layer": lambda: alone(model, read, recipes, budget.CHOICES),
    }.items():
        begin = time.process_time()
        tables[name] = predict()
        seconds[name] = time.process_time() - begin
    measured = alone(model, held_out, recipes, (3, 4))
    uniform = {
        method: {bits: kl(model, qtutor.Recipe(method, bits, GROUP), held_out) for bits in (2, 3, 4)}
        for method in ("rtn", "gptq")
    }
    print(f"KL, all layers alike: {uniform}")
    print("| prediction | correlation | seconds | mean bits | rtn KL | / interpolated | gptq KL | / interpolated |")
    print("|---|---|---|---|---|---|---|---|")
    weights = {name: layer.weight.numel() for name, layer in linear_layers(model).items()}
    sizes = {name: {bits: bits * count for bits in budget.CHOICES} for name, count in weights.items()}
    for name, table in tables.items():
        for bits in BITS:
            chosen = budget.allocate(sizes, table, bits * sum(weights.values()), "bits")
            layers = {layer: {"bits": count} for layer, count in chosen.items()}
            cells = []
            for method, known in uniform.items():
                found = kl(model, qtutor.Recipe(method, group_size=GROUP, layers=layers), held_out)
                middle = (known[int(bits)] + known[int(bits) + 1]) / 2
                cells += [f"{found:.4f}", f"{found / middle:.2f}"]
            head = [name, f"{correlation(table, measured):.2f}", f"{seconds[name]:.1f}", str(bits)]
            print("| " + " | ".join(head + cells) + " |", flush=True)


def kl(model, recipe, ids) -> float:
    """KL of ``model`` quantized by ``recipe`` to itself, nats a token."""
    candidate = copy.deepcopy(model)
    qtutor.quantize(candidate, recipe, progress=False)
    return qtutor.evaluate.compare(candidate, model, ids).kl


def alone(model, ids, recipes, choices) -> budget.Table:
    """KL with one layer rounded at a time."""
    table = {}
    for name in recipes:
        others = {other: "float" for other in recipes if other != name}
        table[name] = {
            bits: kl(model, qtutor.Recipe(bits=bits, group_size=GROUP, layers=others), ids) for bits in choices
        }
    return table


@torch.no_grad()
def output_errors(model, ids) -> budget.Table:
    """Relative squared error of each layer's output on ``ids``."""
    inputs, layers = {}, linear_layers(model)
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0].flatten(0, -2)}))
        for name, layer in layers.items()
    ]
    model(ids.reshape(-1, 512), use_cache=False)
    for hook in hooks:
        hook.remove()
    table = {}
    for name, layer in layers.items():
        x, weight = inputs[name], layer.weight
        backs = {bits: rtn.quantize(weight, qtutor.IntGrid(bits), GROUP).dequantize() for bits in budget.CHOICES}
        whole = (x @ weight.T).square().sum()
        table[name] = {bits: ((x @ (weight - back).T).square().sum() / whole).item() for bits, back in backs.items()}
    return table


def correlation(table: budget.Table, measured: budget.Table) -> float:
    pairs = [(table[name][bits], value) for name, row in measured.items() for bits, value in row.items()]
    return torch.corrcoef(torch.tensor(pairs).log().T)[0, 1].item()


if __name__ == "__main__":
    main()
