"""Which labels a caption names, and the measures of labelled recordings. [O]

A caption names a label when it holds a word of the label's list.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..inference.captions import Caption
from .manifest import Clip

# A star stands for any ending. Words that other captions need ("a rooster crows", "crickets chirp", "water is poured
# into a glass", "can be heard", "some type of") are left out or asked for together with a neighbour.
LABEL_WORDS: dict[str, tuple[str, ...]] = {
    "airplane": ("airplane*", "aeroplane*", "plane", "planes", "aircraft", "jet"),
    "air_conditioner": ("air condition*", "ventilat*", "fan"),
    "breathing": ("breath*", "inhal*", "exhal*"),
    "brushing_teeth": ("teeth", "tooth*"),
    "can_opening": ("a can", "the can", "cans", "drink can", "tin can", "soda", "beer"),
    "car_horn": ("horn", "horns", "honk*"),
    "cat": ("cat", "cats", "kitten*", "meow*"),
    "chainsaw": ("chainsaw*", "chain saw"),
    "children_playing": ("child", "children", "kid", "kids"),
    "chirping_birds": ("bird*", "tweet*"),
    "church_bells": ("bell", "bells"),
    "clapping": ("clap*", "applau*"),
    "clock_alarm": ("alarm*",),
    "clock_tick": ("tick", "ticks", "ticking", "ticktock"),
    "coughing": ("cough*",),
    "cow": ("cow", "cows", "moo", "moos", "mooing", "cattle"),
    "crackling_fire": ("fire", "campfire", "bonfire"),
    "crickets": ("cricket*",),
    "crow": ("a crow", "caw*", "raven*"),
    "crying_baby": ("baby", "babies", "infant*"),
    "dog": ("dog*", "bark*", "puppy"),
    "dog_bark": ("dog*", "bark*", "puppy"),
    "door_wood_creaks": ("creak*", "squeak*"),
    "door_wood_knock": ("knock*",),
    "drilling": ("drill*",),
    "drinking_sipping": ("drinks", "drinking", "sip*", "slurp*", "swallow*"),
    "engine": ("engine*", "motor*"),
    "engine_idling": ("engine*", "motor*", "idl*"),
    "fireworks": ("firework*", "firecracker*"),
    "footsteps": ("footstep*", "walk", "walks", "walking", "walked"),
    "frog": ("frog*", "croak*", "toad*"),
    "glass_breaking": ("shatter*", "glass breaks", "glass breaking"),
    "gun_shot": ("gun*", "shot*", "shoot*"),
    "hand_saw": ("saw", "saws", "sawing"),
    "helicopter": ("helicopter*",),
    "hen": ("hen", "hens", "chicken*", "cluck*"),
    "insects": ("insect*", "a fly", "bee", "bees"),
    "jackhammer": ("jackhammer*",),
    "keyboard_typing": ("keyboard*", "types on", "typing", "typewriter*"),
    "laughing": ("laugh*", "giggl*"),
    "man_speaking": ("man", "men", "male", "males"),
    "mouse_click": ("mouse", "click*"),
    "noise": ("noise*", "static"),
    "pig": ("pig", "pigs", "piglet*", "oink*"),
    "pouring_water": (
        "pours water",
        "pouring water",
        "water pour*",
        "water is poured",
        "water is being poured",
        "water being poured",
    ),
    "rain": ("rain*",),
    "rooster": ("rooster*",),
    "sea_waves": ("wave*", "sea", "ocean", "surf"),
    "sheep": ("sheep", "bleat*", "lamb*"),
    "silence": ("silen*",),
    "siren": ("siren*",),
    "sneezing": ("sneez*",),
    "snoring": ("snore*", "snoring"),
    "street_music": ("music*",),
    "thunderstorm": ("thunder*",),
    "tone": ("tone*",),
    "toilet_flush": ("toilet*", "flush*"),
    "train": ("train", "trains", "railway", "locomotive"),
    "vacuum_cleaner": ("vacuum*",),
    "washing_machine": ("washing machine*", "washer"),
    "water_drops": ("drip*", "drops of", "water drop*", "droplet*"),
    "wind": ("wind",),
    "woman_speaking": ("woman", "women", "female", "females"),
}


def place(caption: str, label: str) -> int | None:
    """Where `caption` holds the first word of the label's list, in characters; None where it holds none."""
    words = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in LABEL_WORDS[label])
    found = re.search(rf"\b(?:{words})\b", caption.lower())
    return None if found is None else found.start()


def names(caption: str, label: str) -> bool:
    """Whether `caption` holds a word of the label's list."""
    return place(caption, label) is not None


def label_scores(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, float]:
    """Label measures of labelled clips; a clip that could not be captioned counts as not named.

    label_named: share of (clip, label) pairs where the caption names the label; calibration_error: of the confidence
    that it does; distinct_captions: how many there are.
    """
    pairs = [(result, label) for clip, result in zip(clips, results, strict=True) for label in clip.labels]
    named = [result.ok and names(result.text, label) for result, label in pairs]
    return {
        "clips": len(clips),
        "failed": sum(not result.ok for result in results),
        "label_named": sum(named) / len(named),
        "calibration_error": calibration_error([result.confidence or 0.0 for result, _ in pairs], named),
        "distinct_captions": len({result.text for result in results if result.ok}),
    }


def fit_confidence(scores: Sequence[float], named: Sequence[bool]) -> tuple[float, float]:
    """(a, b) of confidence = sigmoid(a + b * logit(exp(score))) by logistic regression (Newton's method).

    A step that overshoots is halved until it gains. A weak pull towards the identity (0, 1) keeps the fit finite where
    the scores separate the two perfectly.
    """
    p = np.clip(np.exp(np.asarray(scores, dtype=float)), 1e-6, 1 - 1e-6)
    x = np.stack([np.ones_like(p), np.log(p / (1 - p))], 1)  # (clips, 2)
    y, prior = np.asarray(named, dtype=float), np.array([0.0, 1.0])

    def cost(w: NDArray[np.float64]) -> float:
        return float(np.logaddexp(0, x @ w).sum() - y @ (x @ w) + 0.05 * np.square(w - prior).sum())

    w = prior.copy()
    for _ in range(50):
        q = 0.5 + 0.5 * np.tanh(x @ w / 2)  # sigmoid
        gradient = x.T @ (q - y) + 0.1 * (w - prior)
        step = np.linalg.solve((x * (q * (1 - q))[:, None]).T @ x + 0.1 * np.eye(2), gradient)
        while cost(w - step) > cost(w) and np.abs(step).max() > 1e-9:
            step /= 2
        w -= step
    return float(w[0]), float(w[1])


def calibration_error(confidence: Sequence[float], named: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: mean of |share named - mean confidence| over equal-width bins, by their clips."""
    c, y = np.asarray(confidence), np.asarray(named, dtype=float)
    bin_of = np.minimum((c * bins).astype(int), bins - 1)
    gaps = [np.abs(y[bin_of == k].mean() - c[bin_of == k].mean()) * (bin_of == k).sum() for k in set(bin_of.tolist())]
    return float(sum(gaps) / len(c))
