"""How people say what a labelled recording holds (our own words): the phrase bank of the composed captions.

A line is `subject | finite verb phrase | -ing verb phrase`, so that every phrase serves as a clause ("a dog barks") and
as a noun phrase ("a dog barking").
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrase:
    subject: str
    finite: str
    ing: str

    @property
    def clause(self) -> str:
        return f"{self.subject} {self.finite}"

    @property
    def noun(self) -> str:
        return f"{self.subject} {self.ing}"


_BANK = """
airplane
  an airplane | flies overhead | flying overhead
  an airplane | passes by | passing by
  a plane | roars through the sky | roaring through the sky
  a jet plane | flies past | flying past
air_conditioner
  an air conditioner | hums | humming
  an air conditioner | runs steadily | running steadily
  an air conditioning unit | hums and whirs | humming and whirring
  an air conditioner | blows air | blowing air
breathing
  someone | breathes heavily | breathing heavily
  a person | breathes in and out | breathing in and out
  a person | is breathing | breathing
  a person | breathes deeply | breathing deeply
brushing_teeth
  someone | brushes their teeth | brushing their teeth
  a person | is brushing their teeth | brushing their teeth
  a toothbrush | scrubs teeth | scrubbing teeth
can_opening
  a can | is opened with a hiss | being opened with a hiss
  someone | opens a can | opening a can
  a soda can | pops open | popping open
  a drink can | cracks open and fizzes | cracking open and fizzing
car_horn
  a car horn | honks | honking
  a car | honks its horn | honking its horn
  a vehicle horn | blares | blaring
  a car horn | beeps in traffic | beeping in traffic
cat
  a cat | meows | meowing
  a cat | is meowing | meowing
  a kitten | meows | meowing
chainsaw
  a chainsaw | runs | running
  a chainsaw | revs and cuts wood | revving and cutting wood
  a chainsaw | buzzes loudly | buzzing loudly
children_playing
  children | play and shout | playing and shouting
  children | are playing outside | playing outside
  a group of children | plays and talks | playing and talking
  kids | shout and laugh as they play | shouting and laughing as they play
chirping_birds
  birds | chirp | chirping
  birds | sing and tweet | singing and tweeting
  a bird | chirps | chirping
  several birds | are chirping | chirping
church_bells
  church bells | ring | ringing
  a church bell | tolls | tolling
  church bells | chime | chiming
  large bells | ring out | ringing out
clapping
  people | clap | clapping
  an audience | applauds | applauding
  a crowd | claps and cheers | clapping and cheering
  someone | claps their hands | clapping their hands
clock_alarm
  an alarm clock | beeps | beeping
  an alarm clock | rings | ringing
  a digital alarm | beeps repeatedly | beeping repeatedly
clock_tick
  a clock | ticks | ticking
  a clock | ticks steadily | ticking steadily
  a clock | is ticking | ticking
coughing
  someone | coughs | coughing
  a person | coughs | coughing
  a person | coughs several times | coughing several times
cow
  a cow | moos | mooing
  a cow | is mooing | mooing
  cattle | moo | mooing
crackling_fire
  a fire | crackles | crackling
  a fire | burns and crackles | burning and crackling
  a campfire | crackles and pops | crackling and popping
crickets
  crickets | chirp | chirping
  crickets | are chirping | chirping
  crickets | chirp in the night | chirping in the night
crow
  a crow | caws | cawing
  crows | caw | cawing
  a crow | is cawing | cawing
crying_baby
  a baby | cries | crying
  an infant | cries loudly | crying loudly
  a baby | is crying | crying
  a baby | wails | wailing
dog
  a dog | barks | barking
  a dog | is barking | barking
  a dog | barks repeatedly | barking repeatedly
dog_bark
  a dog | barks | barking
  a dog | is barking | barking
  a dog | barks several times | barking several times
door_wood_creaks
  a door | creaks | creaking
  a wooden door | creaks open | creaking open
  a door | squeaks as it opens | squeaking as it opens
door_wood_knock
  someone | knocks on a door | knocking on a door
  a person | knocks on a wooden door | knocking on a wooden door
  someone | is knocking on a door | knocking on a door
drilling
  a drill | runs | running
  a power drill | drills into a surface | drilling into a surface
  someone | is drilling | drilling
  a drill | whirs loudly | whirring loudly
drinking_sipping
  someone | sips a drink | sipping a drink
  a person | drinks and swallows | drinking and swallowing
  someone | is drinking | drinking
  a person | slurps a drink | slurping a drink
engine
  an engine | runs | running
  an engine | starts and revs | starting and revving
  a car engine | runs | running
  a motor | rumbles | rumbling
engine_idling
  an engine | idles | idling
  an engine | is idling | idling
  a vehicle engine | idles steadily | idling steadily
  a truck engine | idles and rumbles | idling and rumbling
fireworks
  fireworks | explode | exploding
  fireworks | pop and crackle | popping and crackling
  fireworks | go off with bangs | going off with bangs
footsteps
  someone | walks with footsteps | walking with footsteps
  footsteps | sound on a hard floor | sounding on a hard floor
  a person | walks along | walking along
  footsteps | pass by | passing by
