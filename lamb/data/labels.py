"""Which labels a caption names: those of whose words it contains one. [O]"""

import re

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
