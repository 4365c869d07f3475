"""What several parts use: errors, whole files, random numbers, sheets of images, the packed data set."""
