"""`make gpu`: build, test and measure on a machine with a GPU, with its own Python and without a network."""
