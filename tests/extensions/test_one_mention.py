"""One mention: which tokens may come again."""

import torch

from lamb.extensions.one_mention import OneMention


class Vocabulary:
    """What OneMention asks of a tokenizer: the start of a word is marked as BPE does."""

    tokens = (
        "</s>",
        "\u0120a",
        "\u0120baby",
        "\u0120cries",
        "\u0120person",
        "\u0120then",
        "ing",
        "\u0120cow",
        "\u2581waves",
    )

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


def test_words_of_sounds_are_excluded_once_they_are_generated():
    names = Vocabulary.tokens
    processor = OneMention(Vocabulary(), len(names) + 2)  # a matrix may have more rows than the tokenizer has tokens
    scores = torch.zeros(3, len(names) + 2)
    generated = torch.tensor([[1, 2, 3, 5], [1, 4, 8, 7], [0, 6, 6, 0]])
    after = processor(generated, scores)
    excluded = [{names[k] for k in row.isinf().nonzero()[:, 0]} for row in after]
    assert excluded == [{"\u0120baby", "\u0120cries"}, {"\u2581waves"}, set()]
    assert not processor(torch.zeros(3, 0, dtype=torch.long), scores).any()  # nothing generated yet