frog
  a frog | croaks | croaking
  frogs | croak | croaking
  a frog | is croaking | croaking
glass_breaking
  glass | breaks | breaking
  glass | shatters | shattering
  a glass | shatters on the floor | shattering on the floor
gun_shot
  a gun | fires | firing
  a gunshot | rings out | ringing out
  gunshots | are fired | being fired
  a gun | is shot | being shot
hand_saw
  a hand saw | cuts wood | cutting wood
  someone | saws wood by hand | sawing wood by hand
  a saw | cuts back and forth through wood | cutting back and forth through wood
helicopter
  a helicopter | flies overhead | flying overhead
  a helicopter | hovers | hovering
  helicopter blades | whir | whirring
hen
  a hen | clucks | clucking
  chickens | cluck | clucking
  a chicken | is clucking | clucking
insects
  an insect | buzzes | buzzing
  insects | buzz | buzzing
  a fly | buzzes around | buzzing around
  a bee | buzzes | buzzing
jackhammer
  a jackhammer | pounds | pounding
  a jackhammer | hammers into the ground | hammering into the ground
  a jackhammer | breaks up concrete | breaking up concrete
keyboard_typing
  someone | types on a keyboard | typing on a keyboard
  a keyboard | clacks as someone types | clacking as someone types
  a person | is typing on a computer keyboard | typing on a computer keyboard
laughing
  someone | laughs | laughing
  a person | is laughing | laughing
  people | laugh | laughing
  a person | giggles and laughs | giggling and laughing
man_speaking
  a man | speaks | speaking
  a man | talks | talking
  a man | is speaking | speaking
  an adult male | speaks | speaking
mouse_click
  a computer mouse | clicks | clicking
  someone | clicks a mouse | clicking a mouse
  a mouse button | is clicked | being clicked
noise
  static noise | hisses | hissing
  white noise | hisses steadily | hissing steadily
  steady noise | rushes | rushing
pig
  a pig | oinks | oinking
  a pig | grunts and snorts | grunting and snorting
  pigs | oink and squeal | oinking and squealing
pouring_water
  water | is poured | being poured
  someone | pours water into a glass | pouring water into a glass
  water | pours into a container | pouring into a container
rain
  rain | falls | falling
  rain | pours down | pouring down
  rain | falls on a surface | falling on a surface
  heavy rain | falls | falling
rooster
  a rooster | crows | crowing
  a rooster | is crowing | crowing
  a rooster | crows loudly | crowing loudly
sea_waves
  waves | crash on the shore | crashing on the shore
  ocean waves | roll in | rolling in
  the sea | washes over the shore | washing over the shore
  ocean waves | crash | crashing
sheep
  a sheep | bleats | bleating
  sheep | bleat | bleating
  a sheep | baas | baaing
siren
  a siren | wails | wailing
  an emergency siren | sounds | sounding
  a siren | blares as a vehicle passes | blaring as a vehicle passes
  a police siren | wails | wailing
sneezing
  someone | sneezes | sneezing
  a person | sneezes | sneezing
  a person | sneezes loudly | sneezing loudly
snoring
  someone | snores | snoring
  a person | is snoring | snoring
  a person | snores loudly | snoring loudly
street_music
  music | plays | playing
  street music | plays | playing
  musicians | play music | playing music
  music | is playing in the street | playing in the street
thunderstorm
  thunder | rumbles | rumbling
  thunder | cracks and rolls | cracking and rolling
  a thunderstorm | rages with thunder | raging with thunder
toilet_flush
  a toilet | flushes | flushing
  a toilet | is flushed | being flushed
  a toilet | flushes and water drains | flushing and draining
tone
  a steady tone | sounds | sounding
  a pure tone | beeps continuously | beeping continuously
  an electronic tone | hums | humming
train
  a train | passes by | passing by
  a train | moves along the tracks | moving along the tracks
  a train | clatters along the rails | clattering along the rails
vacuum_cleaner
  a vacuum cleaner | runs | running
  a vacuum cleaner | whirs | whirring
  someone | runs a vacuum cleaner | running a vacuum cleaner
washing_machine
  a washing machine | runs | running
  a washing machine | churns | churning
  a washing machine | spins and rumbles | spinning and rumbling
water_drops
  water | drips | dripping
  water | drips drop by drop | dripping drop by drop
  drops of water | fall | falling
wind
  wind | blows | blowing
  strong wind | howls | howling
  the wind | blows hard | blowing hard
woman_speaking
  a woman | speaks | speaking
  a woman | talks | talking
  a woman | is speaking | speaking
  an adult female | speaks | speaking
"""


def _parse(bank: str) -> dict[str, tuple[Phrase, ...]]:
    phrases: dict[str, list[Phrase]] = {}
    label = ""
    for line in bank.strip().splitlines():
        if line.startswith(" "):
            phrases[label].append(Phrase(*(part.strip() for part in line.split("|"))))
        else:
            label = line.strip()
            phrases[label] = []
    return {name: tuple(found) for name, found in phrases.items()}


PHRASES: dict[str, tuple[Phrase, ...]] = _parse(_BANK)
