"""The walking differ: unpack layers into trees, and write the difference of two trees as a layer.

Unpacking

differ.py       the Differ that others call
applying.py     runs an unpack in a thread or a child process
unpack.py       one layer into one tree: read, inflate, digest, extract
inflate.py      the uncompressed stream of a blob, with digest and size
extract.py      makes what each entry describes
tree.py         keeps every entry inside the root: opens each directory of its path below the root's descriptor
whiteouts.py    what a layer removes from the layers below it
parents.py      directories that only the layers below have
targets.py      finds the directory to write to without mounting
media_types.py  the media types of layers

Comparing

comparing.py    runs a comparison in a child process, and writes its output to the content store
changes.py      the differences of two trees
layer.py        differences as entries of an archive
tar_writer.py   one entry as bytes

Both

children.py     starts child processes and reads their answers
worker.py       the child process
processing.py   layers of other media types, through stream processors
program.py      stream processors that are programs
plugin.py       registration, config
"""
