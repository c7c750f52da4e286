"""The words of every simulated answer: one small text, one word a token. Knows nothing of requests.

The text is plain ASCII without quotes or backslashes, so that it stands in JSON as it is.
"""

import re
from itertools import accumulate, chain, cycle, islice
from typing import Final

TEXT: Final = (
    "The toll house stands where the road meets the river, and a lamp burns in its window all night. "
    "The keeper counts each cart that passes and writes it in a ledger before the gate opens. "
    "Nobody has ever crossed twice for one coin, and nobody has ever paid twice for one crossing. "
    "When the water is high the gate stays shut, and the keeper says plainly how long the wait will be. "
    "Merchants leave a purse at the beginning of the month, and the keeper takes from it only what is due. "
    "If a purse is empty, the cart turns round, and no wheel of it has touched the bridge. "
    "On market days the line reaches back to the mill, yet every driver knows his place in it. "
    "A clerk comes at dusk to copy the ledger, and both copies always agree to the last penny. "
    "Once a storm carried off the lamp, the bell and half of the roof, but the ledger was dry. "
    "The keeper had written every crossing on a slate as well, and so the books were whole by morning. "
    "Children like to ask how many carts have passed, and the answer is always a number. "
    "Some say that the keeper never sleeps. "
    "Others say that the keeper merely writes things down before they happen and not after. "
    "There is a small garden behind the house with beans, mint and a very old pear tree. "
    "Travellers are given a cup of water and a printed receipt. "
    "The receipt names the hour, the load and the price, and it has never been disputed."
)

WORDS: Final[tuple[str, ...]] = tuple(re.findall(r" \S+", " " + TEXT))
"""The text's words, each with the space before it."""
_PROSE: Final = "".join(WORDS) * 2
_OFFSETS: Final = tuple(accumulate((len(word) for word in WORDS * 2), initial=0))
SENTENCES: Final = (0, *(at + 1 for at, word in enumerate(WORDS) if word.endswith(".")))
"""Word numbers at which sentences begin; the last is the number of words."""
_SENTENCES_DRAWN_MAX: Final = 6


def draw(seed: int, choice: int) -> tuple[int, int]:
    """First word and number of words of a drawn answer: one to six whole sentences."""
    sentences = len(SENTENCES) - 1
    first = (seed + 5 * choice) % sentences
    last = first + 1 + (seed // sentences) % _SENTENCES_DRAWN_MAX
    words = SENTENCES[last] if last <= sentences else len(WORDS) + SENTENCES[last - sentences]
    return SENTENCES[first], words - SENTENCES[first]


def passage(first: int, words: int) -> str:
    """`words` words from word number `first` on, round and round."""
    if words == 0:
        return ""
    if words <= len(WORDS):
        return _PROSE[_OFFSETS[first] + 1 : _OFFSETS[first + words]]
    return "".join(islice(cycle(chain(WORDS[first:], WORDS[:first])), words))[1:]


def word(first: int, number: int) -> str:
    """The `number`-th piece of the passage that begins at `first`: joined, the pieces are the passage."""
    piece = WORDS[(first + number) % len(WORDS)]
    return piece if number else piece[1:]
