"""Words of the simulated city: what there is, what it costs, when people want it, and what it is called."""

# coarse -> (hours of peak demand, spread in hours, {fine: (typical price in euros, words that end a name)})
CATEGORIES: dict[str, tuple[tuple[float, ...], float, dict[str, tuple[float, tuple[str, ...]]]]] = {
    "Restaurants": (
        (12.5, 19.5),
        2.0,
        {
            "Italian": (24, ("Trattoria", "Pizzeria", "Osteria")),
            "Chinese": (18, ("Noodles", "Dim Sum", "Wok House")),
            "Sushi": (32, ("Sushi", "Izakaya", "Ramen")),
            "Burgers": (14, ("Burgers", "Grill", "Diner")),
            "Indian": (20, ("Curry House", "Tandoori", "Dosa Kitchen")),
            "Vegetarian": (19, ("Greens", "Kitchen", "Garden Table")),
        },
    ),
    "Cafes": (
        (9.0, 15.0),
        2.5,
        {
            "Coffee": (5, ("Coffee", "Espresso Bar", "Roasters")),
            "Tea": (6, ("Tea House", "Tea Room", "Matcha Bar")),
            "Bakery": (7, ("Bakery", "Patisserie", "Bread")),
            "Ice Cream": (5, ("Gelato", "Ice Cream", "Creamery")),
            "Brunch": (17, ("Brunch", "Pancakes", "Breakfast Club")),
            "Juice": (8, ("Juice Bar", "Smoothies", "Press")),
        },
    ),
    "Nightlife": (
        (22.0,),
        3.0,
        {
            "Pub": (12, ("Arms", "Tavern", "Inn")),
            "Cocktails": (22, ("Cocktail Bar", "Lounge", "Speakeasy")),
            "Wine Bar": (20, ("Wine Bar", "Cellar", "Vino")),
            "Club": (18, ("Club", "Dance Hall", "Warehouse")),
            "Karaoke": (16, ("Karaoke", "Singing Rooms", "Stage")),
            "Brewery": (13, ("Brewery", "Taproom", "Brewhouse")),
        },
    ),
    "Shops": (
        (14.5,),
        3.5,
        {
            "Clothing": (55, ("Fashion", "Outfitters", "Boutique")),
            "Shoes": (80, ("Shoes", "Sneakers", "Footwear")),
            "Books": (20, ("Books", "Bookshop", "Reading Room")),
            "Electronics": (150, ("Electronics", "Audio", "Gadgets")),
            "Home": (60, ("Interiors", "Home", "Living")),
            "Toys": (28, ("Toys", "Games", "Playroom")),
        },
    ),
    "Groceries": (
        (11.0, 17.5),
        2.5,
        {
            "Supermarket": (30, ("Market", "Supermarket", "Foods")),
            "Butcher": (25, ("Butcher", "Meats", "Charcuterie")),
            "Cheese": (18, ("Cheese", "Dairy", "Fromagerie")),
            "Greengrocer": (15, ("Greengrocer", "Fruit and Veg", "Farm Shop")),
            "Wine Shop": (35, ("Wines", "Bottle Shop", "Vintners")),
            "Organic": (28, ("Organics", "Natural Foods", "Pantry")),
        },
    ),
    "Beauty": (
        (11.5, 16.0),
        2.5,
        {
            "Hairdresser": (45, ("Hair", "Salon", "Hair Studio")),
            "Barber": (28, ("Barbers", "Barbershop", "Shaves")),
            "Nails": (35, ("Nails", "Nail Bar", "Manicure")),
            "Spa": (75, ("Spa", "Baths", "Sauna")),
            "Cosmetics": (38, ("Cosmetics", "Beauty", "Perfumery")),
            "Massage": (60, ("Massage", "Bodywork", "Reflexology")),
        },
    ),
    "Sports": (
        (7.5, 18.5),
        2.0,
        {
            "Gym": (25, ("Gym", "Fitness", "Strength")),
            "Yoga": (18, ("Yoga", "Pilates", "Studio")),
            "Climbing": (16, ("Climbing", "Boulder Hall", "Walls")),
            "Swimming": (9, ("Pool", "Swimming", "Aquatics")),
            "Tennis": (22, ("Tennis", "Padel", "Rackets")),
            "Bicycles": (90, ("Bikes", "Cycles", "Bike Works")),
        },
    ),
    "Culture": (
        (15.0, 20.0),
        2.5,
        {
            "Cinema": (13, ("Cinema", "Pictures", "Film House")),
            "Museum": (16, ("Museum", "Collection", "Museum of Craft")),
            "Theatre": (35, ("Theatre", "Playhouse", "Stage House")),
            "Gallery": (10, ("Gallery", "Art Space", "Prints")),
            "Live Music": (28, ("Music Hall", "Jazz Club", "Concert House")),
            "Escape Room": (30, ("Escape Rooms", "Mysteries", "Puzzle House")),
        },
    ),
}
COARSE: tuple[str, ...] = tuple(CATEGORIES)
FINE_PER_COARSE = 6
LEAVES: tuple[tuple[str, str], ...] = tuple((c, f) for c in COARSE for f in CATEGORIES[c][2])

