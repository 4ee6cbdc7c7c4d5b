"""Files that people bring, and pictures to look at. Not here: networks.

pixels.py is the plain reader, for training and measuring; formats.py reads and writes pictures with all they carry, deep.py
those of 16 bits, apng.py the frames of animated PNG; metadata.py knows what of EXIF and its like stays true, opening.py what
can be opened. folders.py says which files of a folder are upscaled; video.py goes through videos; comparison.py makes panels
and pages with sliders.
"""
