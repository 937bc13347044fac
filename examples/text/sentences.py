"""Sentences of 7 to 105 tokens, each with one that is related and one that is not."""

TRIPLES = (
    ("A cat sits on the mat.", "A kitten rests on a rug.", "The central bank raised interest rates."),
    ("How do I reset my password?", "I forgot my login and need a new one.", "The soup needs more salt."),
    ("It rained all night.", "The storm did not stop until morning.", "She plays the violin."),
    (
        "The stadium was full an hour before the final began, and people were still queueing outside the gates.",
        "Every seat had been taken long before kick-off, with crowds of supporters waiting in front of the entrances.",
        "To replace the filter, switch the pump off, wait until the pressure has dropped, and unscrew the lid.",
    ),
    (
        "Graphics processors run thousands of threads at once, which suits the large matrix products of neural networks.",
        "Because deep learning is mostly multiplication of big matrices, it runs fast on highly parallel GPU hardware.",
        "The recipe asks for three ripe tomatoes, a handful of basil, good olive oil and a pinch of coarse sea salt.",
    ),
    (
        (
            "In spring the river carries melted snow from the mountains down to the valley, and in some years it rises so fast that "
            "the lower fields are under water for weeks, so the farmers there sow late and keep their animals on the higher ground."
        ),
        (
            "When the snow in the mountains melts, the stream swells and floods the meadows along its banks; whoever grows crops "
            "down there waits with the seed until the water has gone and moves the cattle uphill."
        ),
        (
            "The committee published its report on the reform of the electoral law yesterday, and recommended that constituencies "
            "be drawn by an independent body, that postal votes be counted earlier, and that donations be made public."
        ),
    ),
    (
        (
            "The museum reopens on Saturday after three years of building work. The old entrance hall has been restored to what "
            "it was in the nineteenth century, with its painted ceiling and its mosaic floor, while behind it a new wing of glass "
            "and pale concrete doubles the room for exhibitions. The first one shows two hundred drawings that have never left the "
            "archive before, among them sketches for the great altar that was lost in the fire, and letters of the workshop."
        ),
        (
            "After a long renovation the gallery welcomes visitors again this weekend. Its historic foyer shines as it did when it was "
            "built, and a modern extension offers twice the space for shows. The opening exhibition presents drawings and "
            "letters from the collection's archive, most of them on public display for the first time."
        ),
        (
            "Before you connect the battery, make sure that the switch is off and that no metal tools lie near the terminals. Put "
            "the red cable on the positive terminal first, then the black one on the negative, and tighten both by hand. If the "
            "lamp blinks twice, the charge is low; charge it for at least four hours before you start the engine, and never "
            "leave it in the sun. If the lamp stays dark, look at the fuse below the seat and replace it with one of the same "
            "rating."
        ),
    ),
)
