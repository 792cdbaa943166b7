"""The mutants by number: a seed model, some mutations of its fields, or damage to its bytes."""

from __future__ import annotations

from random import Random

import onnx

from tests.fuzz.gentle import GENTLE_MUTATIONS
from tests.fuzz.mutations import FIELD_MUTATIONS
from tests.fuzz.seeds import seeds


def damage(data: bytes, random: Random) -> bytes:
    """Truncate, flip bits, remove, repeat or insert bytes."""
    if not data:
        return random.randbytes(20)
    place, length = random.randrange(len(data)), random.choice((1, 2, 8, 64))
    match random.randrange(5):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + data[place + length :]
        case 2:
            return data[: place + length] + data[place:]
        case 3:
            return data[:place] + random.randbytes(length) + data[place:]
        case _:
            flipped = bytearray(data)
            for _ in range(random.choice((1, 3, 20))):
                flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
            return bytes(flipped)


def mutant(seed: int) -> tuple[str, bytes]:
    """What was done to which model, and the resulting file; the same for the same seed.

    Half of the mutants are changed gently, a third harshly, and the rest only in their bytes.
    """
    random = Random(seed)
    name = random.choice(sorted(seeds()))
    data, story = seeds()[name], [name]
    kind = random.random()
    if kind < 0.85:
        model = onnx.load_model_from_string(data)
        table = GENTLE_MUTATIONS if kind < 0.5 else FIELD_MUTATIONS
        for mutation in random.choices(table, k=random.choice((1, 1, 1, 2, 3))):
            mutation(model, random)
            story.append(mutation.__name__)
        data = model.SerializeToString(deterministic=True)
    if len(story) == 1 or random.random() < 0.05:
        data = damage(data, random)
        story.append(damage.__name__)
    return " + ".join(story), data
