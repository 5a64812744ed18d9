"""How people say what a labelled recording holds (our own words): the phrase bank of the composed captions.

A line is `subject | finite verb phrase | -ing verb phrase`, so that every phrase serves as a clause ("a dog barks") and
as a noun phrase ("a dog barking"). Of sounds that can be counted, `| any` marks a phrase that takes a number of times
("a dog barks twice"), `| many` one that says there are several.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrase:
    subject: str
    finite: str
    ing: str
    times: str = ""  # "any": a number of times may follow; "many": says that there are several

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
  an airplane | flies by | flying by
air_conditioner
  an air conditioner | hums | humming
  an air conditioner | runs steadily | running steadily
  an air conditioning unit | hums and whirs | humming and whirring
  an air conditioner | blows air | blowing air
  an air conditioner | is running | running
breathing
  someone | breathes heavily | breathing heavily
  a person | breathes in and out | breathing in and out
  a person | is breathing | breathing
  a person | breathes deeply | breathing deeply
brushing_teeth
  someone | brushes their teeth | brushing their teeth
  a person | is brushing their teeth | brushing their teeth
  a toothbrush | scrubs teeth | scrubbing teeth
  someone | is brushing their teeth | brushing their teeth
can_opening
  a can | is opened with a hiss | being opened with a hiss
  someone | opens a can | opening a can
  a soda can | pops open | popping open
  a drink can | cracks open and fizzes | cracking open and fizzing
  a can | is opened | being opened
car_horn
  a car horn | honks | honking | any
  a car | honks its horn | honking its horn | any
  a car horn | sounds | sounding | any
  a vehicle horn | blares | blaring
  a car horn | beeps in traffic | beeping in traffic | many
cat
  a cat | meows | meowing | any
  a cat | is meowing | meowing
  a kitten | meows | meowing | any
  a cat | meows loudly | meowing loudly
chainsaw
  a chainsaw | runs | running
  a chainsaw | revs and cuts wood | revving and cutting wood
  a chainsaw | buzzes loudly | buzzing loudly
  a chainsaw | is running | running
  a chainsaw | cuts through wood | cutting through wood
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
  people | are clapping | clapping
clock_alarm
  an alarm clock | beeps | beeping
  an alarm clock | rings | ringing
  a digital alarm | beeps repeatedly | beeping repeatedly
  an alarm | beeps | beeping
clock_tick
  a clock | ticks | ticking
  a clock | ticks steadily | ticking steadily
  a clock | is ticking | ticking
  a clock | ticks loudly | ticking loudly
coughing
  someone | coughs | coughing | any
  a person | coughs | coughing | any
  a person | is coughing | coughing
cow
  a cow | moos | mooing | any
  a cow | is mooing | mooing
  cattle | moo | mooing
  a cow | moos loudly | mooing loudly
crackling_fire
  a fire | crackles | crackling
  a fire | burns and crackles | burning and crackling
  a campfire | crackles and pops | crackling and popping
  a fire | is burning and crackling | burning and crackling
crickets
  crickets | chirp | chirping
  crickets | are chirping | chirping
  crickets | chirp in the night | chirping in the night
crow
  a crow | caws | cawing | any
  crows | caw | cawing | many
  a crow | is cawing | cawing
  a crow | calls out | calling out
crying_baby
  a baby | cries | crying
  an infant | cries loudly | crying loudly
  a baby | is crying | crying
  a baby | wails | wailing
  a baby | cries loudly | crying loudly
dog
  a dog | barks | barking | any
  a dog | is barking | barking
  a dog | barks loudly | barking loudly
dog_bark
  a dog | barks | barking | any
  a dog | is barking | barking
  a dog | barks loudly | barking loudly
  dogs | bark | barking | many
door_wood_creaks
  a door | creaks | creaking
  a wooden door | creaks open | creaking open
  a door | squeaks as it opens | squeaking as it opens
  a door | creaks slowly | creaking slowly
door_wood_knock
  someone | knocks on a door | knocking on a door | any
  a person | knocks on a wooden door | knocking on a wooden door | any
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
  someone | takes a sip of a drink | taking a sip of a drink
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
  a car engine | idles | idling
fireworks
  fireworks | explode | exploding
  fireworks | pop and crackle | popping and crackling
  fireworks | go off with bangs | going off with bangs
  fireworks | go off | going off
footsteps
  someone | walks with footsteps | walking with footsteps
  footsteps | sound on a hard floor | sounding on a hard floor
  a person | walks along | walking along
  footsteps | pass by | passing by
frog
  a frog | croaks | croaking | any
  frogs | croak | croaking | many
  a frog | is croaking | croaking
glass_breaking
  glass | breaks | breaking
  glass | shatters | shattering
  a glass | shatters on the floor | shattering on the floor
  a glass | breaks into pieces | breaking into pieces
gun_shot
  a gun | fires | firing | any
  a gunshot | rings out | ringing out
  gunshots | are fired | being fired | many
  a gun | is shot | being shot | any
  gunshots | ring out | ringing out | many
hand_saw
  a hand saw | cuts wood | cutting wood
  someone | saws wood by hand | sawing wood by hand
  a saw | cuts back and forth through wood | cutting back and forth through wood
  someone | is sawing wood | sawing wood
helicopter
  a helicopter | flies overhead | flying overhead
  a helicopter | hovers | hovering
  helicopter blades | whir | whirring
  a helicopter | flies | flying
  a helicopter | passes overhead | passing overhead
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
  a jackhammer | is running | running
keyboard_typing
  someone | types on a keyboard | typing on a keyboard
  a keyboard | clacks as someone types | clacking as someone types
  a person | is typing on a computer keyboard | typing on a computer keyboard
  someone | types quickly on a keyboard | typing quickly on a keyboard
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
  a man | says something | saying something
mouse_click
  a computer mouse | clicks | clicking | any
  someone | clicks a mouse | clicking a mouse | any
  a mouse button | is clicked | being clicked | any
noise
  static noise | hisses | hissing
  white noise | hisses steadily | hissing steadily
  steady noise | rushes | rushing
  noise | hisses | hissing
pig
  a pig | oinks | oinking
  a pig | grunts and snorts | grunting and snorting
  pigs | oink and squeal | oinking and squealing
  a pig | snorts | snorting
pouring_water
  water | is poured | being poured
  someone | pours water into a glass | pouring water into a glass
  water | pours into a container | pouring into a container
  water | is being poured | being poured
rain
  rain | falls | falling
  rain | pours down | pouring down
  rain | falls on a surface | falling on a surface
  heavy rain | falls | falling
  rain | is falling | falling
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
  a sheep | bleats | bleating | any
  sheep | bleat | bleating | many
  a sheep | baas | baaing | any
  a sheep | is bleating | bleating
siren
  a siren | wails | wailing
  an emergency siren | sounds | sounding
  a siren | blares as a vehicle passes | blaring as a vehicle passes
  a police siren | wails | wailing
sneezing
  someone | sneezes | sneezing | any
  a person | sneezes | sneezing | any
  a person | sneezes loudly | sneezing loudly
snoring
  someone | snores | snoring
  a person | is snoring | snoring
  a person | snores loudly | snoring loudly
  someone | is snoring | snoring
street_music
  music | plays | playing
  street music | plays | playing
  musicians | play music | playing music
  music | is playing in the street | playing in the street
  a band | plays music | playing music
thunderstorm
  thunder | rumbles | rumbling
  thunder | cracks and rolls | cracking and rolling
  a thunderstorm | rages with thunder | raging with thunder
  thunder | roars | roaring
toilet_flush
  a toilet | flushes | flushing
  a toilet | is flushed | being flushed
  a toilet | flushes and water drains | flushing and draining
  someone | flushes a toilet | flushing a toilet
tone
  a steady tone | sounds | sounding
  a pure tone | sounds continuously | sounding continuously
  an electronic tone | hums | humming
  a tone | beeps continuously | beeping continuously
train
  a train | passes by | passing by
  a train | moves along the tracks | moving along the tracks
  a train | clatters along the rails | clattering along the rails
  a train | rolls by | rolling by
vacuum_cleaner
  a vacuum cleaner | runs | running
  a vacuum cleaner | whirs | whirring
  someone | runs a vacuum cleaner | running a vacuum cleaner
  a vacuum cleaner | is running | running
washing_machine
  a washing machine | runs | running
  a washing machine | churns | churning
  a washing machine | spins and rumbles | spinning and rumbling
  a washing machine | is running | running
water_drops
  water | drips | dripping
  water | drips drop by drop | dripping drop by drop
  drops of water | fall | falling
  water drops | fall | falling
wind
  wind | blows | blowing
  strong wind | howls | howling
  the wind | blows hard | blowing hard
  wind | blows strongly | blowing strongly
woman_speaking
  a woman | speaks | speaking
  a woman | talks | talking
  a woman | is speaking | speaking
  an adult female | speaks | speaking
  a woman | says something | saying something
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
