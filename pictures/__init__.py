"""Files that people bring, and pictures to look at. Not here: networks.

pixels.py is the plain reader, for training and measuring; formats.py reads and writes pictures with all they carry, deep.py
those of 16 bits; video.py goes through videos; comparison.py makes panels and pages with sliders.
"""