FIRST: tuple[str, ...] = (
    "Golden", "Silver", "Blue", "Red", "Green", "White", "Black", "Little", "Grand", "Old", "New", "Happy", "Lucky",
    "Royal", "Wild", "Quiet", "Bright", "Hidden", "Sunny", "Rainy", "Northern", "Southern", "Eastern", "Western",
    "Stone", "Wooden", "Copper", "Iron", "Velvet", "Crystal", "Amber", "Ivory", "Scarlet", "Olive", "Honey",
    "Maple", "Cedar", "Willow", "Salty", "Sweet", "Busy", "Lazy", "Merry", "Noble", "Urban", "Rustic", "Modern",
    "Classic", "Crooked", "Tiny",
)  # fmt: skip
SECOND: tuple[str, ...] = (
    "Dragon", "Lotus", "Fox", "Heron", "Lion", "Owl", "Bear", "Swan", "Tiger", "Panda", "Anchor", "Bridge", "Canal",
    "Harbour", "Lantern", "Windmill", "Tower", "Garden", "Orchard", "Meadow", "River", "Island", "Mountain",
    "Valley", "Forest", "Moon", "Star", "Sun", "Cloud", "Comet", "Barrel", "Spoon", "Kettle", "Pepper", "Basil",
    "Ginger", "Saffron", "Clover", "Thistle", "Tulip", "Rose", "Poppy", "Key", "Crown", "Compass", "Wheel", "Arrow",
    "Feather", "Button", "Mirror",
)  # fmt: skip
CHAIN_ENDS: tuple[str, ...] = ("& Co", "Brothers", "& Daughters", "Collective", "House", "Express")
_SIDES = (
    "North",
    "South",
    "East",
    "West",
    "Harbour",
    "Station",
    "Museum",
    "Market",
    "Garden",
    "Mill",
    "Canal",
    "Abbey",
)
DISTRICTS: tuple[str, ...] = (  # the first district of every city is its centre
    "Centre",
    *(f"{side} {kind}" for kind in ("Quarter", "Gate", "Park", "Side") for side in _SIDES),
)
AGE_GROUPS: tuple[str, ...] = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")

# GeoNames admin-1 names for the default country; other countries show the GeoNames code ("DE.02")
PROVINCES: dict[str, dict[str, str]] = {
    "NL": {
        "01": "Drenthe",
        "02": "Friesland",
        "03": "Gelderland",
        "04": "Groningen",
        "05": "Limburg",
        "06": "North Brabant",
        "07": "North Holland",
        "09": "Utrecht",
        "10": "Zeeland",
        "11": "South Holland",
        "15": "Overijssel",
        "16": "Flevoland",
    }
}
