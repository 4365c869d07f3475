"""Stage preprocess: the archive → packed training images, and a report on them."""
