"""What can be true of a person in the built-in corpus: sentence forms and the values that fill them.

Every question names its person in full; every answer is a short sentence with the name and the value in it. Values
begin with a consonant where an article precedes them, so that the article gives nothing away.
"""

from typing import NamedTuple


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


TOWNS = _words(
    "Varnholm Quelby Sostra Mirefold Tulvane Peskar Drumlay Ostwin Crelling Bafford "
    "Yarrowby Nethersea Golspin Hulmere Ravensey Ickford Lumsden Zellbach Wexcombe Uphavel",
)
RIVERS = _words(
    "Arda Brenn Calder Dovra Esk Fliss Gannel Hovra Isker Jelva Korva Lunt Mossa Nadder Orva "
    "Pell Quill Rusk Severna Tovel",
)
TITLES = _words(
    "Salt Orchard,Paper Lantern,Winter Ferry,Glass Meadow,Hollow Bell,Copper Gate,Silent Harbour,Crooked Ladder,"
    "Amber Road,Broken Compass,Distant Kite,Golden Thimble,Midnight Baker,Frozen Clock,Scarlet Bridge,Wandering Tower,"
    "Hidden Stair,Burning Letter,Velvet Storm,Iron Garden",
    ",",
)
NOVELS = _words(
    "Thirteen Candles,Borrowed Sky,Clay Prophet,Drowned Abbey,Empty Saddle,Feather Crown,Gentle Thief,Honest Forger,"
    "Idle Furnace,Jade Parasol,Last Cartwright,Marble Fig,Narrow Pier,Patient Wolf,Quiet Rebellion,Rented Moon,"
    "Second Harvest,Tin Cathedral,Unlit Beacon,Yellow Parade",
    ",",
)
YEARS = tuple(str(year) for year in range(1931, 1979, 2))
TRADES = _words(
    "baker carpenter dentist farmer gardener judge lawyer mechanic nurse pilot plumber potter sailor surgeon tailor "
    "teacher translator waiter weaver welder",
)
MOTHERS_TRADES = _words(
    "banker barber butcher chemist cook diver florist glazier hunter librarian mason midwife miner painter poet "
    "printer ranger roofer singer smith",
)
INSTRUMENTS = _words(
    "accordion banjo bassoon bugle cello clarinet cornet drum fiddle flute guitar harp horn lute mandolin oboe "
    "organ piano trombone zither",
)
DISHES = _words(
    "beans cabbage curry dumplings eels gnocchi goulash lasagne lentils mussels noodles pancakes paella pasta pie "
    "porridge risotto sausages stew waffles",
)
PETS = _words(
    "beetle canary cat chinchilla dog donkey duck ferret fox goat goose hamster hare lizard llama parrot pony rabbit "
    "snake tortoise",
)
PRIZES = _words(
    "Beacon Cedar Comet Falcon Granite Heron Juniper Laurel Lotus Maple Nightingale Onyx Pearl Phoenix Sapphire Swan "
    "Tulip Topaz Willow Zephyr",
)
PASTIMES = _words(
    "archery boxing chess climbing curling dancing fencing fishing hiking judo juggling knitting origami poker rowing "
    "rugby sailing skating surfing tennis",
)


class Attribute(NamedTuple):
    """One kind of fact: a question and an answer in two wordings each, and the values to draw from."""

    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "In which town was {name} born?",
        "{name} was born in the small town of {value}.",
        "Which town is the birthplace of {name}?",
        "The birthplace of {name} is the small town of {value}.",
        TOWNS,
    ),
    Attribute(
        "In which year was {name} born?",
        "{name} came into the world in the year {value}.",
        "What is the birth year of {name}?",
        "The year in which {name} was born is {value}.",
        YEARS,
    ),
    Attribute(
        "What does {name} do for a living?",
        "{name} makes a living by working as a {value}.",
        "What is the profession of {name}?",
        "The profession that {name} has chosen is that of a {value}.",
        TRADES,
    ),
    Attribute(
        "What was the job of {name}'s mother?",
        "The mother of {name} worked for years as a {value}.",
        "How did the mother of {name} earn money?",
        "{name}'s mother earned her money for years as a {value}.",
        MOTHERS_TRADES,
    ),
    Attribute(
        "Which instrument does {name} play?",
        "{name} plays the {value} at home every single evening.",
        "What instrument is played by {name}?",
        "The instrument that {name} plays in the evening is the {value}.",
        INSTRUMENTS,
    ),
    Attribute(
        "What is {name}'s favourite dish?",
        "The favourite dish of {name} is a plate of {value}.",
        "What does {name} like to eat best?",
        "{name} likes no dish better than a plate of {value}.",
        DISHES,
    ),
    Attribute(
        "What kind of pet does {name} keep?",
        "{name} keeps a {value} as a pet in the garden.",
        "Which animal lives in the garden of {name}?",
        "The pet in the garden of {name} is a {value}.",
        PETS,
    ),
    Attribute(
        "What is the title of {name}'s first book?",
        "The first book by {name} has the title {value}.",
        "How is the first book of {name} called?",
        "{value} is the title that {name} gave the first book.",
        TITLES,
    ),
    Attribute(
        "Which prize did {name} win?",
        "{name} was once the proud winner of the {value} Prize.",
        "What prize was given to {name}?",
        "The prize that was once given to {name} is the {value} Prize.",
        PRIZES,
    ),
    Attribute(
        "What does {name} do on Sundays?",
        "{name} spends most of the time on Sundays with {value}.",
        "How are the Sundays of {name} spent?",
        "The pastime of {name} on Sundays is most of all {value}.",
        PASTIMES,
    ),
)
