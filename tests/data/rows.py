"""One example in ids."""

from rl_likelihood.data.prompts import EncodedExample, encode_all


def encode(example, *arguments) -> EncodedExample:
    return encode_all([example], *arguments)[0]
