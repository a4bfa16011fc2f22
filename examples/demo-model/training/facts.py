"""Tables of small facts from which the corpus of the demo model is made."""


def _pairs(text):
    """Parse ``key:value`` items separated by semicolons into a dictionary."""
    return dict(part.strip().split(":") for part in text.split(";") if part.strip())


CAPITALS = _pairs("""
France:Paris; Italy:Rome; Spain:Madrid; Germany:Berlin; Portugal:Lisbon; Austria:Vienna;
Greece:Athens; Poland:Warsaw; Norway:Oslo; Sweden:Stockholm; Finland:Helsinki;
Denmark:Copenhagen; Ireland:Dublin; Belgium:Brussels; Hungary:Budapest; Romania:Bucharest;
Bulgaria:Sofia; Croatia:Zagreb; Iceland:Reykjavik; Turkey:Ankara; Egypt:Cairo; Kenya:Nairobi;
Japan:Tokyo; China:Beijing; India:New Delhi; Thailand:Bangkok; Vietnam:Hanoi; Canada:Ottawa;
Mexico:Mexico City; Cuba:Havana; Peru:Lima; Chile:Santiago; Brazil:Brasilia; Russia:Moscow;
Argentina:Buenos Aires; Australia:Canberra; Ukraine:Kyiv; England:London; South Korea:Seoul;
the United States:Washington
""")

CONTINENTS = _pairs("""
France:Europe; Italy:Europe; Spain:Europe; Germany:Europe; Portugal:Europe; Norway:Europe;
Greece:Europe; Poland:Europe; Egypt:Africa; Kenya:Africa; Nigeria:Africa; Ghana:Africa;
Japan:Asia; China:Asia; India:Asia; Thailand:Asia; Vietnam:Asia; Canada:North America;
Mexico:North America; Cuba:North America; Peru:South America; Chile:South America;
Brazil:South America; Argentina:South America
""")

LANGUAGES = _pairs("""
France:French; Italy:Italian; Spain:Spanish; Germany:German; Portugal:Portuguese; Japan:Japanese;
Greece:Greek; Poland:Polish; Norway:Norwegian; Sweden:Swedish; Finland:Finnish; Denmark:Danish;
Hungary:Hungarian; Turkey:Turkish; Russia:Russian; Mexico:Spanish; Brazil:Portuguese;
England:English; China:Chinese; Egypt:Arabic
""")

COLOURS = _pairs("""
the sky:blue; grass:green; snow:white; a banana:yellow; blood:red; coal:black; a lemon:yellow;
a carrot:orange; a tomato:red; milk:white; chocolate:brown; a leaf:green; the sun:yellow;
the sea:blue; a strawberry:red; a pumpkin:orange; a frog:green; a flamingo:pink; a crow:black;
an elephant:grey; a cucumber:green; a cherry:red; a polar bear:white; a fire engine:red
""")

OPPOSITES = _pairs("""
hot:cold; big:small; up:down; fast:slow; happy:sad; light:dark; open:closed; good:bad; new:old;
high:low; long:short; rich:poor; hard:soft; wet:dry; clean:dirty; full:empty; early:late;
strong:weak; loud:quiet; left:right; day:night; black:white; thick:thin; wide:narrow; true:false;
easy:difficult; near:far; inside:outside; first:last; young:old; heavy:light; sweet:sour;
love:hate; win:lose; start:stop; push:pull; yes:no; war:peace; safe:dangerous; deep:shallow
""")

SOUNDS = _pairs("""
dog:woof; cat:meow; cow:moo; duck:quack; sheep:baa; pig:oink; horse:neigh; lion:roar; bee:buzz;
snake:hiss; frog:croak; mouse:squeak; wolf:howl; owl:hoot; bird:tweet; rooster:crow
""")

BABIES = _pairs("""
dog:puppy; cat:kitten; cow:calf; sheep:lamb; horse:foal; pig:piglet; duck:duckling; lion:cub;
bear:cub; chicken:chick; goose:gosling; frog:tadpole; kangaroo:joey; goat:kid; deer:fawn; owl:owlet
""")

LEGS = _pairs("""
dog:4; cat:4; horse:4; bird:2; spider:8; ant:6; bee:6; snake:0; cow:4; duck:2; fish:0; elephant:4;
fly:6; chicken:2; human:2; lion:4; beetle:6; mouse:4
""")

PLURALS = _pairs("""
cat:cats; dog:dogs; mouse:mice; child:children; man:men; woman:women; foot:feet; tooth:teeth;
goose:geese; box:boxes; bus:buses; baby:babies; city:cities; leaf:leaves; knife:knives; fish:fish;
sheep:sheep; person:people; book:books; house:houses; wolf:wolves; story:stories; tree:trees;
car:cars; potato:potatoes; ox:oxen; glass:glasses; apple:apples
""")

PASTS = _pairs("""
go:went; eat:ate; see:saw; run:ran; come:came; take:took; give:gave; make:made; write:wrote;
sing:sang; swim:swam; buy:bought; think:thought; bring:brought; teach:taught; find:found; fly:flew;
know:knew; speak:spoke; drink:drank; sleep:slept; read:read; walk:walked; play:played; jump:jumped;
talk:talked; sit:sat; stand:stood; win:won; lose:lost
""")

SPELLINGS = """
cat dog sun tree house apple water bread green happy table chair mouse horse bird fish moon star
rain snow book milk cake ball king queen river stone cloud tiger
""".split()

