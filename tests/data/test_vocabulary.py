"""Which labels a caption names."""

import pytest

from lamb.data.vocabulary import VOCABULARY, names


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A DOG barks.", "dog"),
        ("Barking in the distance.", "dog_bark"),
        ("A rooster crows, then a crow caws.", "crow"),
        ("Crows caw.", "crow"),
        ("A female speaks.", "woman_speaking"),
        ("An adult male speaks.", "man_speaking"),
        ("A car honks.", "car_horn"),
        ("Someone opens a can.", "can_opening"),
        ("A soda can pops open.", "can_opening"),
        ("Water pours into a glass.", "pouring_water"),
        ("The sound of water being poured.", "pouring_water"),
        ("A glass shatters.", "glass_breaking"),
        ("Raindrops fall.", "rain"),
        ("Gunshots are fired.", "gun_shot"),
        ("A man types on a keyboard.", "keyboard_typing"),
        ("Pigs squeal.", "pig"),
        ("Someone is snoring.", "snoring"),
        ("A washing machine spins.", "washing_machine"),
    ],
)
def test_names(caption, label):
    assert names(caption, label)


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A rooster crows.", "crow"),
        ("Roosters crow.", "crow"),
        ("Crickets chirp.", "chirping_birds"),
        ("A female speaks.", "man_speaking"),
        ("A woman and women talk.", "man_speaking"),
        ("A human voice.", "man_speaking"),
        ("Cattle low.", "cat"),
        ("Birds can be heard.", "can_opening"),
        ("A brain wave.", "rain"),
        ("A train passes.", "rain"),
        ("People train outside.", "rain"),
        ("A trainer shouts.", "train"),
        ("Pigeons coo.", "pig"),
        ("The moon is full.", "cow"),
        ("A horse snorts.", "snoring"),
        ("Some type of engine runs.", "keyboard_typing"),
        ("A man talks on a walkie-talkie.", "footsteps"),
        ("A man drops a box.", "water_drops"),
        ("Rain pours down.", "pouring_water"),
        ("Water drips.", "pouring_water"),
        ("A glass of water.", "glass_breaking"),
        ("A seal splashes.", "sea_waves"),
        ("Someone drinks from a can.", "drilling"),
        ("When it is late.", "hen"),
        ("A windy day.", "wind"),
        ("", "dog"),
    ],
)
def test_does_not_name(caption, label):
    assert not names(caption, label)


def test_every_label_has_words():
    for entry in VOCABULARY.values():
        assert entry.words
        assert all(word == word.lower().strip() and "*" not in word[:-1] for word in entry.words)
