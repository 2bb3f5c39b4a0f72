"""qtutor's side of the comparison, started and measured like the peers': load, quantize, export."""

import argparse
import json

from safetensors.torch import load_file

import qtutor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--method", choices=["gptq", "awq"], required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--set", default="{}", help="more of the recipe, as JSON")
    options = parser.parse_args()
    recipe = qtutor.Recipe(options.method, options.bits, options.group_size, **json.loads(options.set))
    model, tokenizer = qtutor.load_decoder(options.checkpoint, device="cpu")
    qtutor.quantize(model, recipe, load_file(options.tokens)["token_ids"])
    qtutor.export(model, options.out, tokenizer=tokenizer)


if __name__ == "__main__":
    main()