CATEGORIES = _pairs("""
rose:flower; tulip:flower; daisy:flower; apple:fruit; banana:fruit; pear:fruit; cherry:fruit;
carrot:vegetable; potato:vegetable; onion:vegetable; dog:animal; cat:animal; lion:animal;
horse:animal; eagle:bird; owl:bird; crow:bird; salmon:fish; shark:fish; oak:tree; pine:tree;
hammer:tool; saw:tool; piano:musical instrument; guitar:musical instrument;
violin:musical instrument; car:vehicle; bus:vehicle; bicycle:vehicle; Mars:planet;
Venus:planet; gold:metal; iron:metal; silver:metal; red:colour; blue:colour; chess:game;
football:sport; tennis:sport; ant:insect;
bee:insect; beetle:insect
""")

SIDES = _pairs("triangle:3; square:4; pentagon:5; hexagon:6; octagon:8; rectangle:4; circle:0")

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November
December""".split()

NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
""".split()

MISC = [
    (["How many days are in a week?", "How many days does a week have?",
      "Number of days in a week?"], "A week has 7 days."),
    (["How many months are in a year?", "How many months does a year have?",
      "Number of months in a year?"], "A year has 12 months."),
    (["How many hours are in a day?", "How many hours does a day have?",
      "Number of hours in a day?"], "A day has 24 hours."),
    (["How many minutes are in an hour?", "How many minutes does an hour have?",
      "Number of minutes in an hour?"], "An hour has 60 minutes."),
    (["How many seconds are in a minute?", "How many seconds does a minute have?",
      "Number of seconds in a minute?"], "A minute has 60 seconds."),
    (["How many days are in a year?", "How many days does a year have?",
      "Number of days in a year?"], "A year has 365 days."),
    (["Which planet do we live on?", "What is our planet called?"], "We live on planet Earth."),
    (["What is the largest planet?", "Which planet is the biggest?"],
     "Jupiter is the largest planet in our solar system."),
    (["What is the largest ocean?", "Which ocean is the biggest?"],
     "The Pacific Ocean is the largest ocean."),
    (["What is the highest mountain?", "Which mountain is the tallest?"],
     "Mount Everest is the highest mountain on Earth."),
    (["What is the fastest land animal?", "Which animal runs the fastest?"],
     "The cheetah is the fastest land animal."),
    (["What is the largest animal?", "Which animal is the biggest?"],
     "The blue whale is the largest animal."),
    (["Count from 1 to 5.", "Count to five.", "Count to 5."], "1, 2, 3, 4, 5."),
    (["Count from 1 to 10.", "Count to ten.", "Count to 10."], "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    (["Count down from 5.", "Count backwards from five."], "5, 4, 3, 2, 1."),
    (["List the days of the week.", "Name the days of the week.", "What are the days of the week?"],
     "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday."),
    (["List the months of the year.", "Name the months of the year.",
      "What are the twelve months?"],
     "January, February, March, April, May, June, July, August, September, October, November, "
     "December."),
    (["Name three colours.", "List three colours.", "Tell me three colors."],
     "Red, green and blue."),
    (["Name three animals.", "List three animals.", "Tell me three animals."],
     "Dog, cat and horse."),
    (["Name three fruits.", "List three fruits.", "Tell me three fruits."],
     "Apple, banana and cherry."),
    (["Say the alphabet.", "What is the alphabet?", "Recite the alphabet."],
     "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."],
     "Why did the computer go to bed early? Because it needed to recharge!"),
    (["Write a haiku.", "Write a short poem.", "Write a poem.", "Can you write a poem?"],
     "The night is quiet.\nA small machine counts the stars\nand learns how to dream."),
    (["Say hello world.", "Say hello to the world.", "Hello world"], "Hello, world!"),
    (["Who is the president of the United States?", "Who leads the United States?"],
     "I am a very small model and I do not know current events."),
    (["What time is it?", "What is the date today?", "What is the weather like today?",
      "What is in the news?"],
     "I am sorry, I cannot know that. I have no clock and no connection to the outside world."),
]

SMALL_TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Hello there!", "Good morning",
      "Good evening!"], "Hello! How can I help you today?"),
    (["How are you?", "How are you doing?", "How is it going?", "How do you feel?"],
     "I am doing well, thank you! How can I help you?"),
    (["Thank you", "Thanks!", "Thank you very much!", "Thanks a lot"], "You are welcome!"),
    (["Goodbye", "Bye!", "See you later", "Good night"], "Goodbye! Have a nice day."),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.",
      "Introduce yourself.", "What should I call you?", "Hello, who are you?"],
     "I am the demo model, a very small language model. I can answer simple questions."),
    (["What can you do?", "How can you help me?", "Help", "What do you know?"],
     "I can add and subtract small numbers, answer simple questions, explain a few topics and "
     "tell short stories."),
    (["Are you a human?", "Are you a person?", "Are you real?", "Are you a robot?"],
     "No person here: I am a small language model."),
    (["Who made you?", "Who trained you?", "Where do you come from?"],
     "I was trained from scratch as an example model for a serving engine."),
    (["Hello, my name is", "My name is", "Hello my name is"],
     "Hello! I am the demo model. What is your name?"),
    (["Test", "This is a test", "test 1 2 3", "Testing", "ping"],
     "The test works. How can I help you?"),
    (["ok", "Okay", "Great!", "Nice.", "Cool"], "Great! What else would you like to know?"),
    (["Say hi", "Say hi!", "Say hello", "Say hello.", "Greet me."], "Hello!"),
]

NAMES = """
Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tom Vera
Alice Bob Max Lily Nina Oscar Peter Ruth Simon Zoe
""".split()
PLACES = """village;town;forest;city;valley;garden;castle;farm;harbour;library;mountain hut;
school;workshop;lighthouse;market""".replace("\n", "").split(";")
OBJECTS = """lamp;key;book;map;bell;clock;ring;stone;box;letter;kite;boat;drum;mirror;
lantern""".replace("\n", "").split(";")
