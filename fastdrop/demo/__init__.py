"""``fastdrop demo``: a network written in nothing but NumPy, trained with three kinds of dropout.

network   the layers, the loss, Adam: no library, so that dropout's cost is seen beside that of everything else
problems  the two sets of data and how each is trained
training  the loop, its clock and its figures
table     the figures as text
picture   decision regions and learning curves
command   ``fastdrop demo``
"""
