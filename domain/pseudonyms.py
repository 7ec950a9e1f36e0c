"""Pseudonyms: what the public numbers call an account (money, section 11.2).

Stable and opaque: only who knows the secret can tell an account from its name.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

_ADJECTIVES = """
able active agile airy amber ample apt arctic artful autumn awake azure balmy basic beaming bold bonny brave breezy
bright brisk bronze busy calm candid caring cheery chief chilly civil clean clear clever cloudy cobalt cool copper
coral cosmic cosy cotton crafty crimson curious curly dainty dandy daring dashing dawn deep deft dewy dreamy dusky
dusty eager early earnest easy ebony elder elegant epic exact expert fair fancy fast fearless fern festive fine firm
fleet fluffy fond forest frank free fresh frosty funny gallant gentle giddy gilded glad gleaming glossy golden good
graceful grand grassy grateful great green handy happy hardy harmonic hazel hearty helpful hidden high honest
hopeful humble icy ideal indigo inner island ivory jade jaunty jazzy jolly jovial joyful jubilant keen kind kindly
lavender leafy light likely lilac limber lively lofty loud lovely loyal lucid lucky lunar magic major maple marble
maroon mellow merry mighty mild mindful misty modern modest mossy musical neat new nifty nimble noble northern novel
oaken ocean olive opal open orange orderly patient peaceful perky placid playful plucky plum polar polished polite
prime proud pure quaint quick quiet radiant rapid rare ready regal robust rosy ruby rural russet rustic sage sandy
sapphire satin scarlet serene shady sharp shiny silent silky silver simple sincere sleek smart smooth snowy social
solar solid sonic southern spry stable starry steady stellar still stout sturdy subtle summer sunny super sure sweet
swift tall teal tender thankful tidy topaz tranquil true trusty twilight upbeat urban valiant velvet verdant vibrant
violet vivid warm wise witty woven
"""

_ANIMALS = """
aardvark albatross alpaca anchovy antelope armadillo auk axolotl baboon badger bandicoot barbet barnacle bass bat
beagle bear beaver beetle bison bittern blackbird bluebird bluejay boar bobolink bonobo booby bream buffalo
bullfinch burbot bustard butterfly buzzard caiman camel capybara caracal cardinal caribou carp cassowary catfish
chaffinch chameleon chamois cheetah chickadee chipmunk chough cicada civet clam coati cod collie condor coot coral
cormorant cougar coyote crab crane crayfish cricket crossbill cuckoo curlew cuttlefish dabchick deer dingo dolphin
donkey dormouse dotterel dove dragonfly dugong dunlin dunnock eagle echidna eel eider eland elephant elk emu ermine
ferret fieldfare finch firefly flamingo flounder fox frigate frog fulmar gadwall galago gazelle gecko gerbil gibbon
giraffe gnu godwit goldfinch goose gopher goshawk grebe grouper grouse guanaco gull guppy haddock hamster hare
harrier hawfinch hawk hedgehog herring hobby hoopoe hornbill horse hummingbird husky ibis iguana impala jackal
jackdaw jaguar jerboa kakapo kangaroo kestrel kingfisher kite koala kookaburra kudu ladybird lamprey lapwing lemming
lemur leopard linnet lion lizard lobster loon lorikeet lynx macaw mackerel mallard manatee mandrill marlin marmot
marten meerkat merlin mink mole mongoose moorhen mouse mule muskrat narwhal newt nightingale numbat nuthatch ocelot
octopus okapi opossum oriole oryx osprey otter ouzel owl oyster pangolin panther parrot partridge peacock pelican
perch pheasant pigeon pika pike pilchard plaice platypus plover pony porcupine porpoise puma quail quokka quoll
rabbit raccoon ray redstart reindeer robin roebuck rook salmon sandpiper seal serval shrew skylark snipe sparrow
squirrel starling stoat stork swan swift tapir tern thrush tiger trout turtle vole wallaby walrus warbler whale wolf
wombat woodpecker wren yak
"""


ADJECTIVES = tuple(_ADJECTIVES.split())
ANIMALS = tuple(_ANIMALS.split())


def pseudonyms_of(account_ids: Iterable[str], secret: bytes) -> dict[str, str]:
    """Each account's name, such as ``calm-heron-0417``. Of two that would share one, the later gets a longer number."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for account_id in account_ids:
        name = _name(account_id, secret, digits=4)
        if name in taken:
            name = _name(account_id, secret, digits=6)
        taken.add(name)
        names[account_id] = name
    return names


def _name(account_id: str, secret: bytes, *, digits: int) -> str:
    if not account_id:
        return "anon"
    digest = hmac.digest(secret, account_id.encode(), "sha256")
    adjective = ADJECTIVES[int.from_bytes(digest[0:2], "big") % len(ADJECTIVES)]
    animal = ANIMALS[int.from_bytes(digest[2:4], "big") % len(ANIMALS)]
    return f"{adjective}-{animal}-{int.from_bytes(digest[4:8], 'big') % 10**digits:0{digits}}"
