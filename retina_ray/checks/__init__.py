"""What is wrong or odd in a data set, all of it at once, before a training pays for it."""
