"""Do the anchors of a config fit the boxes of a data set, and which would fit better?"""
