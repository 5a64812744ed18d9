"""`lamb evaluate`: how well a model captions labelled recordings. The caption metrics (CIDEr-D ...) are not here yet.

A caption names a label when it holds a word of the label's list.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from .captioner import Captioner
from .captions import Caption
from .data import sources
from .data.manifest import Clip, read

# A star stands for any ending. Words that the captions of other labels need ("a rooster crows", "crickets chirp",
# "water is poured into a glass") are left out or asked for together with their subject.
LABEL_WORDS: dict[str, tuple[str, ...]] = {
    "airplane": ("airplane*", "aeroplane*", "plane", "planes", "aircraft", "jet"),
    "air_conditioner": ("air condition*", "ventilat*", "fan"),
    "breathing": ("breath*", "inhal*", "exhal*"),
    "brushing_teeth": ("teeth", "tooth*"),
    "can_opening": ("can", "soda", "beer"),
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
    "cow": ("cow", "cows", "moo*", "cattle"),
    "crackling_fire": ("fire", "campfire", "bonfire"),
    "crickets": ("cricket*",),
    "crow": ("crow", "crows caw", "caw*", "raven*"),
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
    "footsteps": ("footstep*", "walk*"),
    "frog": ("frog*", "croak*", "toad*"),
    "glass_breaking": ("shatter*", "glass breaks", "glass breaking"),
    "gun_shot": ("gun*", "shot*", "shoot*"),
    "hand_saw": ("saw", "saws", "sawing"),
    "helicopter": ("helicopter*",),
    "hen": ("hen", "hens", "chicken*", "cluck*"),
    "insects": ("insect*", "a fly", "bee", "bees"),
    "jackhammer": ("jackhammer*",),
    "keyboard_typing": ("keyboard*", "type", "types", "typing"),
    "laughing": ("laugh*", "giggl*"),
    "man_speaking": ("man", "men", "male", "males"),
    "mouse_click": ("mouse", "click*"),
    "pig": ("pig*", "oink*"),
    "pouring_water": ("pours water", "water pours", "water is poured", "pouring water", "water pouring"),
    "rain": ("rain*",),
    "rooster": ("rooster*",),
    "sea_waves": ("wave*", "sea", "ocean", "surf"),
    "sheep": ("sheep", "bleat*", "lamb*"),
    "siren": ("siren*",),
    "sneezing": ("sneez*",),
    "snoring": ("snor*",),
    "street_music": ("music*",),
    "thunderstorm": ("thunder*",),
    "toilet_flush": ("toilet*", "flush*"),
    "train": ("train*", "railway", "locomotive"),
    "vacuum_cleaner": ("vacuum*",),
    "washing_machine": ("washing machine*", "washer"),
    "water_drops": ("drip*", "drops", "droplet*"),
    "wind": ("wind",),
    "woman_speaking": ("woman", "women", "female", "females"),
}


def names(caption: str, label: str) -> bool:
    """Whether `caption` holds a word of the label's list."""
    words = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in LABEL_WORDS[label])
    return re.search(rf"\b(?:{words})\b", caption.lower()) is not None


def label_scores(clips: Sequence[Clip], results: Sequence[Caption]) -> dict[str, float]:
    """Label measures of labelled clips; a clip that could not be captioned counts as not named.

    label_named: share of (clip, label) pairs where the caption names the label; distinct_captions: how many there are.
    """
    pairs = [(result, label) for clip, result in zip(clips, results, strict=True) for label in clip.labels]
    named = [result.ok and names(result.text, label) for result, label in pairs]
    return {
        "clips": len(clips),
        "failed": sum(not result.ok for result in results),
        "label_named": sum(named) / len(named),
        "distinct_captions": len({result.text for result in results if result.ok}),
    }


def evaluate(model: str, data: str, split: str | None = None) -> dict[str, float]:
    """Caption a manifest (JSONL, CSV) or a folder of labelled recordings and score it.

    Raises ManifestError for data that cannot be used, ValueError for a clip whose label has no word list.
    """
    folder = Path(data)
    if folder.is_dir():
        clips = [clip for clip in sources.sounds(folder) if split is None or clip.split == split]
    else:
        clips = read(folder, split)
    unknown = {label for clip in clips for label in clip.labels} - LABEL_WORDS.keys()
    if unknown or not any(clip.labels for clip in clips):
        problem = f"labels without a word list: {', '.join(sorted(unknown))}" if unknown else "no labelled clips"
        raise ValueError(f"{data}: {problem}; the lists are LABEL_WORDS in lamb/evaluate.py")
    if any(clip.start or clip.duration for clip in clips):
        raise ValueError(f"{data}: clips that are a part of a recording cannot be evaluated yet; cut them into files")
    captioner = Captioner.load(model)
    results = list(captioner.stream([clip.path for clip in clips]))
    return label_scores(clips, results)
